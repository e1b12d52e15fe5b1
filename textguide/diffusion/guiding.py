"""One denoising step: the guided distribution of every position that is still masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.effect import EffectMeter
from ..guidance import ACFG, CFG, Guidance, Step, as_guidance
from ..guidance.acfg import remask
from ..guidance.algebra import extrapolate, log_softmax
from ..guidance.prompts import per_row
from .canvas import Canvas, lay_out
from .denoisers import Denoiser

Diffusing = CFG | ACFG


@dataclass
class Distributions:
    """What one step says about its masked positions, in row-major order (N of them).

    Attributes:
        guided: log-probabilities (N, V).
        cond: the same without guidance, (N, V).
        uncond: the other branch, (N, V); equal to ``cond`` in rows where it did not run.
        remasked: positions that the second pass read as masks, bool (B, L).
        scale: γ(s) of each row, (B,).
    """

    guided: Tensor
    cond: Tensor
    uncond: Tensor
    remasked: Tensor
    scale: Tensor


class Guide:
    """Guidance on one canvas, step by step.

    Args:
        model: the denoiser.
        guidance: ``CFG``, ``ACFG`` or None.
        canvas: the batch as it was before anything was filled.
        negatives: token ids of CFG's negative prompt for each row, or None: the prompt is masked.
        cache: keep what is in front of the current block (see :class:`Prefix`).
    """

    def __init__(
        self,
        model: Denoiser,
        guidance: Diffusing | None,
        canvas: Canvas,
        negatives: Sequence[Sequence[int]] | None = None,
        cache: Any = None,
    ) -> None:
        self.model = model
        self.guidance = None if guidance is None or guidance.is_neutral else guidance
        self.meter = EffectMeter(1, model.device)
        self.cache = cache
        self._confidence: Tensor | None = None
        self._known = torch.zeros(len(canvas), dtype=torch.bool, device=model.device)
        self._total = canvas.target.sum(-1)
        self._other = None
        if isinstance(self.guidance, CFG):
            self._other = _masked_prompt(model, canvas) if negatives is None else _negative(model, canvas, negatives)

    def progress(self, canvas: Canvas, rows: Tensor) -> Tensor:
        """Share of each row's targets that are filled, (B,): 0 at first and 1 for the last position."""
        total = self._total[rows]
        filled = total - canvas.masked(self.model.mask_id).sum(-1)
        return (filled / (total - 1).clamp(min=1)).clamp(max=1.0)

    def distributions(self, canvas: Canvas, rows: Tensor, where: Tensor) -> Distributions:
        """The distributions at ``where`` (bool (B, L)) of these rows of the batch.

        Args:
            canvas: the rows as they are now; a part of the batch that the guide was made for.
            rows: which rows of that batch they are, (B,).
            where: positions whose distribution is wanted; all of them masked.
        """
        scale = self._scales(canvas, rows)
        active = scale != 1.0
        remasked = torch.zeros_like(where)
        if not active.any():
            return self.plain_distributions(canvas, rows, where)
        if self._other is not None:
            cond, uncond = self._cfg(canvas, rows, where, active)
        else:
            cond, uncond, remasked, active = self._adaptive(canvas, rows, where, active)
        guided = self._combine(cond, uncond, scale, active, where)
        return Distributions(guided, cond, uncond, remasked, scale)

    def plain_distributions(self, canvas: Canvas, rows: Tensor, where: Tensor) -> Distributions:
        """The distributions at ``where`` without guidance, from one pass."""
        cond = log_softmax(self._read(canvas.ids, canvas.attention, rows)[where])
        self.meter.add_unguided(where)
        scale = torch.ones(len(rows), device=self.model.device)
        return Distributions(cond, cond, cond, torch.zeros_like(where), scale)

    def _scales(self, canvas: Canvas, rows: Tensor) -> Tensor:
        if self.guidance is None:
            return torch.ones(len(rows), device=self.model.device)
        progress = self.progress(canvas, rows)[:, None]
        return self.guidance.scale_at(Step(progress)).expand(-1, 1)[:, 0]  # type: ignore[union-attr]

    def _cfg(self, canvas: Canvas, rows: Tensor, where: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves in one forward pass; rows at γ(s) = 1 have no second half."""
        assert self._other is not None
        other = self._other.pick(rows[active])
        ids = other.ids.clone()
        ids[other.target] = canvas.ids[active][canvas.target[active]]
        there = torch.zeros_like(other.target)
        there[other.target] = where[active][canvas.target[active]]
        both, attention = _stack(self.model, (canvas.ids, canvas.attention), (ids, other.attention))
        logits = self._read(both, attention, rows, rows[active])
        cond = log_softmax(logits[: len(where), : where.shape[1]][where])
        uncond = cond.clone()
        uncond[active.repeat_interleave(where.sum(-1))] = log_softmax(logits[len(where) :, : there.shape[1]][there])
        return cond, uncond

    def _adaptive(
        self, canvas: Canvas, rows: Tensor, where: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Algorithm 1; with ``one_pass`` the positions come from the confidences of the step before."""
        guidance = self.guidance
        assert isinstance(guidance, ACFG)
        early = guidance.one_pass and bool(self._known[rows].all())
        candidates = self._candidates(canvas, guidance.remask_scope) & active[:, None]
        if early:
            assert self._confidence is not None
            lost = remask(self._confidence[rows][:, : where.shape[1]], candidates, guidance.remask_ratio)
            again = lost.any(-1)
            second = canvas.ids[again].masked_fill(lost[again], self.model.mask_id)
            ids = torch.cat([canvas.ids, second])
            logits = self._read(ids, torch.cat([canvas.attention, canvas.attention[again]]), rows, rows[again])
            logits, other = logits[: len(where)], logits[len(where) :]
            confidence = _top_probability(logits)
        else:
            logits = self._read(canvas.ids, canvas.attention, rows)
            confidence = _top_probability(logits)
            lost = remask(confidence, candidates, guidance.remask_ratio)
            again = lost.any(-1)
            other = None
            if again.any():
                second = canvas.ids[again].masked_fill(lost[again], self.model.mask_id)
                other = self._read(second, canvas.attention[again], rows[again])
        if guidance.one_pass:
            self._remember(confidence, rows)
        cond = log_softmax(logits[where])
        uncond = cond.clone()
        if other is not None:
            uncond[again.repeat_interleave(where.sum(-1))] = log_softmax(other[where[again]])
        return cond, uncond, lost, again

    def _candidates(self, canvas: Canvas, scope: str) -> Tensor:
        filled = canvas.target & (canvas.ids != self.model.mask_id)
        return {"all": canvas.given | filled, "generated": filled, "prompt": canvas.given}[scope]

    def _remember(self, confidence: Tensor, rows: Tensor) -> None:
        if self._confidence is None:
            self._confidence = confidence.new_zeros(len(self._known), confidence.shape[1])
        self._confidence[rows, : confidence.shape[1]] = confidence
        self._known[rows] = True

    def _combine(self, cond: Tensor, uncond: Tensor, scale: Tensor, active: Tensor, where: Tensor) -> Tensor:
        assert self.guidance is not None
        per_row = where.sum(-1)
        chosen = active.repeat_interleave(per_row)
        scales = scale.repeat_interleave(per_row)[chosen, None]
        guided = cond.clone()
        if chosen.any():
            guided[chosen] = log_softmax(extrapolate(cond[chosen], uncond[chosen], scales))
            self.meter.add(guided[chosen], cond[chosen])
        self.meter.add_unguided(~chosen)
        return guided

    def _read(self, ids: Tensor, attention: Tensor, *halves: Tensor) -> Tensor:
        if self.cache is not None:
            return self.cache.read(ids, attention, halves)
        return self.model(ids, attention)[0]


def checked_guidance(guidance: Any) -> Diffusing | None:
    """``guidance`` where masked diffusion can use it.

    Raises:
        ValueError: it is no guidance, or one that steers token by token from left to right.
    """
    guidance = as_guidance(guidance)
    if guidance is None or isinstance(guidance, ACFG):
        return guidance
    if isinstance(guidance, CFG):
        if guidance.skip_threshold is not None:
            raise ValueError("skip_threshold re-reads text written from left to right; leave it None for diffusion")
        if guidance.negative_system is not None:
            raise ValueError("negative_system is not offered for diffusion; give the whole chat as negative_prompt")
        return guidance
    if isinstance(guidance, Guidance):
        raise ValueError(f"guidance {guidance.name!r} does not steer masked diffusion; use CFG or ACFG")
    raise ValueError(f"guidance={guidance!r} is no guidance; use CFG(scale=…) or ACFG(scale=…)")


def negative_rows(model: Denoiser, guidance: Any, count: int) -> list[list[int]] | None:
    """Token ids of CFG's negative prompt, one a row; None where the prompt is to be masked."""
    prompts = getattr(guidance, "negative_prompt", None)
    if prompts is None:
        return None
    if not per_row(prompts):
        return [model.encode(prompts)] * count
    if len(prompts) != count:
        raise ValueError(f"negative_prompt has {len(prompts)} rows for {count} prompts; give one, or one a prompt")
    return [model.encode(prompt) for prompt in prompts]


def _masked_prompt(model: Denoiser, canvas: Canvas) -> Canvas:
    ids = canvas.ids.masked_fill(canvas.given, model.mask_id)
    return Canvas(ids, canvas.attention, canvas.given, canvas.target, canvas.block)


def _negative(model: Denoiser, canvas: Canvas, prompts: Sequence[Sequence[int]]) -> Canvas:
    """Every row's targets behind another prompt."""
    counts = canvas.target.sum(-1).tolist()
    return lay_out(model, [[*p, *[None] * n] for p, n in zip(prompts, counts, strict=True)], 1, "the negative prompt")


def _stack(model: Denoiser, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two batches under each other, padded on the right to one length."""
    length = max(first[0].shape[1], second[0].shape[1])
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(t, (0, length - t.shape[1]), value=model.pad_id) for t, _ in (first, second)])
    return ids, torch.cat([pad(m, (0, length - m.shape[1])) for _, m in (first, second)])


def _top_probability(logits: Tensor) -> Tensor:
    """max softmax of each position, (B, L, V) → (B, L), in float32."""
    logits = logits.float()
    return torch.exp(logits.amax(-1) - torch.logsumexp(logits, -1))
