"""A-CFG's branch: the canvas itself, with the tokens that the model is least certain of masked again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance.acfg import Remasked, remask
from ..guidance.algebra import log_softmax
from .branches import BranchLogProbs
from .canvas import Canvas
from .denoisers import Denoiser


class RemaskingReader:
    """Algorithm 1 of arXiv 2505.20199. With ``one_pass`` the positions are chosen by the confidences of the previous
    step, so that both readings fit into one pass.

    Args:
        model: the denoiser.
        edit: what is masked again.
        count: rows of the batch.
    """

    def __init__(self, model: Denoiser, edit: Remasked, count: int) -> None:
        self.model = model
        self.edit = edit
        self._confidence: Tensor | None = None
        self._known = torch.zeros(count, dtype=torch.bool, device=model.device)

    def read(self, canvas: Canvas, rows: Tensor, positions: Tensor, active: Tensor) -> BranchLogProbs:
        """Two passes, or one with ``one_pass``; the second is left out when it would mask nothing."""
        candidates = self._candidates(canvas) & active[:, None]
        other = None
        if self.edit.one_pass and active.any() and bool(self._known[rows].all()):
            assert self._confidence is not None
            ranked = self._confidence[rows][:, : positions.shape[1]]
            remasked = remask(ranked, candidates, self.edit.ratio)
            again = remasked.any(-1)
            ids = torch.cat([canvas.ids, self._masked(canvas, remasked, again)])
            logits, _ = self.model(ids, torch.cat([canvas.attention, canvas.attention[again]]))
            logits, other = logits[: len(positions)], logits[len(positions) :]
            confidence = _top_probability(logits)
        else:
            logits, _ = self.model(canvas.ids, canvas.attention)
            confidence = _top_probability(logits)
            ranked = confidence
            remasked = remask(confidence, candidates, self.edit.ratio)
            again = remasked.any(-1)
            if again.any():
                other, _ = self.model(self._masked(canvas, remasked, again), canvas.attention[again])
        if self.edit.one_pass and active.any():
            self._remember(confidence, rows)
        cond = log_softmax(logits[positions])
        others = log_softmax(other[positions[again]]) if other is not None else cond[:0]
        return BranchLogProbs(cond, others[None], again, remasked, ranked)

    def _masked(self, canvas: Canvas, remasked: Tensor, again: Tensor) -> Tensor:
        return canvas.ids[again].masked_fill(remasked[again], self.model.mask_id)

    def _candidates(self, canvas: Canvas) -> Tensor:
        filled = canvas.target & (canvas.ids != self.model.mask_id)
        return {"all": canvas.given | filled, "generated": filled, "prompt": canvas.given}[self.edit.scope]

    def _remember(self, confidence: Tensor, rows: Tensor) -> None:
        if self._confidence is None:
            self._confidence = confidence.new_zeros(len(self._known), confidence.shape[1])
        self._confidence[rows, : confidence.shape[1]] = confidence
        self._known[rows] = True


def _top_probability(logits: Tensor) -> Tensor:
    """The largest softmax probability of each position, (B, L, V) → (B, L), in float32."""
    logits = logits.float()
    return torch.exp(logits.amax(-1) - torch.logsumexp(logits, -1))
