"""Power sampling (Karan and Du, arXiv 2510.14901): whole texts from a power of the model's own distribution."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..support.checks import factor
from .awrs import AWRS
from .base import About, Guidance
from .feynman_kac import FeynmanKac
from .formula import Formula
from .needs import Need


@dataclass(frozen=True)
class PowerSampling(Guidance):
    """Sample whole texts from ``π(x) ∝ p(x)^α``. A low temperature does not do that.

    A temperature of 1/α sharpens every token on its own, ``Π p(x_t)^α / Z_t`` with ``Z_t = Σ_w p(w)^α``: it prefers
    tokens that are likely now to tokens that lead to likely texts. The power of the whole text's probability is that
    distribution times ``Π Z_t``. The first paper (2510.14901) reaches it by Metropolis–Hastings over completions, and
    a second one (2601.21590) estimates by rollouts what each token leads to. Here tokens are proposed at temperature
    1/α, a text gets the weight ``Π Z_t``, and ``particles`` texts per prompt are resampled by their weights (arXiv
    2602.10273, which shows that this proposal makes the weights of a step least noisy). Draws in proportion to
    ``log_weights`` follow ``π`` as the number of particles grows, and the mean weight is an unbiased estimate of
    ``Σ_x p(x)^α``.

    It is ``[Formula("α*cond"), FeynmanKac(…)]`` under one name (:attr:`parts`) and behaves in the same way: texts that
    the token limit cuts off count as texts, processors and warpers (temperature, top-p) change the target, and weights
    spread with length. Costs ``particles`` rows per prompt in the same pass.

    Args:
        alpha: the power, above 0; 1 samples the model itself. The papers use 4 for reasoning.
        particles: number of texts per prompt, N. The output has prompts × particles rows; ``result.weighted_sample()``
            draws one of them.
        ess_threshold: resample a population when its effective sample size falls below this share of N.
        resampling: ``stratified`` or ``systematic``.

    Raises:
        ValueError: a field has an invalid value; the message names it. Also when it is combined with a guidance with
            branches: for a power of its product, write a formula such as
            ``[Formula("6*cond - 2*last"), FeynmanKac()]``.
    """

    alpha: float = 4.0
    particles: int = 8
    ess_threshold: float = field(default=0.5, kw_only=True)
    resampling: str = field(default="stratified", kw_only=True)

    name = "power-sampling"
    about = About(
        paper="2510.14901",
        rule="α lc, each text weighted by Π Z_t, Z = Σ exp of it",
        passes="`particles` rows per prompt",
        neutral="α = 1",
        helps="answers that must be consistent as a whole: reasoning, code",
        mechanism="weights and resampling (arXiv 2602.10273) replace the paper's Metropolis–Hastings over completions",
    )

    def __post_init__(self) -> None:
        self._put(alpha=factor("alpha", self.alpha))
        if self.alpha < 1e-3:
            raise ValueError(f"alpha={self.alpha} must be at least 0.001; 1 samples the model itself")
        checked = AWRS(None, self.particles, self.ess_threshold, resampling=self.resampling)
        self._put(ess_threshold=checked.ess_threshold)

    @property
    def parts(self) -> tuple[Formula, FeynmanKac]:
        """The guidances that act."""
        expression = "cond" if self.alpha == 1.0 else f"{self.alpha!r}*cond"
        weighing = FeynmanKac(self.particles, self.ess_threshold, resampling=self.resampling)
        return Formula(expression), weighing

    @property
    def needs(self) -> frozenset[Need]:
        """Weights of whole texts."""
        return self.parts[1].needs
