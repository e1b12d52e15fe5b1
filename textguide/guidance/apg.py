"""Adaptive projected guidance (Sadat et al., arXiv 2410.02416)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..support.checks import factor, finite_number
from . import algebra
from .base import ROW, About, Step
from .scaled import Contrast


@dataclass(frozen=True)
class APG(Contrast):
    """Classifier-free guidance without the part of the step that only sharpens the distribution.

    Let ``g = lc − lu``, centred. Its length is capped at ``r``, and it is split into ``g∥``, parallel to the centred
    ``lc``, and ``g⊥``, orthogonal to it. The result is ``lc + (γ − 1)(g⊥ + η g∥)`` (Algorithm 1). γ = 1 changes
    nothing, and η = 1 without a cap is classifier-free guidance. Useful when a large γ would oversharpen. Costs the
    same as classifier-free guidance.

    The mean of ``g``, which no probability depends on, is kept and capped along with it. So ``renormalize=False`` and
    the weights of :class:`textguide.FeynmanKac` also agree with classifier-free guidance.

    Lengths are root mean squares over the vocabulary, so ``r`` does not depend on the vocabulary's size; the paper's r
    = 15 is for images. The paper's running mean over denoising steps (β) is left out, because successive tokens are
    not successive views of the same thing.

    Args:
        parallel: η, the share of the parallel part that is kept; the paper uses 0.
        max_norm: r, in nats. None: no cap.
    """

    parallel: float = field(default=0.0, kw_only=True)
    max_norm: float | None = field(default=None, kw_only=True)

    name = "apg"
    about = About(
        paper="2410.02416",
        rule="lc + (γ − 1)(g⊥ + η g∥), g = lc − lu capped at r",
        passes=ROW,
        neutral="γ = 1",
        helps="a large γ that would oversharpen the distribution",
        mechanism="on log-probabilities of tokens, without the paper's momentum over denoising steps",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(parallel=factor("parallel", self.parallel))
        if self.max_norm is not None:
            self._put(max_norm=finite_number("max_norm", self.max_norm))
            if self.max_norm <= 0:
                raise ValueError(f"max_norm={self.max_norm} must be above 0 nats, or None")

    @property
    def off_at_one(self) -> bool:
        """Always, because the step is multiplied by γ − 1."""
        return True

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """Algorithm 1 on ``logp`` (2, B, V)."""
        cond, uncond = logp
        step_taken = cond - uncond
        gap = algebra.centered(step_taken)
        if self.max_norm is not None:
            shortening = (self.max_norm / algebra.rms(gap).clamp(min=1e-12)).clamp(max=1.0)
            gap = gap * shortening
            step_taken = step_taken * shortening
        along = algebra.centered(cond)
        share = (gap * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True).clamp(min=1e-12)
        if self.parallel != 1.0:
            step_taken = step_taken - (1.0 - self.parallel) * share * along
        return cond + (scale - 1.0) * step_taken
