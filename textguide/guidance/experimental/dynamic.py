"""Dynamic classifier-free guidance by online feedback (arXiv 2509.16131)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...support.checks import factor, finite_number
from .. import algebra
from ..base import ROW, About, Step
from ..scaled import Contrast


@dataclass(frozen=True)
class DynamicCFG(Contrast):
    """Classifier-free guidance with the scale chosen anew at every step, from a grid, by a score of the outcome.

    Every γ of the grid is tried on the two passes that were made anyway, and the largest one is taken whose
    distribution stays within ``budget`` nats of the unguided one, KL(guided‖unguided): the score asks for as much of
    the prompt as the model's own distribution bears. Costs what classifier-free guidance costs; the grid is arithmetic.

    Experimental: the paper scores images with evaluators of alignment and quality, on the grid 1, 3, 7.5, 11, 15; a
    text that is half written has none, and the budget stands in for them.

    Args:
        scale: an upper bound on the grid; 1 changes nothing.
        scales: the grid, each 1 or more; 1 is always in it.
        budget: nats.
    """

    scale: float = 3.0
    scales: Any = field(default=(1.0, 1.25, 1.5, 2.0, 3.0), kw_only=True)
    budget: float = field(default=0.5, kw_only=True)

    name = "dynamic"
    about = About(
        "2509.16131", "lu + γ (lc − lu), the largest γ of a grid with KL(guided‖lc) ≤ budget", ROW, "γ = 1",
        "a scale that nobody wants to choose", experimental=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        grid = self.scales if isinstance(self.scales, (list, tuple)) else (self.scales,)
        values = sorted({1.0, *(factor("scales", value) for value in grid)})
        if values[0] < 1.0:
            raise ValueError(f"scales={self.scales!r} must hold numbers of 1 or more")
        self._put(scales=tuple(values))
        self._put(budget=finite_number("budget", self.budget))
        if self.budget < 0:
            raise ValueError(f"budget={self.budget} must be 0 or more nats")

    @property
    def off_at_one(self) -> bool:
        """Always: no value of the grid lies below 1."""
        return True

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """The un-normalised product at the largest scale within the budget, on ``logp`` (2, B, V)."""
        cond, uncond = logp
        chosen = cond
        # γ(s) carries the rounding of its schedule; the grid is cut at the same value in float32 and in float64.
        most = torch.as_tensor(scale) + 1e-6
        for value in self.scales[1:]:
            product = algebra.extrapolate(cond, uncond, value)
            guided = algebra.log_softmax(product)
            fits = (algebra.kl_divergence(guided, cond) <= self.budget)[:, None] & (value <= most)
            chosen = torch.where(fits, product, chosen)
        return chosen
