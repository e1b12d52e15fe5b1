"""The orders that look at one distribution only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...guidance.algebra import entropy
from .base import Order


@dataclass(frozen=True)
class Confidence(Order):
    """The probability of the drawn token (MaskGIT, arXiv 2202.04200; LLaDA's low-confidence remasking)."""

    name = "confidence"
    is_probability = True

    def certainty(self, logp: Tensor, tokens: Tensor, places: Tensor, uniform: Tensor | None) -> Tensor:
        return logp.gather(-1, tokens[:, None])[:, 0].exp()


@dataclass(frozen=True)
class Margin(Order):
    """The difference between the two largest probabilities (arXiv 2502.06768)."""

    name = "margin"
    is_probability = True

    def certainty(self, logp: Tensor, tokens: Tensor, places: Tensor, uniform: Tensor | None) -> Tensor:
        best = logp.topk(min(2, logp.shape[-1]), dim=-1).values.exp()
        return best[:, 0] - best[:, 1] if best.shape[1] > 1 else best[:, 0]


@dataclass(frozen=True)
class Entropy(Order):
    """The negative entropy, in nats."""

    name = "entropy"

    def certainty(self, logp: Tensor, tokens: Tensor, places: Tensor, uniform: Tensor | None) -> Tensor:
        return -entropy(logp)

    def log_certainty(self, certainty: Tensor) -> Tensor:
        return certainty


@dataclass(frozen=True)
class Random(Order):
    """A uniform draw: all positions are equally likely to be filled first."""

    name = "random"
    is_random = True

    def certainty(self, logp: Tensor, tokens: Tensor, places: Tensor, uniform: Tensor | None) -> Tensor:
        assert uniform is not None
        return uniform
