"""Feynman–Kac correction of guided sampling (Skreta et al., arXiv 2503.02819)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .awrs import AWRS
from .base import About, BranchGuidance, Sampling
from .needs import Need


@dataclass(frozen=True)
class FeynmanKac(Sampling):
    """Sample whole texts from the guided *product*. Guided sampling token by token does not do that.

    Guidance defines a product over whole texts, ``π(x) ∝ p(x|c)^γ p(x|u)^(1−γ)``. Sampling it one token at a time
    normalises every step by ``Z_t = Σ_w p(w|c)^γ p(w|u)^(1−γ)``, which draws from ``π(x) / Π Z_t``: texts whose
    prefixes lead to a large ``Z_t`` are too rare. Here the tokens are drawn in the same way, and each text gets the
    weight ``Π Z_t``. This is the text analogue of the paper's correctors: propose from the normalised guided
    distribution, weight by ``logsumexp(γ lc + (1 − γ) lu)``, resample. ``particles`` texts per prompt are generated
    side by side and resampled by their weights. Draws in proportion to ``log_weights`` follow ``π`` as the number of
    particles grows; the mean weight is an unbiased estimate of the normaliser of ``π`` over texts of the given length.

    Use it together with a guidance with branches that has ``renormalize``:
    ``guidance=[CFG(1.5), FeynmanKac(particles=8)]``. Texts that the token limit cuts off count as texts. With
    processors or warpers, tokens are drawn from the warped distribution ``q_t`` and the product is ``Π q_t(x_t) Z_t``.
    Useful when the product itself is needed, for example for unbiased estimates or for samples of a target without a
    schedule. Weights spread with length, so long texts need many particles. Costs ``particles`` rows per prompt in the
    same pass.

    Args:
        particles: number of texts per prompt, N. The output has prompts × particles rows.
        ess_threshold: resample a population when its effective sample size falls below this share of N.
        constraint: the same as for :class:`AWRS`: texts are drawn from the product given the constraint, with the
            weights of both.
        resampling: ``stratified`` or ``systematic``.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    particles: int = 8
    ess_threshold: float = 0.5
    constraint: Any = None
    resampling: str = "stratified"

    name: ClassVar[str] = "feynman-kac"
    about: ClassVar[About] = About(
        paper="2503.02819",
        rule="lu + γ(lc − lu), each text weighted by Π Z_t, Z = Σ exp of it",
        passes="`particles` rows per prompt",
        neutral="γ = 1",
        helps="samples from the guided product over whole texts",
        example="cfg:scale=1.5 + feynman-kac:particles=8",
        mechanism="weights texts token by token; the paper corrects diffusion over continuous states",
    )

    def __post_init__(self) -> None:
        checked = AWRS(self.constraint, self.particles, self.ess_threshold, resampling=self.resampling)
        self._put(constraint=checked.constraint, ess_threshold=checked.ess_threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().to_dict(), "constraint": self.constrained.to_dict()["constraint"]}

    @property
    def needs(self) -> frozenset[Need]:
        """Weights of whole texts, and constrained draws if there is a constraint."""
        return frozenset({Need.WEIGHTS} if self.constraint is None else {Need.WEIGHTS, Need.CONSTRAINT})

    @property
    def weighs(self) -> bool:
        """Always."""
        return True

    @property
    def corrects(self) -> bool:
        """Always: this is the correction."""
        return True

    @property
    def constrained(self) -> AWRS:
        """The constraint as a separate guidance."""
        return AWRS(self.constraint, self.particles, self.ess_threshold, resampling=self.resampling)

    def product(self, branching: BranchGuidance) -> BranchGuidance:
        """``branching`` without normalisation: the normalisers of its scores are the weights.

        Raises:
            ValueError: it does not have un-normalised scores.
        """
        if "renormalize" not in getattr(branching, "__dataclass_fields__", {}):
            raise ValueError(
                f"FeynmanKac weights texts by the normalisers of a guidance, and {branching.name} does not have an "
                "un-normalised product; use CFG or another guidance with renormalize"
            )
        return replace(branching, renormalize=False)  # type: ignore[type-var]
