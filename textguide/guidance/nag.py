"""Normalised attention guidance (Chen et al., arXiv 2505.21179), on logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..support.checks import finite_number, number_from
from . import algebra
from .base import ROW, About, Step
from .scaled import Contrast


@dataclass(frozen=True)
class NAG(Contrast):
    """Extrapolate, cap the length of the result, and blend it with the conditional distribution.

    ``Z̃ = γ Z⁺ − (γ − 1) Z⁻``. If ``‖Z̃‖₁ > τ ‖Z⁺‖₁``, it is shortened to that length. The result is
    ``α Z̃ + (1 − α) Z⁺`` (Eq. 7–10). The paper applies this to attention outputs of image models; here ``Z`` are the
    centred log-probabilities. γ = 1 changes nothing. Prevents a large γ from diverging. Costs the same as
    classifier-free guidance.

    Args:
        tau: τ, 1 or more; the paper uses 2.5.
        blend: α, in (0, 1]; the paper uses 0.25, with γ well above the values for classifier-free guidance.
    """

    tau: float = field(default=2.5, kw_only=True)
    blend: float = field(default=0.25, kw_only=True)

    name = "nag"
    about = About(
        paper="2505.21179",
        rule="α Z̃ + (1 − α) Z⁺, Z̃ = γ Z⁺ − (γ − 1) Z⁻ capped at τ ‖Z⁺‖₁",
        passes=ROW,
        neutral="γ = 1",
        helps="a large γ that would otherwise diverge",
        mechanism="on log-probabilities of tokens instead of attention outputs",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(tau=number_from("tau", self.tau, 1))
        self._put(blend=finite_number("blend", self.blend))
        if not 0.0 < self.blend <= 1.0:
            raise ValueError(f"blend={self.blend} must be a number in (0, 1]")

    @property
    def off_at_one(self) -> bool:
        """Always, because Z̃ is then Z⁺, which the cap does not shorten."""
        return True

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """Equations 7 to 10 on ``logp`` (2, B, V)."""
        cond, uncond = logp
        positive = algebra.centered(cond)
        negative = algebra.centered(uncond)
        extrapolated = scale * positive - (scale - 1.0) * negative
        ratio = extrapolated.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True).clamp(min=1e-12)
        capped = extrapolated * (self.tau / ratio.clamp(min=1e-12)).clamp(max=1.0)
        # The mean makes the scores comparable to the log-probabilities of tokens that a branch forbids.
        return cond.mean(-1, keepdim=True) + self.blend * capped + (1.0 - self.blend) * positive
