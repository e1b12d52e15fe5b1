"""Guided decoding inside transformers: a callable for ``model.generate(custom_generate=…)``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from ..constraints import Vocabulary
from ..forward import caches
from ..forward.chunking import MEMORY, Chunking
from ..forward.model_adapter import adapter
from ..guidance import BranchGuidance, as_guidance, split
from ..guidance.composed import Parts
from ..smc.population import Population
from ..step.effect import Effect, warn_if_none
from ..support.checks import whole_number
from . import branch_inputs
from .branch_passes import Source
from .caller import GenerateCall, running_generate_call
from .loop import Observer, Settings, decode
from .request import CACHES, stop_texts
from .results import Decoded
from .verification import Verifier

_BEAMS = "put GuidanceLogitsProcessor into logits_processor= for beam search"
_SPECULATION = (
    "pass speculation= (textguide.generate, guided_decoding), or put GuidanceLogitsProcessor into logits_processor="
)
_OTHER_LOOPS: dict[str, tuple[Any, str]] = {
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
    "penalty_alpha": (None, "leave contrastive search out, or use textguide.guidance.ContrastiveDecoding"),
    "dola_layers": (None, "leave it out, or use textguide.guidance.DoLa"),
    "output_attentions": (False, "leave it out"),
    "output_hidden_states": (False, "leave it out"),
}
"""Fields of ``GenerationConfig`` that select another decoding loop: the default value, which does not, and a remedy."""


class BranchReader(Protocol):
    """Provides what the extra branches read if the inputs of a run are more than token ids, such as images."""

    @property
    def models(self) -> Mapping[str, Any]:
        """Further models that the branches use, by name."""

    def reads(self, model: Any, model_kwargs: Mapping[str, Any]) -> bool:
        """Whether it provides the branches of a run of ``model``."""

    def sources(
        self,
        guidance: BranchGuidance,
        model: Any,
        ids: Tensor,
        model_kwargs: Mapping[str, Any],
        tokenizer: Any,
        models: Mapping[str, Any],
    ) -> list[branch_inputs.Rows | Source]:
        """What each extra branch of ``guidance`` reads, given ``ids`` (B, L) and what ``generate`` prepared."""


@dataclass
class GuidedDecoding:
    """Guided decoding as a ``custom_generate`` callable for transformers.

    ``model.generate(**inputs, custom_generate=guided_decoding(CFG(1.5)))`` keeps ``GenerationConfig``, processors,
    stopping criteria, ``num_return_sequences``, ``return_dict_in_generate``, ``output_scores`` and
    ``output_logits``. The output of a run with ``return_dict_in_generate`` has an attribute ``effect``, an attribute
    ``constraint`` with the weights of a constrained or weighted run (else None), and ``speculation``.

    Args:
        guidance: a guidance, a sequence of guidances, or None for plain decoding. In a sequence, branches act first,
            then classifiers and rewards, then a constraint.
        tokenizer: needed if the guidance contains text or uses a classifier, and if ``stop`` is set.
        models: further models, by the names that branches use.
        streamer: a transformers streamer; equivalent to ``streamer=`` of ``generate``.
        generator: random generator for sampling, or a tuple with one per row. If None, torch's global generator is
            used, as ``generate`` does.
        observer: called with a :class:`textguide.engine.loop.StepView` after every step.
        log_probs: record the log-probability of every token.
        warn: warn if guidance changed nothing. Default: True.
        vocabulary: the bytes of each token, for constraints; default: read from ``tokenizer``.
        branch_prompts: token ids of every branch and row, instead of those that the guidance defines.
        speculation: guess tokens and verify the guesses in the same passes: ``prompt-lookup``, ``recycling``, ``both``,
            or a :class:`textguide.Speculation`. The text stays the same.
        fast: also use this machine's faster matrix products, and read a prefix that prompts share only once, when there
            is no guidance (guided runs always do). The output then equals that of transformers up to rounding, not bit
            for bit.
        captioning: how branches are made if the model reads images; a :class:`textguide.captioning.Captioning`.
            Default of :func:`textguide.guided_decoding`: the unconditional branch sees a blank image.
        stop: text or texts that end a row. Use this instead of ``stop_strings=`` of ``generate``, which needs a
            tokenizer that ``generate`` does not pass to custom loops.
        prefill_memory: bytes that a pass over a long prompt may take besides keys and values, by an estimate. Longer
            prompts are read in chunks, with the same result up to rounding. Default: 1 GiB; without guidance, prompts
            are only cut if this or ``prefill_chunk_size`` of ``GenerationConfig``, which sets the number of tokens per
            pass, is passed. Models that cannot continue a prompt by a chunk read it in one pass.
        prefill_progress: called while a prompt is read in chunks, with the number of tokens that were read and that are
            to be read.
        verify: number of random steps that are read again after the run; see :func:`textguide.generate`. The
            differences are in ``effect``.
        verifier: keeps random steps, whose report the caller asks for, instead of ``verify``.

    Raises:
        ValueError: the generation mode or an option does not work with guidance; the message names it.

    Example:
        >>> decoding = textguide.guided_decoding(CFG(1.5))
        >>> ids = model.generate(**inputs, custom_generate=decoding, max_new_tokens=8)
        >>> print(decoding.effect)  # doctest: +SKIP
    """

    guidance: Any
    _: KW_ONLY
    tokenizer: Any = None
    models: Mapping[str, Any] | None = None
    streamer: Any = None
    generator: torch.Generator | tuple[torch.Generator, ...] | None = None
    observer: Observer | None = None
    log_probs: bool = False
    warn: bool = True
    vocabulary: Vocabulary | None = None
    branch_prompts: list[branch_inputs.Rows] | None = None
    speculation: Any = None
    fast: bool = False
    captioning: BranchReader | None = None
    stop: Any = None
    prefill_memory: int | None = None
    prefill_progress: Callable[[int, int], Any] | None = None
    verify: int = 0
    verifier: Verifier | None = None
    effect: Effect | None = field(default=None, init=False)
    last: Decoded | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.guidance = as_guidance(self.guidance)
        self.stop = stop_texts(self.stop, "stop")
        if self.stop and self.tokenizer is None:
            raise ValueError(
                f"stop={self.stop!r} needs tokenizer=, because a stop text can end inside a token; pass it"
            )
        if self.speculation is not None:
            from .speculation import as_speculation

            self.speculation = as_speculation(self.speculation)
        whole_number("verify", self.verify, 0)
        if self.prefill_memory is not None:
            whole_number("prefill_memory", self.prefill_memory, 1)

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Decode; ``generate`` calls this instead of its own loop."""
        if self.verify:
            self.verifier = Verifier(self.verify)
        call = running_generate_call() or GenerateCall()
        streamer = self._streamer(call, input_ids)
        decoded = None
        for step in self.steps(
            model, input_ids, logits_processor, stopping_criteria, generation_config, call, **model_kwargs
        ):
            if isinstance(step, Decoded):
                decoded = step
            elif streamer is not None:
                streamer.put(step[0].cpu())
        if streamer is not None:
            streamer.end()
        assert decoded is not None
        if self.verify and self.verifier is not None:
            decoded.effect = replace(decoded.effect, verification=self.verifier.report())
        self.effect = decoded.effect
        self.last = decoded
        if self.warn:
            warn_if_none(decoded.effect, self.guidance)
            if decoded.population is not None:
                from ..smc.starting import warn_of_deaths

                warn_of_deaths([decoded.population])
        if not generation_config.return_dict_in_generate:
            return decoded.sequences
        return _as_output(decoded, model)

    def steps(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        call: GenerateCall,
        **model_kwargs: Any,
    ) -> Iterator[tuple[Tensor, Tensor] | Decoded]:
        """The same run, one step at a time; see :func:`textguide.engine.loop.decode`."""
        self._check(model, generation_config, model_kwargs, call)
        if self.stop:
            from transformers import StopStringCriteria

            stopping_criteria.append(StopStringCriteria(self.tokenizer, list(self.stop)))
        parts = split(self.guidance)
        mask = _prompt_mask(model, model_kwargs)
        settings = self._settings(parts, model, input_ids, mask, generation_config)
        settings.call = _compiled(model, generation_config, model_kwargs)
        horizon = (stopping_criteria.max_length or input_ids.shape[1] + 1) - input_ids.shape[1]
        if settings.guidance is not None:
            settings.prompts = self._prompts(
                settings.guidance, model, input_ids, mask, model_kwargs, generation_config, horizon
            )
            settings.static = generation_config.cache_implementation == "static"
        if parts.sampling is not None:
            streamer = self.streamer or call.streamer
            keys: Sequence[Hashable] = ()
            if parts.learns:
                keys = self._lesson_keys(
                    parts, settings, model, input_ids, mask, model_kwargs, logits_processor, stopping_criteria, horizon
                )
            settings.population = self._population(parts, model, input_ids, mask, generation_config, streamer, keys)
            settings.sampler = parts.sampling.name
            if parts.sampling.corrects and settings.guidance is not None:
                settings.guidance = parts.sampling.product(settings.guidance)
        if self.verifier is not None:
            settings.verifier = self.verifier
            self.verifier.begin(model, input_ids, settings, model_kwargs)
        return decode(model, input_ids, logits_processor, stopping_criteria, generation_config, settings, model_kwargs)

    def _check(self, model: Any, generation_config: Any, model_kwargs: Mapping[str, Any], call: GenerateCall) -> None:
        """Refuse options and inputs that do not work with the loop."""
        guided = self.guidance is not None and not self.guidance.is_neutral
        _check_mode(model, generation_config, model_kwargs, call, guided)
        if guided and not self._reads_images(model, model_kwargs):
            _check_inputs(model_kwargs)
        if self.speculation is not None:
            _check_speculation(generation_config, model_kwargs)
        size = generation_config.prefill_chunk_size
        if size is not None and (model.config.is_encoder_decoder or branch_inputs.sees_images(model, model_kwargs)):
            raise ValueError(
                f"prefill_chunk_size={size} does not work with images or encoder-decoders, which read their prompts in "
                "one pass; leave it out"
            )
        if self.streamer is not None and call.streamer not in (None, self.streamer):
            raise ValueError(
                "streamer= was passed to generate and to guided_decoding, and they differ; pass one of them"
            )

    def _settings(self, parts: Parts, model: Any, ids: Tensor, mask: Tensor | None, config: Any) -> Settings:
        """The settings of the loop, with classifiers at the start of the batch."""
        models = dict(self.models or {})
        if self.captioning is not None:
            models.update(self.captioning.models)
        settings = Settings(
            guidance=parts.branching,
            models=models,
            generator=self.generator,
            observer=self.observer,
            log_probs=self.log_probs,
            speculation=self.speculation,
            fast=self.fast,
            chunking=self._chunking(parts, config),
        )
        if parts.reweighting:
            from ..classifiers.reweighting import reweighter

            settings.reweighter = reweighter(parts.reweighting, self.tokenizer, model, config.eos_token_id)
        if parts.branching is not None and parts.branching.reads_class_log_probs:
            from ..classifiers.class_log_probs import ClassLogProbs

            settings.class_log_probs = ClassLogProbs(parts.branching, self.tokenizer, model)
        candidates = (settings.reweighter, settings.class_log_probs)
        classifiers = [classifier for classifier in candidates if classifier is not None]
        if classifiers:

            def start() -> None:
                for classifier in classifiers:
                    classifier.begin(branch_inputs.without_padding(ids, mask))

            start()
            settings.restart_classifiers = start
        return settings

    def _chunking(self, parts: Parts, config: Any) -> Chunking:
        """How long prompts are cut."""
        memory = self.prefill_memory
        # Plain decoding keeps the bits of transformers, which reads a prompt in one pass unless it is told otherwise.
        if memory is None and (self.fast or parts.branching is not None):
            memory = MEMORY
        return Chunking(config.prefill_chunk_size, memory, self.prefill_progress)

    def _population(
        self,
        parts: Parts,
        model: Any,
        ids: Tensor,
        mask: Tensor | None,
        config: Any,
        streamer: Any,
        keys: Sequence[Hashable],
    ) -> Population:
        """The population at the start of the batch: the rows that choose their tokens together."""
        from ..smc.starting import check_run, start

        sampling = parts.sampling
        assert sampling is not None
        if sampling.corrects and parts.reweighting:
            raise ValueError(
                "FeynmanKac cannot be combined with classifiers: reweighted candidates have their own normaliser, "
                "which is not part of the product; leave one of them out"
            )
        check_run(sampling, config, streamer)
        if isinstance(self.generator, tuple):
            raise ValueError(f"generator= with one per row does not work with {sampling}; pass one generator")
        return start(
            sampling,
            model,
            ids,
            config,
            self.tokenizer,
            self.vocabulary,
            self.generator,
            keys,
            branch_inputs.without_padding(ids, mask),
        )

    def _lesson_keys(
        self,
        parts: Parts,
        settings: Settings,
        model: Any,
        ids: Tensor,
        mask: Tensor | None,
        model_kwargs: Mapping[str, Any],
        processors: Any,
        criteria: Any,
        horizon: int,
    ) -> Sequence[Hashable]:
        """A key for each row, of everything that the distributions of its text depend on."""
        from .lesson_keys import lesson_keys

        branches: list[branch_inputs.Rows] | None = None
        is_text = not branch_inputs.sees_images(model, model_kwargs) and not model.config.is_encoder_decoder
        if is_text and all(isinstance(rows, list) for rows in settings.prompts):
            branches = [branch_inputs.without_padding(ids, mask), *settings.prompts]  # type: ignore[list-item]
        return lesson_keys(model, settings.models, parts, branches, len(ids), processors, criteria, horizon)

    def _prompts(
        self,
        guidance: BranchGuidance,
        model: Any,
        ids: Tensor,
        mask: Tensor | None,
        model_kwargs: dict[str, Any],
        generation_config: Any,
        horizon: int,
    ) -> list[branch_inputs.Rows | Source]:
        """The prompt of each extra branch."""
        if self.captioning is not None and self._reads_images(model, model_kwargs):
            return self.captioning.sources(guidance, model, ids, model_kwargs, self.tokenizer, self.models or {})
        if branch_inputs.sees_images(model, model_kwargs):
            raise ValueError(
                "the model reads images, and captioning=None does not define what the other branch sees; use "
                "textguide.guided_decoding, or pass captioning=textguide.captioning.Captioning()"
            )
        copies = generation_config.num_return_sequences or 1
        if self.branch_prompts is not None:
            return [branch_inputs.expand(rows, len(ids), copies=copies) for rows in self.branch_prompts]
        cond: branch_inputs.Rows = [[] for _ in range(len(ids))]
        if not model.config.is_encoder_decoder:
            cond = branch_inputs.without_padding(ids, mask)
        elif any(branch.same_prompt or branch.edit is not None for branch in guidance.branches):
            raise ValueError(
                f"guidance {guidance.name!r} reads the prompt again, and generate only passes an encoder-decoder's "
                "encoded prompt to a custom loop; use textguide.generate"
            )
        rows = branch_inputs.branch_rows(
            guidance,
            cond=cond,
            tokenizer=self.tokenizer,
            empty_source=branch_inputs.empty_source(model.config),
            copies=copies,
        )
        branch_inputs.check_branches(model, guidance, rows, horizon, self.models)
        if self.warn and not model.config.is_encoder_decoder:
            branch_inputs.warn_of_same(guidance, cond, rows, "input_ids")
        return [*rows]

    def _reads_images(self, model: Any, model_kwargs: Mapping[str, Any]) -> bool:
        """Whether ``captioning`` provides the branches."""
        return self.captioning is not None and self.captioning.reads(model, model_kwargs)

    def _streamer(self, call: GenerateCall, ids: Tensor) -> Any:
        """The streamer of the run; it has received the prompt, as transformers' streamers expect."""
        if call.streamer is not None:
            return call.streamer
        if self.streamer is not None:
            self.streamer.put(ids.cpu())
        return self.streamer


# -- checks ------------------------------------------------------------------------------------------------------------


def _check_mode(model: Any, config: Any, model_kwargs: Mapping[str, Any], call: GenerateCall, guided: bool) -> None:
    """Refuse options that our loop would ignore.

    Args:
        guided: whether there is a guidance; if not, our loop has to do what transformers does.

    Raises:
        ValueError: an option does not work with our loop; the message names it and a remedy.
    """
    for name, (usual, remedy) in _OTHER_LOOPS.items():
        value = getattr(config, name, None)
        if value is not None and value != usual:
            _refuse(f"{name}={value!r}", remedy)
    if call.assistant_model is not None:
        _refuse("assistant_model=", _SPECULATION)
    if call.synced_gpus:
        _refuse("synced_gpus=True", "leave it out")
    if config.use_cache is False and _is_cache_off(model, call):
        _refuse("use_cache=False", "leave it out, or put GuidanceLogitsProcessor into logits_processor=")
    if not guided:
        return
    if config.guidance_scale not in (None, 1, 1.0):
        _refuse(f"guidance_scale={config.guidance_scale} of transformers", "guidance would apply twice; leave it out")
    if call.negative_prompt_ids is not None:
        _refuse("negative_prompt_ids= of transformers", "pass guided_decoding(CFG(scale, negative_prompt=ids))")
    if config.cache_implementation not in CACHES:
        _refuse(f"cache_implementation={config.cache_implementation!r}", "leave it out")
    if _has_own_cache(model_kwargs):
        _refuse("a cache of your own", "leave it out")
    # While PEFT generates, prepare_inputs_for_generation is PEFT's own method, whose object is the wrapper. The adapter
    # refuses learned prompts if it is given the wrapper.
    adapter(getattr(model.prepare_inputs_for_generation, "__self__", model))


def _check_speculation(config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse caches that cannot drop a wrong guess."""
    if config.cache_implementation is not None:
        raise ValueError(
            f"cache_implementation={config.cache_implementation!r} keeps everything it read, but speculation= has to "
            "drop wrong guesses; leave one of them out"
        )
    if _has_own_cache(model_kwargs):
        raise ValueError("a cache of your own cannot be cropped when speculation= guessed wrong; leave one of them out")


def _check_inputs(model_kwargs: Mapping[str, Any]) -> None:
    """Refuse inputs that the extra branches cannot read."""
    if model_kwargs.get("inputs_embeds") is not None:
        _refuse(
            "inputs_embeds=",
            "the other branch needs token ids; pass input_ids, or captioning=Captioning(captioner=model) if a model "
            "that reads images passes them",
        )


def _refuse(what: str, remedy: str) -> NoReturn:
    raise ValueError(f"{what} does not work with guided decoding; {remedy}")


def _has_own_cache(model_kwargs: Mapping[str, Any]) -> bool:
    return any(getattr(model_kwargs.get(name), "_is_user_defined", False) for name in caches.ARGUMENTS)


def _is_cache_off(model: Any, call: GenerateCall) -> bool:
    """Whether the call itself sets ``use_cache=False``; the model's own configuration may set it too, as MPT's does."""
    if call.options.get("use_cache") is False:
        return True
    return getattr(model.generation_config, "use_cache", None) is not False


# -- from and to transformers ------------------------------------------------------------------------------------------


def _prompt_mask(model: Any, model_kwargs: Mapping[str, Any]) -> Tensor | None:
    """The mask of ``input_ids``."""
    name = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"
    return model_kwargs.get(name)


def _compiled(model: Any, config: Any, model_kwargs: dict[str, Any]) -> Any:
    """The compiled call that transformers would use for these inputs (a static cache on a GPU), or None."""
    is_compilable = getattr(model, "_valid_auto_compile_criteria", None)
    if is_compilable is None or not is_compilable(model_kwargs, config):
        return None
    return model.get_compiled_call(config.compile_config)


def _as_output(decoded: Decoded, model: Any) -> Any:
    from transformers.generation import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

    kind = GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
    output = kind(sequences=decoded.sequences, scores=decoded.scores, logits=decoded.logits)
    output.effect = decoded.effect
    output.constraint = decoded.population
    output.speculation = decoded.speculation
    return output
