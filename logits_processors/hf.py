"""Processors for the loops of transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor

from textguide.engine.caller import GenerateCall, running_generate_call
from textguide.forward.model_adapter import adapter
from textguide.guidance import AWRS, CFG, BranchGuidance, as_guidance, split
from textguide.guidance.places import check_place
from textguide.step.effect import Effect
from textguide.step.guided_step import compare, guided_step

from .awrs import AWRSLogitsProcessor
from .branches import BranchRun
from .caif import CAIFLogitsProcessor
from .runs import Runs

_IGNORE_PROCESSORS = {"JanusForConditionalGeneration"}
"""Classes of transformers whose own ``generate`` ignores logits processors."""


class GuidanceLogitsProcessor(LogitsProcessor):
    """Guidance as a logits processor, which runs the extra branches with its own caches.

    Use it for loops that cannot be replaced: beam search, prompt lookup, assisted decoding. If
    ``custom_generate=textguide.guided_decoding(...)`` works, it is faster, because there the branches share the forward
    pass with the decoded rows. If there are several guidances, branches act first, then classifiers and rewards, then a
    constraint, which draws from the resulting distribution.

    One object can be used by any number of ``generate`` calls. Rows may be reordered between steps (beam search) and
    tokens may be removed (speculation): the processor compares the ids it receives with those it has read, and adapts
    its caches. Scores are combined in float32 and returned in their original dtype.

    Args:
        model: the model that decodes.
        guidance: one guidance or several, in any form that :func:`textguide.generate` accepts.
        tokenizer: needed if the guidance contains text or uses a classifier, a reward or a constraint.
        models: further models, by the names that branches use.
        prompts: the prompts as texts or chats, one per row or one for all. They are needed if a branch edits them: a
            ``negative_system``, or an edit of a chat. Default: ``input_ids`` without padding.
        horizon: ``max_new_tokens`` of the run; needed if there is a schedule or a window, whose progress it defines.
        generator: random generator for draws under a constraint; None: torch's global generator.

    Attributes:
        constraint: draws the tokens and has their weights if the guidance contains a constraint; else None.

    Raises:
        ValueError: an argument has a value that cannot work, or the batch does not fit the branches' prompts.

    Example:
        >>> contrast = GuidanceLogitsProcessor(model, ContrastiveDecoding(), models={"amateur": small})
        >>> model.generate(**inputs, num_beams=4, logits_processor=[contrast])
    """

    rows_of = "negative_prompt"
    """The argument that error messages about the prompts of a branch mention."""

    def __init__(
        self,
        model: Any,
        guidance: Any,
        *,
        tokenizer: Any = None,
        models: Mapping[str, Any] | None = None,
        prompts: Any = None,
        horizon: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        combined = as_guidance(guidance)
        check_place(combined, "dropin")
        parts = split(combined)
        self.guidance = branching = parts.branching
        if branching is not None and horizon is None and branching.is_timed:
            raise ValueError("a schedule or a window needs horizon=, the max_new_tokens of the run")
        self.model = adapter(model).base
        if branching is not None:
            adapter(model).check_direction()  # also if no branch runs this model
        if type(self.model).__name__ in _IGNORE_PROCESSORS:
            raise ValueError(
                f"{type(self.model).__name__}.generate does not pass logits_processor= to its loop; use "
                "custom_generate=textguide.guided_decoding(...)"
            )
        self.tokenizer = tokenizer
        self.models = models
        self.prompts = prompts
        self.horizon = horizon
        self._runs: Runs[BranchRun] = Runs()
        self._last: BranchRun | None = None
        self.reweighting: CAIFLogitsProcessor | None = None
        self.constraint: AWRSLogitsProcessor | None = None
        if parts.reweighting:
            self.reweighting = CAIFLogitsProcessor(model, tokenizer, guidance=parts.reweighting, horizon=horizon)
        if isinstance(parts.sampling, AWRS):
            self.constraint = AWRSLogitsProcessor(parts.sampling, tokenizer, horizon=horizon, generator=generator)

    @property
    def effect(self) -> Effect:
        """What guidance did in the latest run; rows that finished early still count.

        KL divergences are those of the branches if there are any, and else those of classifiers and rewards.
        """
        effect = Effect() if self._last is None else self._last.meter.summary()
        if self.reweighting is not None:
            reweighting = self.reweighting.effect
            if self.guidance is None:
                effect = reweighting
            else:
                counts = {name: getattr(reweighting, name) for name in ("reweighed_steps", "classified_texts")}
                effect = replace(effect, **counts)
        if self.constraint is not None:
            effect = replace(effect, sampler=AWRS.name, sampled_steps=self.constraint.drawn)
        return effect

    def reset(self) -> None:
        """Forget every run. Custom loops call this before a new run, because ids are ambiguous if a prompt continues an
        earlier text."""
        self._runs.reset()
        for processor in (self.reweighting, self.constraint):
            if processor is not None:
                processor.reset()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided scores (R, V) for ids (R, T), as log-probabilities in the dtype of ``scores``."""
        if self.guidance is not None:
            scores = self._combine(self.guidance, input_ids, scores)
        for processor in (self.reweighting, self.constraint):
            if processor is not None:
                scores = processor(input_ids, scores)
        return scores

    def _combine(self, guidance: BranchGuidance, input_ids: Tensor, scores: Tensor) -> Tensor:
        call = running_generate_call()
        if call is not None:
            _refuse_other_guidance(call)
        input_ids = input_ids.to(adapter(self.model).device)
        run = self._runs.of(
            call,
            continues=lambda run: run.continues(input_ids, one_by_one=call is None),
            new=lambda: BranchRun(self, guidance, input_ids, scores.device, call),
        )
        self._last = run
        step = run.step(input_ids, self.horizon)
        if not run.rereads and not guidance.active(step):
            return scores
        branches = run.read(input_ids, scores.shape[-1]).to(scores.device)
        cond = scores
        extra = branches
        if run.rereads:  # the guidance changes the model inside, which `scores` do not contain
            cond = branches[0]
            extra = branches[1:]
        outcome = guided_step(cond, extra, guidance, step, measure=not run.rereads)
        assert outcome.log_probs is not None
        assert outcome.branches is not None
        run.keep(input_ids, outcome.branches, step)
        if run.rereads:
            outcome = compare(outcome, scores)
        run.meter.add(outcome)
        run.count_change()
        assert outcome.log_probs is not None
        return outcome.log_probs.to(scores.dtype)


class CFGLogitsProcessor(GuidanceLogitsProcessor):
    """Classifier-free guidance as a logits processor, with the argument names of transformers.

    Args:
        model: the model of the unconditional branch; usually the one that decodes.
        scale: γ; 1 changes nothing.
        negative_prompt_ids: (N, L) or a list of token ids, with N = 1 or one row per prompt; for an encoder-decoder,
            a source. None: the last token of each prompt (for an encoder-decoder, an empty source).
        negative_prompt_attention_mask: (N, L), 0 for padding. Needed if rows are padded.
        guidance: a :class:`textguide.CFG` with further settings, or another guidance with branches, instead of
            ``scale``.
        horizon: ``max_new_tokens`` of the run; needed if there is a schedule or a window, whose progress it defines.
        **others: ``tokenizer``, ``models`` and ``prompts`` of :class:`GuidanceLogitsProcessor`.

    Raises:
        ValueError: an argument has a value that cannot work, or the batch does not fit the negative prompts.

    Example:
        >>> model.generate(**inputs, num_beams=4, logits_processor=[CFGLogitsProcessor(model, scale=1.5)])
    """

    rows_of = "negative_prompt_ids"

    def __init__(
        self,
        model: Any,
        scale: float | None = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Tensor | None = None,
        *,
        guidance: Any = None,
        horizon: int | None = None,
        **others: Any,
    ) -> None:
        if guidance is not None and (scale is not None or negative_prompt_ids is not None):
            raise ValueError("guidance= already contains the scale and the negative prompt; pass one or the other")
        if guidance is None:
            negatives = _unpadded(negative_prompt_ids, negative_prompt_attention_mask)
            guidance = CFG(1.5 if scale is None else scale, negatives)
        super().__init__(model, guidance, horizon=horizon, **others)


def _refuse_other_guidance(call: GenerateCall) -> None:
    """Refuse a call in which transformers guides as well."""
    for processor in call.processors or ():
        if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise ValueError(
                f"guidance_scale={processor.guidance_scale} of transformers guides the same scores, so that guidance "
                "would apply twice; leave guidance_scale= out, or leave the logits processor out"
            )


def _unpadded(ids: Any, mask: Tensor | None) -> Any:
    """The negative prompts as token ids without padding: one prompt, or a tuple of prompts."""
    if ids is None:
        return None
    if isinstance(ids, str):
        raise ValueError(f"negative_prompt_ids={ids!r} is text and needs a tokenizer; pass its token ids")
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if ids and isinstance(ids[0], int):
        ids = [ids]
    rows = [tuple(row) for row in ids] if mask is None else _masked_rows(ids, mask)
    if not all(rows):
        raise ValueError("negative_prompt_ids has an empty row; every row needs at least one token")
    return rows[0] if len(rows) == 1 else tuple(rows)


def _masked_rows(ids: Any, mask: Tensor) -> list[tuple[int, ...]]:
    """Rows of token ids without the tokens that ``mask`` leaves out."""
    masks = mask.tolist() if isinstance(mask[0], Tensor) and mask.dim() == 2 else [mask.tolist()]
    if [len(row) for row in masks] != [len(row) for row in ids]:
        raise ValueError("negative_prompt_attention_mask must have the shape of negative_prompt_ids")
    rows = []
    for row, row_mask in zip(ids, masks, strict=True):
        rows.append(tuple(token for token, is_real in zip(row, row_mask, strict=True) if is_real))
    return rows
