"""Annealed guidance (Yehezkel et al., arXiv 2506.24108)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...support.checks import factor, finite_number
from .. import algebra
from ..base import ROW, About, Step
from ..scaled import Contrast


@dataclass(frozen=True)
class AnnealedCFG(Contrast):
    """Classifier-free guidance whose scale depends on the distance between the branches.

    ``lu + γ(s, d)(lc − lu)`` with ``γ(s, d) = 1 + (γ(s) − 1) m(d)``: the schedule changes γ(s) with progress, and
    ``m`` is a piecewise linear function of ``d``, the root mean square of the centred ``lc − lu`` in nats. The paper
    trains a small network on progress and ``‖lc − lu‖``; this is a function that can be written down. Costs the same
    as classifier-free guidance.

    Experimental: the weights of the paper's network do not transfer to other models, and the default function is a
    guess: full guidance if the branches nearly agree, none from 4 nats on.

    Args:
        line: corners ``(d, m)`` of the piecewise linear function, with ``d`` increasing; constant beyond the first and
            the last corner. A single corner at m = 1 is classifier-free guidance.
    """

    line: Any = field(default=((0.0, 1.0), (4.0, 0.0)), kw_only=True)

    name = "annealed"
    about = About(
        paper="2506.24108",
        rule="lu + (1 + (γ(s) − 1) m(‖g‖))(lc − lu)",
        passes=ROW,
        neutral="γ = 1",
        helps="branches that are far apart at some steps",
        experimental=True,
        mechanism="a piecewise linear function of the distance replaces the paper's trained network",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            line = tuple((finite_number("line", d), factor("line", m)) for d, m in self.line)
        except (TypeError, ValueError) as error:
            raise ValueError(f"line={self.line!r} must contain pairs of numbers (d, m)") from error
        if not line or any(a[0] >= b[0] for a, b in pairwise(line)):
            raise ValueError(f"line={self.line!r} must contain at least one pair, with increasing d")
        self._put(line=line)

    def multiplier(self, distance: Tensor) -> Tensor:
        """m(d) for distances (B, 1)."""
        value = torch.full_like(distance, self.line[0][1])
        for (d0, m0), (d1, m1) in pairwise(self.line):
            share = ((distance - d0) / (d1 - d0)).clamp(0.0, 1.0)
            value = torch.where(distance >= d0, m0 + share * (m1 - m0), value)
        return value

    @property
    def off_at_one(self) -> bool:
        """Always, because the factor is 1 + (γ − 1) m."""
        return True

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """The formula above on ``logp`` (2, B, V)."""
        cond, uncond = logp
        multiplier = self.multiplier(algebra.rms(algebra.centered(cond - uncond)))
        return algebra.extrapolate(cond, uncond, 1.0 + (scale - 1.0) * multiplier)
