"""Time-step guidance's branch: the canvas at a higher noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance.algebra import log_softmax
from ..guidance.experimental.time_step import Noisier
from .branches import BranchLogProbs
from .canvas import Canvas
from .denoisers import Denoiser


class NoisingReader:
    """Reads a canvas as it is and at a noise level that is higher by :attr:`Noisier.shift`, in one pass.

    Args:
        model: the denoiser. If it reads the noise level, it gets a higher one; otherwise filled positions are masked
            again.
        edit: how much noisier.

    Attributes:
        generator: draws the positions; None: PyTorch's global generator.
    """

    def __init__(self, model: Denoiser, edit: Noisier) -> None:
        self.model = model
        self.edit = edit
        self.generator: torch.Generator | None = None

    def read(self, canvas: Canvas, rows: Tensor, positions: Tensor, active: Tensor) -> BranchLogProbs:
        """One pass over the canvas and its noisier rows, without those in which nothing changes."""
        remasked = torch.zeros_like(positions)
        timed = self.model.time is not None
        level = self.model.noise_level(canvas.ids, canvas.attention) if timed else share_of_masks(canvas, self.model)
        higher = (level + self.edit.shift).clamp(max=1.0)
        if timed:
            again = active & (higher > level)
        else:
            remasked = self._draw_positions(canvas, higher) & active[:, None]
            again = remasked.any(-1)
        noisier = canvas.ids[again].masked_fill(remasked[again], self.model.mask_id)
        times = torch.cat([level, higher[again]]) if timed else None
        attention = torch.cat([canvas.attention, canvas.attention[again]])
        logits, _ = self.model(torch.cat([canvas.ids, noisier]), attention, times=times)
        logits, other = logits[: len(positions)], logits[len(positions) :]
        others = log_softmax(other[positions[again]])[None]
        return BranchLogProbs(log_softmax(logits[positions]), others, again, remasked)

    def _draw_positions(self, canvas: Canvas, higher: Tensor) -> Tensor:
        """Random filled positions, as many as raise the share of masks to ``higher``, bool (B, L)."""
        filled = canvas.target & (canvas.ids != self.model.mask_id)
        total = canvas.target.sum(-1)
        masks = canvas.masked(self.model.mask_id).sum(-1)
        count = torch.ceil(higher.double() * total - 1e-6).long() - masks
        device = canvas.ids.device
        chance = torch.rand(canvas.ids.shape, generator=self.generator, device=device, dtype=torch.float64)
        rank = chance.masked_fill(~filled, 2.0).argsort(-1).argsort(-1)
        return filled & (rank < count[:, None])


def share_of_masks(canvas: Canvas, model: Denoiser) -> Tensor:
    """The share of each row's targets that are masked, float32 (B,)."""
    return canvas.masked(model.mask_id).sum(-1) / canvas.target.sum(-1).clamp(min=1)
