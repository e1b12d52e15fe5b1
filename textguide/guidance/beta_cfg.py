"""β-CFG (Malarz et al., arXiv 2502.10574)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..support.checks import number_from, share
from . import algebra
from .base import ROW, About, Step
from .scaled import Contrast


@dataclass(frozen=True)
class BetaCFG(Contrast):
    """Classifier-free guidance with a step of fixed length that follows a Beta density over the text.

    ``lu + γ Beta(s; a, b) g / ‖g‖^p`` with ``g = lc − lu`` and ``s`` the progress. With the default a = b = 2, the
    density is 0 at both ends, so the distribution there is the unconditional one, as in the paper. a = b = 1 and p = 0
    is classifier-free guidance. The length is the root mean square over the vocabulary (the mean of ``g`` is not
    subtracted), so γ does not depend on the vocabulary's size. Costs the same as classifier-free guidance.

    Args:
        scale: γ. Unlike in other methods, 1 is only neutral if a = b = 1 and p = 0.
        a, b: parameters of the Beta density, 1 or more.
        power: p, in [0, 1]; with 1, every step has length γ Beta(s).
    """

    a: float = field(default=2.0, kw_only=True)
    b: float = field(default=2.0, kw_only=True)
    power: float = field(default=1.0, kw_only=True)

    name = "beta-cfg"
    about = About(
        paper="2502.10574",
        rule="lu + γ Beta(s; a, b) g / ‖g‖^p",
        passes=ROW,
        neutral="a = b = 1, p = 0, γ = 1",
        helps="guidance that is strongest in the middle of a text",
        mechanism="on log-probabilities of tokens instead of noise predictions; lengths are root mean squares",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(a=number_from("a", self.a, 1, "below that the density is unbounded"))
        self._put(b=number_from("b", self.b, 1, "below that the density is unbounded"))
        self._put(power=share("power", self.power))

    @property
    def off_at_one(self) -> bool:
        """Only with the settings of classifier-free guidance."""
        return self.a == 1.0 and self.b == 1.0 and self.power == 0.0

    @property
    def is_timed(self) -> bool:
        """Whether the density or the scale changes with progress."""
        return (self.a, self.b) != (1.0, 1.0) or super().is_timed

    def density(self, progress: Any) -> Any:
        """Beta(s; a, b)."""
        log_norm = math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)
        return math.exp(log_norm) * progress ** (self.a - 1) * (1 - progress) ** (self.b - 1)

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """The formula above on ``logp`` (2, B, V)."""
        if self.off_at_one:
            return super().mix(logp, scale, step)
        cond, uncond = logp
        gap = cond - uncond
        length = algebra.rms(gap).clamp(min=1e-12) ** self.power
        return uncond + scale * self.density(step.progress) * gap / length
