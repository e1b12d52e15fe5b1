"""The plain samplers: equal shares, and everything that is sure enough."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Order, Unmasking, number


@dataclass(frozen=True)
class EqualShares(Unmasking):
    """Each step fills as many positions as the others, the surest ones."""

    name = "shares"

    def counts(self, sure: Tensor, quotas: Tensor) -> Tensor:
        return quotas


@dataclass(frozen=True)
class Threshold(Unmasking):
    """Each step fills every position whose certainty reaches a threshold, and one at least (Fast-dLLM, arXiv
    2505.22618, algorithm 1).

    Args:
        value: in (0, 1]. At 1 one position a step is filled, but for those of which the model is certain.

    Raises:
        ValueError: ``value`` lies elsewhere.
    """

    value: float = 0.9

    name = "threshold"

    def __post_init__(self) -> None:
        number("threshold", self.value, 0.0, 1.0)
        if not self.value:
            raise ValueError("threshold=0 fills everything at once; take steps=1 for that")

    def check(self, order: Order) -> None:
        if not order.is_probability:
            raise ValueError(
                f"threshold={self.value} compares probabilities, and order={order.name!r} gives none; use confidence"
            )

    def counts(self, sure: Tensor, quotas: Tensor) -> Tensor:
        return (sure >= self.value).sum(-1).clamp(min=1)
