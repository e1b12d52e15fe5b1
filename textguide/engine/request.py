"""The arguments of a run, both ours and those of transformers, checked before anything runs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..constraints import Vocabulary
from ..guidance import AWRS, Guidance, as_guidance, split
from ..support.checks import flag, is_number, is_whole_number, whole_number

if TYPE_CHECKING:
    from .loop import Observer
    from .speculation import Speculation

SAMPLING_OPTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""Options that affect sampling: if one of them is passed, :func:`textguide.generate` samples."""

CACHES = (None, "dynamic", "static")
"""Values of ``cache_implementation`` whose rows the branches of a guidance can share."""

_NOT_OURS: dict[str, str] = {
    "guidance_scale": "pass guidance=CFG(scale), and renormalize=False for the tokens of transformers under penalties",
    "custom_generate": "use model.generate for it",
    "logits_to_keep": "leave it out",
    "max_length": "pass max_new_tokens",
    "return_dict_in_generate": "use model.generate(custom_generate=textguide.guided_decoding(...)) for it",
    "output_scores": "use observer=, or model.generate(custom_generate=textguide.guided_decoding(...))",
    "output_logits": "use observer=, or model.generate(custom_generate=textguide.guided_decoding(...))",
    "token_healing": "leave it out",
    "assistant_model": "pass speculation=, or put GuidanceLogitsProcessor into logits_processor= of model.generate",
    "assistant_tokenizer": "pass speculation=",
    "negative_prompt_ids": "pass guidance=CFG(scale, negative_prompt=ids)",
    "negative_prompt_attention_mask": "pass guidance=CFG(scale, negative_prompt=ids), with a list of ids per row",
    "synced_gpus": "leave it out",
    "inputs": "pass prompts=",
    "input_ids": "pass prompts=",
    "attention_mask": "pass prompts=",
    "inputs_embeds": "pass prompts= as texts or token ids",
}
"""Arguments of transformers' ``generate`` that :func:`textguide.generate` does not accept, with a remedy."""


@dataclass(frozen=True)
class Request:
    """The arguments of one run, as for :func:`textguide.generate`.

    Args:
        seed: a seed for the run, or a tuple with one per row.
        options: options of transformers' ``GenerationConfig``.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """

    guidance: Guidance | None
    max_new_tokens: int
    seed: int | tuple[int, ...] | None = None
    batch_size: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = True
    do_sample: bool | None = None
    models: Mapping[str, Any] | None = None
    streamer: Any = None
    observer: Observer | None = None
    stopping_criteria: Any = None
    vocabulary: Vocabulary | None = None
    speculation: Speculation | None = None
    prefill_memory: int | None = None
    prefill_progress: Callable[[int, int], Any] | None = None
    verify: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole_number("max_new_tokens", self.max_new_tokens, 1)
        whole_number("verify", self.verify, 0)
        for name, value in (
            ("batch_size", self.batch_size),
            ("num_return_sequences", self.options.get("num_return_sequences")),
            ("prefill_chunk_size", self.options.get("prefill_chunk_size")),
            ("prefill_memory", self.prefill_memory),
        ):
            if value is not None:
                whole_number(name, value, 1)
        flag("include_stop", self.include_stop)
        if self.do_sample is not None:
            flag("do_sample", self.do_sample)
        kinds: dict[str, tuple[Callable[[Any], bool], str]] = {
            "seed": (_is_seed, "a whole number, or a list with one per row"),
            "models": (lambda x: isinstance(x, Mapping), "a mapping from names to models"),
            "streamer": (lambda x: hasattr(x, "put") and hasattr(x, "end"), "a streamer of transformers"),
            "observer": (callable, "a function of a StepView"),
            "prefill_progress": (callable, "a function of two numbers of tokens"),
            "stopping_criteria": (lambda x: isinstance(x, Iterable), "a list of transformers' stopping criteria"),
        }
        for name, (holds, meaning) in kinds.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value!r} must be {meaning}")
        check_values(self.options)
        cache = self.options.get("cache_implementation")
        guided = self.guidance is not None and not self.guidance.is_neutral
        if guided and cache not in CACHES:  # before transformers makes it, which may need another package
            raise ValueError(f"cache_implementation={cache!r} does not work with guided decoding; leave it out")
        if isinstance(self.seed, tuple):
            self._check_seeds()

    def _check_seeds(self) -> None:
        sampling = split(self.guidance).sampling
        if sampling is not None:
            raise ValueError(
                f"seed= with one per row does not work with {sampling}, whose rows share their random numbers; "
                "pass one seed, or one prompt at a time"
            )
        if (self.options.get("num_return_sequences") or 1) > 1:
            raise ValueError("seed= with one per row does not work with num_return_sequences; repeat the prompts")

    @classmethod
    def of(
        cls,
        guidance: Any,
        max_new_tokens: int | None,
        stop: Any,
        do_sample: bool | None,
        speculation: Any,
        options: Mapping[str, Any],
        default_length: int,
        constraint: Any = None,
        **fields: Any,
    ) -> Request:
        """Build the request of a call. Arguments override the fields of ``generation_config=``.

        Args:
            options: the further keyword arguments of the call, which may contain ``generation_config``.
            default_length: number of new tokens if neither the call nor ``generation_config`` sets it.
            constraint: adds ``AWRS(constraint)`` to the guidance.
            **fields: further fields.
        """
        merged = with_config(options, max_new_tokens)
        new = merged.pop("max_new_tokens", None)
        samples = merged.pop("do_sample", None)
        if max_new_tokens is None:
            max_new_tokens = default_length if new is None else new
        seed = fields.pop("seed", None)
        if isinstance(seed, Sequence) and not isinstance(seed, str):
            seed = tuple(seed)
        if speculation is not None:
            from .speculation import as_speculation

            speculation = as_speculation(speculation)
        return cls(
            guidance=with_constraint(as_guidance(guidance), constraint),
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop_texts(stop, "stop") + stop_texts(merged.pop("stop_strings", None), "stop_strings"),
            do_sample=samples if do_sample is None else do_sample,
            speculation=speculation,
            options=merged,
            **fields,
        )

    @property
    def particles(self) -> int:
        """Rows per text."""
        return split(self.guidance).particles

    @property
    def forks(self) -> bool:
        """Whether texts fork into other rows of the batch, which have to exist from the start."""
        return split(self.guidance).forks

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        if self.do_sample is not None:
            return self.do_sample
        for name in SAMPLING_OPTIONS:
            if self.options.get(name) is not None:
                return True
        return split(self.guidance).weighs

    def rows_per_batch(self, rows: int) -> int:
        """Number of rows decoded together, of ``rows`` in total."""
        if self.batch_size is None:
            return rows
        return self.batch_size * (self.particles if self.forks else 1)


def with_constraint(guidance: Guidance | None, constraint: Any) -> Guidance | None:
    """Add ``AWRS(constraint)`` to ``guidance``; return it unchanged if ``constraint`` is None.

    Raises:
        ValueError: the guidance already has a constraint or a population.
    """
    if constraint is None:
        return guidance
    sampling = split(guidance).sampling
    if sampling is not None:
        raise ValueError(
            f"constraint={constraint!r} and guidance {sampling.name!r} both choose the tokens; put the constraint into "
            f"the guidance, such as {type(sampling).__name__}(constraint=...), and leave constraint= out"
        )
    added = constraint if isinstance(constraint, AWRS) else AWRS(constraint)
    return added if guidance is None else as_guidance([guidance, added])


def with_config(options: Mapping[str, Any], max_new_tokens: int | None) -> dict[str, Any]:
    """Merge ``options`` with the fields of ``generation_config=``; the options override the fields.

    Args:
        max_new_tokens: as passed to the call. If it or the configuration's is set, ``max_length`` is ignored.

    Raises:
        ValueError: ``generation_config`` is not a ``GenerationConfig``.
    """
    passed = dict(options)
    config = passed.pop("generation_config", None)
    if config is None:
        return passed
    if not hasattr(config, "get_generation_mode"):
        raise ValueError(f"generation_config={config!r} must be a transformers.GenerationConfig")
    fields = {}
    for name, value in vars(config).items():
        if value is not None and not name.startswith("_") and name != "transformers_version":
            fields[name] = value
    if max_new_tokens is not None or "max_new_tokens" in fields:
        fields.pop("max_length", None)
    return {**fields, **passed}


def check_names(function: Any, options: Mapping[str, Any], model: Any) -> None:
    """Refuse options that neither ``function`` nor transformers' ``generate`` nor ``model`` accepts.

    Args:
        function: the public function that was called; its arguments are suggested too.

    Raises:
        ValueError: an option is unknown; the message suggests the nearest one.
    """
    if not options:
        return
    from transformers import GenerationConfig, GenerationMixin

    arguments = inspect.signature(function).parameters.keys() - {"options"}
    known = {*arguments, *_NOT_OURS, "generation_config", *vars(GenerationConfig()), "temperature", "top_p", "top_k"}
    known |= inspect.signature(GenerationMixin.generate).parameters.keys()
    for name in options:
        if name in known or name in inspect.signature(model.forward).parameters:
            continue
        suggestions = {*arguments, *vars(GenerationConfig())} - {*_NOT_OURS}
        public = sorted(suggestion for suggestion in suggestions if not suggestion.startswith("_"))
        nearest = difflib.get_close_matches(name, public, n=1, cutoff=0.6)
        remedy = f"did you mean {nearest[0]}=?" if nearest else "see its arguments and transformers' GenerationConfig"
        raise ValueError(f"{name}= is not an option of textguide.{function.__name__}; {remedy}")


def check_values(options: Mapping[str, Any]) -> None:
    """Refuse options that :func:`textguide.generate` does not support, and values that transformers would ignore or
    reject late."""
    for name in options.keys() & _NOT_OURS.keys():
        value = options[name]
        is_neutral = name == "guidance_scale" and value == 1  # the default in some generation configurations
        if value is not None and value is not False and not is_neutral:
            raise ValueError(f"{name}= is not an option of textguide.generate; {_NOT_OURS[name]}")
    processors = options.get("logits_processor")
    if processors is not None and not isinstance(processors, Iterable):
        raise ValueError(f"logits_processor={processors!r} must be a list of transformers' logits processors")
    if options.get("cache_implementation") == "paged":
        raise ValueError("cache_implementation='paged' decodes without guidance; leave it out")
    bounds: dict[str, tuple[Callable[[Any], bool], str]] = {
        "temperature": (lambda x: x > 0, "above 0; leave it out for greedy decoding"),
        "top_p": (lambda x: 0 < x <= 1, "in (0, 1]"),
        "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
        "top_k": (lambda x: x >= 0 and x == int(x), "a whole number of 0 or more; 0 keeps every token"),
        "repetition_penalty": (lambda x: x > 0, "above 0; 1 changes nothing"),
    }
    for name, (holds, meaning) in bounds.items():
        value = options.get(name)
        if value is not None and (not is_number(value) or not holds(value)):
            raise ValueError(f"{name}={value!r} must be {meaning}")


def stop_texts(stop: Any, name: str) -> tuple[str, ...]:
    """Convert the texts that end a continuation to a tuple.

    Raises:
        ValueError: one of them is not a text, or it is empty, which would end every continuation immediately.
    """
    if stop is None:
        return ()
    texts = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else (stop,)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name}={stop!r} must be a text or a list of texts, none of them empty")
    return texts


def _is_seed(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(is_whole_number(one) for one in value)
    return is_whole_number(value)
