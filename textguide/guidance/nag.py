"""Normalised attention guidance (Chen et al., arXiv 2505.21179), on logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..support.checks import finite_number
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
        "2505.21179", "α Z̃ + (1 − α) Z⁺, Z̃ = γ Z⁺ − (γ − 1) Z⁻ capped at τ ‖Z⁺‖₁", ROW, "γ = 1",
        "a large γ that would otherwise diverge",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(tau=finite_number("tau", self.tau))
        self._put(blend=finite_number("blend", self.blend))
        if self.tau < 1:
            raise ValueError(f"tau={self.tau} must be 1 or more")
        if not 0.0 < self.blend <= 1.0:
            raise ValueError(f"blend={self.blend} must lie in (0, 1]")

    @property
    def off_at_one(self) -> bool:
        """Always: Z̃ is then Z⁺, which no cap shortens."""
        return True

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """Equations 7 to 10 on ``logp`` (2, B, V)."""
        cond, uncond = logp
        here = algebra.centered(cond)
        there = algebra.centered(uncond)
        moved = scale * here - (scale - 1.0) * there
        longer = moved.abs().sum(-1, keepdim=True) / here.abs().sum(-1, keepdim=True).clamp(min=1e-12)
        moved = moved * (self.tau / longer.clamp(min=1e-12)).clamp(max=1.0)
        # With the mean added again the scores are comparable to those of tokens that a branch forbids.
        return cond.mean(-1, keepdim=True) + self.blend * moved + (1.0 - self.blend) * here
