"""Options of transformers' ``generate``: what decoding under guidance does with each, and what it refuses by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..forward import caches
from ..forward.model_adapter import adapter

SAMPLING_OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
"""Options that change what is drawn: one of them makes :func:`textguide.generate` sample."""

CACHES = (None, "dynamic", "static")
"""Values of ``cache_implementation`` whose rows the branches of a guidance can share."""

_BEAMS = "put GuidanceLogitsProcessor into logits_processor= for beam search"
_SPECULATION = (
    "pass speculation= (textguide.generate, guided_decoding), or put GuidanceLogitsProcessor into logits_processor="
)
_MODES: dict[str, tuple[Any, str]] = {
    "num_beams": (1, _BEAMS),
    "num_beam_groups": (1, _BEAMS),
    "diversity_penalty": (0.0, _BEAMS),
    "constraints": (None, "pass a constraint as guidance, such as textguide.AWRS"),
    "force_words_ids": (None, "pass a constraint as guidance, such as textguide.AWRS"),
    "prompt_lookup_num_tokens": (
        None,
        "pass speculation='prompt-lookup' to guided_decoding, or put GuidanceLogitsProcessor into logits_processor=",
    ),
    "assistant_early_exit": (None, _SPECULATION),
    "speculation_type": (None, _SPECULATION),
    "use_mtp": (False, _SPECULATION),
    "is_assistant": (False, "leave it out"),
    "penalty_alpha": (None, "leave contrastive search out, or use textguide.guidance.Contrastive"),
    "dola_layers": (None, "leave it out, or use textguide.guidance.DoLa"),
    "output_attentions": (False, "leave it out"),
    "output_hidden_states": (False, "leave it out"),
    "prefill_chunk_size": (None, "leave it out"),
}
"""Fields of ``GenerationConfig`` that ask for another loop than ours: the value that does not, and a remedy."""

_NOT_OURS: dict[str, str] = {
    "custom_generate": "use model.generate for it",
    "logits_to_keep": "leave it out",
    "max_length": "give max_new_tokens",
    "return_dict_in_generate": "use model.generate(custom_generate=textguide.guided_decoding(...)) for it",
    "output_scores": "use observer=, or model.generate(custom_generate=textguide.guided_decoding(...))",
    "output_logits": "use observer=, or model.generate(custom_generate=textguide.guided_decoding(...))",
    "token_healing": "leave it out",
    "assistant_model": "pass speculation=, or put GuidanceLogitsProcessor into logits_processor= of model.generate",
    "assistant_tokenizer": "pass speculation=",
    "negative_prompt_ids": "pass guidance=CFG(scale, negative_prompt=ids)",
    "negative_prompt_attention_mask": "pass guidance=CFG(scale, negative_prompt=ids), with a list of ids a row",
    "synced_gpus": "leave it out",
    **dict.fromkeys(("inputs", "input_ids", "attention_mask"), "pass prompts="),
    "inputs_embeds": "pass prompts= as texts or token ids",
}
"""Arguments of transformers' ``generate`` that :func:`textguide.generate` does not take, with a remedy."""


def check_values(options: Mapping[str, Any]) -> None:
    """Refuse options that :func:`textguide.generate` would drop, and values that transformers would ignore or fail on
    late."""
    for name, remedy in _NOT_OURS.items():
        value = options.get(name)
        if value is not None and value is not False:
            raise ValueError(f"{name}= cannot be given to textguide.generate; {remedy}")
    processors = options.get("logits_processor")
    if processors is not None and not isinstance(processors, Iterable):
        raise ValueError(f"logits_processor={processors!r} must be a list of transformers' logits processors")
    if options.get("cache_implementation") == "paged":
        raise ValueError("cache_implementation='paged' decodes without guidance; leave it out")
    bounds: dict[str, tuple[Any, str]] = {
        "temperature": (lambda x: x > 0, "above 0; leave it out for greedy decoding"),
        "top_p": (lambda x: 0 < x <= 1, "in (0, 1]"),
        "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
        "top_k": (lambda x: x >= 0 and x == int(x), "a whole number of 0 or more; 0 keeps every token"),
        "repetition_penalty": (lambda x: x > 0, "above 0; 1 changes nothing"),
    }
    for name, (holds, meaning) in bounds.items():
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value)):
            raise ValueError(f"{name}={value!r} must be {meaning}")


def with_config(options: Mapping[str, Any], max_new_tokens: int | None) -> dict[str, Any]:
    """``options`` with the fields of ``generation_config=`` among them, in whose place they count.

    Args:
        max_new_tokens: as given beside them; it, or that of the configuration, counts before ``max_length``.

    Raises:
        ValueError: ``generation_config`` is no ``GenerationConfig``.
    """
    own = dict(options)
    config = own.pop("generation_config", None)
    if config is None:
        return own
    if not hasattr(config, "get_generation_mode"):
        raise ValueError(f"generation_config={config!r} must be a transformers.GenerationConfig")
    internal = {"transformers_version"}
    fields = {name: v for name, v in vars(config).items() if v is not None and name[0] != "_" and name not in internal}
    if max_new_tokens is not None or "max_new_tokens" in fields:
        fields.pop("max_length", None)
    return {**fields, **own}


@dataclass(frozen=True)
class CallArguments:
    """Arguments of the ``generate`` call around a custom loop that transformers does not hand to it.

    Args:
        streamer: fed with the prompt already.
        assistant_model, negative_prompt_ids, synced_gpus: as given.
        prompts: how many it was given.
        options: the further keyword arguments of the call.
    """

    streamer: Any = None
    assistant_model: Any = None
    negative_prompt_ids: Any = None
    synced_gpus: Any = None
    prompts: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_caller(cls) -> CallArguments:
        """Those of the innermost ``generate`` that is running; without values where there is none."""
        from transformers import GenerationMixin

        code = inspect.unwrap(GenerationMixin.generate).__code__
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return cls()
        given = frame.f_locals
        names = ("streamer", "assistant_model", "negative_prompt_ids", "synced_gpus")
        found = {name: given.get(name) for name in names}
        return cls(**found, prompts=given.get("batch_size"), options=given.get("kwargs") or {})


class CallSignature:
    """The signature of a custom loop, as ``generate`` reads it; that of the loop's class stays its own.

    ``generate`` takes ``tokenizer=`` out of its arguments, hands it to no custom loop, and then misses it where
    ``stop_strings=`` are given. It reads a loop's signature in between: the moment to put the tokenizer back, or the
    loop's own where ``generate`` was given none.
    """

    def __get__(self, loop: Any, owner: type) -> inspect.Signature:
        from transformers import GenerationMixin

        if loop is None:
            raise AttributeError("__signature__")
        code = inspect.unwrap(GenerationMixin._extract_generation_mode_kwargs).__code__
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            given = frame.f_locals.get("generation_mode_kwargs") or {}
            tokenizer = given.get("tokenizer", loop.tokenizer)
            if tokenizer is not None:
                frame.f_locals["kwargs"]["tokenizer"] = tokenizer
        return inspect.signature(loop.__call__)


def check_mode(model: Any, config: Any, model_kwargs: Mapping[str, Any], given: CallArguments, guided: bool) -> None:
    """Refuse what our loop would drop.

    Args:
        model: the model that decodes.
        config: transformers' generation configuration of the run.
        model_kwargs: what ``generate`` prepared for the model.
        given: what it keeps to itself.
        guided: whether guidance acts; without it our loop has to do what transformers does.

    Raises:
        ValueError: something does not work with it; the message names it and a remedy.
    """
    for name, (usual, remedy) in _MODES.items():
        value = getattr(config, name, None)
        if value is not None and value != usual:
            _refuse(f"{name}={value!r}", remedy)
    if given.assistant_model is not None:
        _refuse("assistant_model=", _SPECULATION)
    if given.synced_gpus:
        _refuse("synced_gpus=True", "leave it out")
    if config.use_cache is False and _asked_for_no_cache(model, given):
        _refuse("use_cache=False", "leave it out, or put GuidanceLogitsProcessor into logits_processor=")
    if not guided:
        return
    if config.guidance_scale not in (None, 1, 1.0):
        _refuse(f"guidance_scale={config.guidance_scale} of transformers", "guidance would apply twice; leave it out")
    if given.negative_prompt_ids is not None:
        _refuse("negative_prompt_ids= of transformers", "pass guided_decoding(CFG(scale, negative_prompt=ids))")
    if config.cache_implementation not in CACHES:
        _refuse(f"cache_implementation={config.cache_implementation!r}", "leave it out")
    if _own_cache(model_kwargs):
        _refuse("a cache of your own", "leave it out")
    # While PEFT generates, prepare_inputs_for_generation is its own; learned prompts are refused there.
    adapter(getattr(model.prepare_inputs_for_generation, "__self__", model))


def check_speculation(config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse caches that cannot forget a wrong guess."""
    if config.cache_implementation is not None:
        raise ValueError(
            f"cache_implementation={config.cache_implementation!r} keeps what it read, and speculation= has to forget "
            "wrong guesses; leave one of them out"
        )
    if _own_cache(model_kwargs):
        raise ValueError("a cache of your own may hold what speculation= has to forget; leave one of them out")


def check_inputs(model_kwargs: Mapping[str, Any]) -> None:
    """Refuse what the extra branches would not read, where nothing but token ids is known of the inputs."""
    if model_kwargs.get("inputs_embeds") is not None:
        _refuse(
            "inputs_embeds=",
            "the other branch needs token ids; pass input_ids, or captioning=Captioning(captioner=model) where a model "
            "that sees images hands them over",
        )


def _refuse(what: str, remedy: str) -> NoReturn:
    raise ValueError(f"{what} does not work with guided decoding; {remedy}")


def _own_cache(model_kwargs: Mapping[str, Any]) -> bool:
    return any(getattr(model_kwargs.get(name), "_is_user_defined", False) for name in caches.ARGUMENTS)


def _asked_for_no_cache(model: Any, given: CallArguments) -> bool:
    """Whether the call says ``use_cache=False``, as opposed to the model's own configuration (MPT's does)."""
    if given.options.get("use_cache") is False:
        return True
    return getattr(model.generation_config, "use_cache", None) is not False
