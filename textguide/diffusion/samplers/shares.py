"""The plain samplers: an equal share per step, and everything that is certain enough."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Order, Unmasking, number


@dataclass(frozen=True)
class EqualShares(Unmasking):
    """Each step fills the same number of positions, the most certain ones."""

    name = "shares"

    def counts(self, certainties: Tensor, quotas: Tensor) -> Tensor:
        return quotas


@dataclass(frozen=True)
class Threshold(Unmasking):
    """Each step fills every position whose certainty reaches a threshold, and at least one (Fast-dLLM, arXiv
    2505.22618, algorithm 1).

    Args:
        value: in (0, 1]. With 1, a step fills one position and all those of which the model is fully certain.

    Raises:
        ValueError: ``value`` is outside (0, 1].
    """

    value: float = 0.9

    name = "threshold"

    def __post_init__(self) -> None:
        number("threshold", self.value, 0.0, 1.0)
        if not self.value:
            raise ValueError("threshold=0 fills everything at once; use steps=1 for that")

    def check(self, order: Order) -> None:
        if not order.is_probability:
            raise ValueError(
                f"threshold={self.value} is compared with probabilities, and order={order.name!r} gives none; use "
                "confidence"
            )

    def counts(self, certainties: Tensor, quotas: Tensor) -> Tensor:
        return (certainties >= self.value).sum(-1).clamp(min=1)
