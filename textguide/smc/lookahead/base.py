"""Lookahead as a twist of sequential Monte Carlo (Zhao et al., arXiv 2404.17546).

With a potential ``ψ > 0`` of every text, tokens are drawn from ``q(x) ∝ p(x) 1(x may follow) ψ(text x)``, and the
weight of a text is multiplied by ``Σ_x p(x) 1(x may follow) ψ(text x) / ψ(text)``. The weights then follow ``p ψ``, so
that resampling prefers texts with prospects, and behind the end, where ψ is 1, ``p`` alone: whatever ψ is, the mean
weight is an unbiased estimate of the probability of the constraint. With the perfect ψ, the probability under the model
that the text becomes a member, all weights are equal. ψ may be 0 only where no member follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class Ahead(ABC):
    """What is foreseen behind one text; a value, which particles share."""

    @abstractmethod
    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        """Log ψ of the text followed by each token, float32 (V,); 0 for end tokens. None where all are 0.

        Args:
            left: tokens that may be written behind that one, an end token included.
            scores: what the model gives the tokens (V,), if at hand: where ψ is costly, it may be rough for those that
                are unlikely.
        """

    @abstractmethod
    def after(self, token: int) -> Ahead:
        """What is foreseen behind the text and ``token``."""

    def potential(self, left: int) -> float:
        """Log ψ of this text, where :meth:`following` gave None before it was written.

        Args:
            left: tokens that may be written behind it.
        """
        return 0.0


class Lookahead(ABC):
    """What is foreseen under one constraint, for one vocabulary."""

    @abstractmethod
    def begin(self, prompt: Sequence[int]) -> Ahead:
        """In front of the first token.

        Args:
            prompt: tokens that come before it; empty where they are not known.
        """
