"""Time-step guidance's branch: the canvas at a higher noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance.algebra import log_softmax
from ..guidance.experimental.time_step import Noisier
from .branches import Passes
from .canvas import Canvas
from .denoisers import Denoiser


class Noising:
    """Reads a canvas as it is, and at a noise level that is higher by :attr:`Noisier.shift`, in one pass.

    Args:
        model: the denoiser. One that reads a time is told another one; for others filled positions are masked again.
        edit: how much noisier.

    Attributes:
        generator: draws the positions; None: PyTorch's own.
    """

    def __init__(self, model: Denoiser, edit: Noisier) -> None:
        self.model, self.edit = model, edit
        self.generator: torch.Generator | None = None

    def read(self, canvas: Canvas, rows: Tensor, where: Tensor, active: Tensor) -> Passes:
        """One pass over the canvas and, below it, its noisier rows; rows in which nothing changes have none."""
        lost = torch.zeros_like(where)
        timed = self.model.time is not None
        level = self.model.noise_level(canvas.ids, canvas.attention) if timed else share_of_masks(canvas, self.model)
        higher = (level + self.edit.shift).clamp(max=1.0)
        if not timed:
            lost = self._drawn(canvas, higher) & active[:, None]
            again = lost.any(-1)
        else:
            again = active & (higher > level)
        noisier = canvas.ids[again].masked_fill(lost[again], self.model.mask_id)
        times = torch.cat([level, higher[again]]) if timed else None
        ids, attention = torch.cat([canvas.ids, noisier]), torch.cat([canvas.attention, canvas.attention[again]])
        logits, _ = self.model(ids, attention, times=times)
        logits, other = logits[: len(where)], logits[len(where) :]
        return Passes(log_softmax(logits[where]), log_softmax(other[where[again]])[None], again, lost)

    def _drawn(self, canvas: Canvas, higher: Tensor) -> Tensor:
        """Filled positions, at random, as many as bring the share of masks to ``higher``: bool (B, L)."""
        filled = canvas.target & (canvas.ids != self.model.mask_id)
        total, masks = canvas.target.sum(-1), canvas.masked(self.model.mask_id).sum(-1)
        count = torch.ceil(higher.double() * total - 1e-6).long() - masks
        device = canvas.ids.device
        chance = torch.rand(canvas.ids.shape, generator=self.generator, device=device, dtype=torch.float64)
        rank = chance.masked_fill(~filled, 2.0).argsort(-1).argsort(-1)
        return filled & (rank < count[:, None])


def share_of_masks(canvas: Canvas, model: Denoiser) -> Tensor:
    """The share of the targets of each row that are masks, float32 (B,)."""
    return canvas.masked(model.mask_id).sum(-1) / canvas.target.sum(-1).clamp(min=1)
