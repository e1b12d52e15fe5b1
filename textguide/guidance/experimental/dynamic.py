"""Dynamic classifier-free guidance by online feedback (arXiv 2509.16131)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...support.checks import factor, number_from
from .. import algebra
from ..base import ROW, About, Step
from ..scaled import Contrast


@dataclass(frozen=True)
class DynamicCFG(Contrast):
    """Classifier-free guidance that chooses the scale at every step, from a grid, by a score of the result.

    Every γ of the grid is applied to the two passes that are run anyway. The largest one whose distribution stays
    within ``budget`` nats of the unguided one, KL(guided‖unguided), is used. So guidance is as strong as the model's
    own distribution allows. Costs the same as classifier-free guidance; the grid is only arithmetic.

    Experimental: the paper scores images with evaluators of alignment and quality, on the grid 1, 3, 7.5, 11, 15.
    There is no such evaluator for a half-written text, so the budget replaces them.

    Args:
        scale: upper bound on the grid; 1 changes nothing.
        scales: the grid, each 1 or more; 1 is always included.
        budget: in nats.
    """

    scale: float = 3.0
    scales: Any = field(default=(1.0, 1.25, 1.5, 2.0, 3.0), kw_only=True)
    budget: float = field(default=0.5, kw_only=True)

    name = "dynamic"
    about = About(
        paper="2509.16131",
        rule="lu + γ (lc − lu), the largest γ of a grid with KL(guided‖lc) ≤ budget",
        passes=ROW,
        neutral="γ = 1",
        helps="guidance without choosing a scale",
        experimental=True,
        mechanism="a budget in KL chooses the scale instead of the paper's evaluators",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        grid = self.scales if isinstance(self.scales, (list, tuple)) else (self.scales,)
        values = sorted({1.0, *(factor("scales", value) for value in grid)})
        if values[0] < 1.0:
            raise ValueError(f"scales={self.scales!r} must contain numbers of 1 or more")
        self._put(scales=tuple(values))
        self._put(budget=number_from("budget", self.budget, 0, "in nats"))

    @property
    def off_at_one(self) -> bool:
        """Always, because no value of the grid is below 1."""
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
