"""The way into transformers: a callable for ``model.generate(custom_generate=…)``."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..constraints import Vocabulary
from ..guidance import BranchGuidance, FeynmanKac, as_guidance, split
from ..smc.starting import check_run, start, warn_of_deaths
from ..step.class_log_probs import class_log_probs
from ..step.effect import Effect, warn_if_none
from ..step.reweighting import reweighter
from . import branch_inputs
from .branch_passes import Source
from .lesson_keys import lesson_keys
from .loop import Observer, Settings, decode
from .options import CallArguments, CallSignature, check_inputs, check_mode, check_speculation
from .results import Decoded
from .speculation import as_speculation


class BranchReader(Protocol):
    """Brings what the extra branches read where the inputs of a run are more than token ids, such as images."""

    @property
    def models(self) -> Mapping[str, Any]:
        """Further models that its branches use, by name."""

    def reads(self, model: Any, model_kwargs: Mapping[str, Any]) -> bool:
        """Whether it is asked for the branches of a run of ``model``."""

    def sources(
        self,
        guidance: BranchGuidance,
        model: Any,
        ids: Tensor,
        model_kwargs: Mapping[str, Any],
        tokenizer: Any,
        models: Mapping[str, Any],
    ) -> list[branch_inputs.Rows | Source]:
        """What each extra branch of ``guidance`` reads beside ``ids`` (B, L) and what ``generate`` prepared."""


@dataclass
class GuidedDecoding:
    """Guided decoding as a ``custom_generate`` callable for transformers.

    ``model.generate(**inputs, custom_generate=guided_decoding(CFG(1.5)))`` keeps ``GenerationConfig``, processors,
    stopping criteria, ``num_return_sequences``, ``return_dict_in_generate``, ``output_scores`` and
    ``output_logits``. The output of a run with ``return_dict_in_generate`` has an attribute ``effect``, and an
    attribute ``constraint`` with the weights where one was given (else None), likewise ``speculation``.

    Args:
        guidance: a guidance, a sequence of them, or None for plain decoding. In a sequence each acts in its place:
            branches, then classifiers, then a constraint.
        tokenizer: needed where the guidance holds text or asks a classifier; ``stop_strings=`` of ``generate`` are read
            with it too, unless ``generate`` is given one.
        models: further models by the name that branches use.
        streamer: a transformers streamer; ``streamer=`` of ``generate`` does the same.
        generator: randomness for sampling, or one a row; None: torch's global generator, as ``generate`` uses.
        observer: called with a :class:`textguide.engine.loop.StepView` after every step.
        log_probs: record the log-probability of every token.
        warn: warn where guidance changed nothing.
        vocabulary: what each token adds to a text, for constraints; default: read from ``tokenizer``.
        branch_prompts: token ids of every branch and row, in place of those that the guidance names.
        speculation: guess tokens and read the guesses in the same passes: ``prompt-lookup``, ``recycling``, ``both``,
            or a :class:`textguide.Speculation`. What is written stays the same.
        fast: let runs without guidance use this machine's faster matrix products too, and read what prompts begin with
            alike once, as guided ones do; they then equal transformers' to rounding, not bit for bit.
        captioning: how branches are made where the model sees images; a :class:`textguide.captioning.Captioning`.
            Default of :func:`textguide.guided_decoding`: the branch without a condition sees a blank image.

    Raises:
        ValueError: the generation mode or an option does not work with guidance; the message names it.
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
    effect: Effect | None = field(default=None, init=False)
    last: Decoded | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.guidance = as_guidance(self.guidance)
        self.speculation = as_speculation(self.speculation)

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        tokenizer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Called by ``generate`` in place of its own loop.

        ``tokenizer`` is what ``generate`` needs for ``stop_strings=``; guidance is read with :attr:`tokenizer`.
        """
        steps = self.steps(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        streamer = self._streamer(CallArguments.of_caller(), input_ids)
        decoded = None
        for step in steps:
            if isinstance(step, Decoded):
                decoded = step
            elif streamer is not None:
                streamer.put(step[0].cpu())
        if streamer is not None:
            streamer.end()
        assert decoded is not None
        self.effect, self.last = decoded.effect, decoded
        if self.warn:
            warn_if_none(decoded.effect, self.guidance)
            if decoded.population is not None:
                warn_of_deaths([decoded.population])
        if not generation_config.return_dict_in_generate:
            return decoded.sequences
        return _as_output(decoded, model)

    __signature__: ClassVar[Any] = CallSignature()

    def steps(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Iterator[tuple[Tensor, Tensor] | Decoded]:
        """The same run step by step: see :func:`textguide.engine.loop.decode`."""
        given = CallArguments.of_caller()
        guided = self.guidance is not None and not self.guidance.is_neutral
        check_mode(model, generation_config, model_kwargs, given, guided)
        if guided and not self._reads(model, model_kwargs):
            check_inputs(model_kwargs)
        if self.speculation is not None:
            check_speculation(generation_config, model_kwargs)
        if self.streamer is not None and given.streamer not in (None, self.streamer):
            raise ValueError(
                "streamer= was given to generate and to guided_decoding, and they differ; give one of them"
            )
        parts = split(self.guidance)
        guidance = parts.branching
        reweighting = reweighter(parts.reweighting, self.tokenizer, model, generation_config.eos_token_id)
        judged = class_log_probs(guidance, self.tokenizer, model)

        horizon = (stopping_criteria.max_length or input_ids.shape[1] + 1) - input_ids.shape[1]

        def begin() -> None:
            for one in (reweighting, judged):
                if one is not None:
                    one.begin(_unpadded(input_ids, self._mask(model, model_kwargs)))

        begin()
        settings = Settings(
            guidance=guidance,
            reweighter=reweighting,
            class_log_probs=judged,
            models={**(self.models or {}), **(self.captioning.models if self.captioning is not None else {})},
            generator=self.generator,
            observer=self.observer,
            log_probs=self.log_probs,
            speculation=self.speculation,
            fast=self.fast,
            call=_compiled(model, generation_config, model_kwargs),
            restart_classifiers=begin,
        )
        if guidance is not None:
            settings.prompts = self._prompts(guidance, model, input_ids, model_kwargs, generation_config, horizon)
            settings.static = generation_config.cache_implementation == "static"
        if isinstance(parts.sampling, FeynmanKac):
            if reweighting is not None:
                raise ValueError(
                    "FeynmanKac cannot be combined with classifiers: the distribution of weighed candidates has a "
                    "normaliser of "
                    "its own, which is not part of the product; leave one of them out"
                )
            settings.guidance = None if guidance is None else parts.sampling.product(guidance)
        if parts.sampling is not None:
            check_run(parts.sampling, generation_config, self.streamer or given.streamer)
            if isinstance(self.generator, tuple):
                raise ValueError(f"generator= with one a row does not go with {parts.sampling}; give one")
            keys: Sequence[Hashable] = ()
            own = _unpadded(input_ids, self._mask(model, model_kwargs))
            if parts.learns:
                alone = branch_inputs.sees_images(model, model_kwargs) or model.config.is_encoder_decoder
                if not alone and all(isinstance(rows, list) for rows in settings.prompts):
                    reads: list[branch_inputs.Rows] | None = [own, *settings.prompts]  # type: ignore[list-item]
                else:
                    reads = None
                keys = lesson_keys(
                    model, settings.models, parts, reads, len(input_ids), logits_processor, stopping_criteria, horizon
                )
            settings.population = start(
                parts.sampling, model, input_ids, generation_config, self.tokenizer, self.vocabulary, self.generator,
                keys, own,
            )  # fmt: skip
        return decode(model, input_ids, logits_processor, stopping_criteria, generation_config, settings, model_kwargs)

    def _prompts(
        self,
        guidance: BranchGuidance,
        model: Any,
        ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: Any,
        horizon: int,
    ) -> list[branch_inputs.Rows | Source]:
        size = ids.shape[0]
        if self.captioning is not None and self._reads(model, model_kwargs):
            return self.captioning.sources(guidance, model, ids, model_kwargs, self.tokenizer, self.models or {})
        if branch_inputs.sees_images(model, model_kwargs):
            raise ValueError(
                "the model reads images, and captioning=None does not say what the other branch sees; use "
                "textguide.guided_decoding, or pass captioning=textguide.captioning.Captioning()"
            )
        copies = generation_config.num_return_sequences or 1
        if self.branch_prompts is not None:
            return [branch_inputs.expand(rows, size, copies=copies) for rows in self.branch_prompts]
        cond: branch_inputs.Rows = [[] for _ in range(size)]
        empty: list[int] | None = None
        if model.config.is_encoder_decoder:
            if any(branch.same_prompt or branch.edit is not None for branch in guidance.branches):
                raise ValueError(
                    f"guidance {guidance.name!r} reads the prompt again, and generate hands over an encoder-decoder's "
                    "encoded prompt alone; use textguide.generate"
                )
            empty = empty_source(model.config)
        else:
            cond = _unpadded(ids, self._mask(model, model_kwargs))
        rows = branch_inputs.branch_rows(
            guidance, cond=cond, tokenizer=self.tokenizer, empty_source=empty, copies=copies
        )
        branch_inputs.check_branches(model, guidance, rows, horizon, self.models)
        if self.warn and not model.config.is_encoder_decoder:
            branch_inputs.warn_of_same(guidance, cond, rows, "input_ids")
        return [*rows]

    def _reads(self, model: Any, model_kwargs: Mapping[str, Any]) -> bool:
        """Whether the branches are brought by the reader of images."""
        return self.captioning is not None and self.captioning.reads(model, model_kwargs)

    def _streamer(self, given: CallArguments, ids: Tensor) -> Any:
        """Where tokens go; it has got the prompt, as transformers' streamers expect."""
        if given.streamer is not None:
            return given.streamer
        if self.streamer is not None:
            self.streamer.put(ids.cpu())
        return self.streamer

    def _mask(self, model: Any, model_kwargs: dict[str, Any]) -> Tensor | None:
        """The mask of ``input_ids``."""
        name = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"
        return model_kwargs.get(name)


def _unpadded(ids: Tensor, mask: Tensor | None) -> branch_inputs.Rows:
    """The token ids of every row without its padding."""
    if mask is None:
        rows: branch_inputs.Rows = ids.tolist()
        return rows
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def empty_source(config: Any) -> list[int]:
    """What an encoder-decoder reads for no source: its end token alone, behind its begin token if it uses one."""
    end: Any = getattr(config, "eos_token_id", None)
    end = end[0] if isinstance(end, (list, tuple)) else end
    if end is None:
        raise ValueError("the model has no end token to stand for an empty source; give negative_prompt")
    begin: Any = getattr(config, "bos_token_id", None)
    uses_begin = begin is not None and config.model_type in {"bart", "mbart", "blenderbot", "blenderbot-small", "led"}
    return [begin, end] if uses_begin else [end]


def _compiled(model: Any, config: Any, model_kwargs: dict[str, Any]) -> Any:
    """The compiled call that transformers itself would use for these inputs (a static cache on a GPU), or None."""
    valid = getattr(model, "_valid_auto_compile_criteria", None)
    return model.get_compiled_call(config.compile_config) if valid is not None and valid(model_kwargs, config) else None


def _as_output(decoded: Decoded, model: Any) -> Any:
    from transformers.generation import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

    kind = GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
    output = kind(sequences=decoded.sequences, scores=decoded.scores, logits=decoded.logits)
    output.effect = decoded.effect
    output.constraint = decoded.population
    output.speculation = decoded.speculation
    return output
