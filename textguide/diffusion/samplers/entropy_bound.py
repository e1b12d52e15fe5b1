"""EB-Sampler: as many positions as a bound on their dependence allows."""

from __future__ import annotations

from dataclasses import dataclass

from ...guidance.algebra import entropy
from .base import Chosen, Order, Turn, Unmasking, number, surest


@dataclass(frozen=True)
class EntropyBound(Unmasking):
    """EB-Sampler (arXiv 2505.24857, eq. 11): the largest set ``U`` of the most certain positions with
    ``Σ_U H − max_U H ≤ γ``.

    ``H`` is the entropy of a position's distribution. The left-hand side bounds the mutual information of the
    positions, and with it the error of filling them independently. The order (the paper's error proxy) determines
    which positions are the most certain.

    Args:
        gamma: γ ≥ 0, in nats. 0 fills one position per step, together with all positions of zero entropy. The paper
            tries values from 0.001 to 1 and more.

    Raises:
        ValueError: ``gamma`` is negative.
    """

    gamma: float = 0.1

    name = "eb"

    def __post_init__(self) -> None:
        number("gamma", self.gamma, 0.0)

    def choose(self, turn: Turn, order: Order) -> Chosen:
        entropies = entropy(turn.logp).double()
        ranked = entropies[turn.certainty.sort(descending=True, stable=True).indices]
        # The left-hand side never decreases when a set grows, so the sets within the bound are the smallest ones.
        within = ranked.cumsum(0) - ranked.cummax(0).values <= self.gamma
        return surest(turn.certainty, max(1, int(within.sum()))), None
