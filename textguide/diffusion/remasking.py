"""A-CFG's branch: the canvas itself, with what the model is least sure of masked again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance.acfg import Remasked, remask
from ..guidance.algebra import log_softmax
from .branches import Passes
from .canvas import Canvas
from .denoisers import Denoiser


class Remasking:
    """Algorithm 1 of arXiv 2505.20199; with ``one_pass`` the positions come from the confidences of the step before.

    Args:
        model: the denoiser.
        edit: what is masked again.
        count: rows of the batch.
    """

    def __init__(self, model: Denoiser, edit: Remasked, count: int) -> None:
        self.model, self.edit = model, edit
        self._confidence: Tensor | None = None
        self._known = torch.zeros(count, dtype=torch.bool, device=model.device)

    def read(self, canvas: Canvas, rows: Tensor, where: Tensor, active: Tensor) -> Passes:
        """Two passes, or one; the second is left out where nothing would be masked."""
        candidates = self._candidates(canvas) & active[:, None]
        other = None
        if self.edit.one_pass and active.any() and bool(self._known[rows].all()):
            assert self._confidence is not None
            ranked = self._confidence[rows][:, : where.shape[1]]
            lost = remask(ranked, candidates, self.edit.ratio)
            again = lost.any(-1)
            ids = torch.cat([canvas.ids, self._masked(canvas, lost, again)])
            logits, _ = self.model(ids, torch.cat([canvas.attention, canvas.attention[again]]))
            logits, other = logits[: len(where)], logits[len(where) :]
            confidence = _top_probability(logits)
        else:
            logits, _ = self.model(canvas.ids, canvas.attention)
            confidence = ranked = _top_probability(logits)
            lost = remask(confidence, candidates, self.edit.ratio)
            again = lost.any(-1)
            if again.any():
                other, _ = self.model(self._masked(canvas, lost, again), canvas.attention[again])
        if self.edit.one_pass and active.any():
            self._remember(confidence, rows)
        cond = log_softmax(logits[where])
        others = log_softmax(other[where[again]]) if other is not None else cond[:0]
        return Passes(cond, others[None], again, lost, ranked)

    def _masked(self, canvas: Canvas, lost: Tensor, again: Tensor) -> Tensor:
        return canvas.ids[again].masked_fill(lost[again], self.model.mask_id)

    def _candidates(self, canvas: Canvas) -> Tensor:
        filled = canvas.target & (canvas.ids != self.model.mask_id)
        return {"all": canvas.given | filled, "generated": filled, "prompt": canvas.given}[self.edit.scope]

    def _remember(self, confidence: Tensor, rows: Tensor) -> None:
        if self._confidence is None:
            self._confidence = confidence.new_zeros(len(self._known), confidence.shape[1])
        self._confidence[rows, : confidence.shape[1]] = confidence
        self._known[rows] = True


def _top_probability(logits: Tensor) -> Tensor:
    """max softmax of each position, (B, L, V) → (B, L), in float32."""
    logits = logits.float()
    return torch.exp(logits.amax(-1) - torch.logsumexp(logits, -1))
