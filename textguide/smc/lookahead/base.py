"""Lookahead as a twist of sequential Monte Carlo (Zhao et al., arXiv 2404.17546).

With a potential ``ψ > 0`` of every text, tokens are drawn from ``q(x) ∝ p(x) 1(x is allowed) ψ(text x)``, and the
weight of a text is multiplied by ``Σ_x p(x) 1(x is allowed) ψ(text x) / ψ(text)``. The weights then follow ``p ψ``, so
resampling prefers texts that are likely to succeed. After the end ψ is 1 and they follow ``p``: whatever ψ is, the mean
weight is an unbiased estimate of the probability of the constraint. With the perfect ψ, the probability under the model
that the text becomes a member, all weights are equal. ψ may only be 0 if no continuation is a member.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class Ahead(ABC):
    """The lookahead after one text; an immutable value that particles share."""

    @abstractmethod
    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        """Log ψ of the text followed by each token.

        Args:
            left: number of tokens that may be written after that one, including an end token.
            scores: the model's scores of the tokens (V,), if available. If ψ is costly, it may be less accurate for
                unlikely tokens.

        Returns:
            float32 (V,), 0 for end tokens; None if it is 0 for all tokens.
        """

    @abstractmethod
    def after(self, token: int) -> Ahead:
        """The lookahead after the text and ``token``."""

    def potential(self, left: int) -> float:
        """Log ψ of this text, for a text whose last token was drawn when :meth:`following` returned None.

        Args:
            left: number of tokens that may be written after it.
        """
        return 0.0


class Lookahead(ABC):
    """The lookahead for one constraint and vocabulary."""

    @abstractmethod
    def begin(self, prompt: Sequence[int]) -> Ahead:
        """The lookahead before the first token.

        Args:
            prompt: the tokens before it; empty if they are not known.
        """
