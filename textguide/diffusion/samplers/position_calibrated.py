"""PC-Sampler: confidence, reduced for tokens that are frequent anyway and for positions further to the right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .base import Order, number


@dataclass(frozen=True)
class PositionCalibrated(Order):
    """PC-Sampler (arXiv 2508.13021, eq. 5 to 7): ``exp(−λ i) · min(α, −p(x) log f(x))``.

    ``p(x)`` is the probability of the drawn token and ``f(x)`` its frequency in a text corpus: tokens that are likely
    in any text (full stops, line breaks, end tokens) are filled later. ``i`` counts the positions of the block from 0.

    Args:
        decay: λ ≥ 0, the weight of the position; 0 ignores it. The paper uses 0.25 for mathematics and 0 for Sudoku.
        clip: α > 0, the largest value of the second factor.
        frequencies: how often each token of the vocabulary occurs in a text corpus, (V,), as counts or shares. A token
            that never occurs counts as once (or as the smallest share). None: all tokens are equally frequent, so that
            only the position matters.

    Raises:
        ValueError: a field has a value that cannot work.
    """

    decay: float = 0.25
    clip: float = 10.0
    frequencies: Tensor | None = None

    name = "pc"

    def __post_init__(self) -> None:
        number("decay", self.decay, 0.0)
        number("clip", self.clip, 0.0)
        if self.clip == 0.0:
            raise ValueError("clip=0 makes all positions equal; use a larger number")
        if self.frequencies is None:
            return
        frequencies = torch.as_tensor(self.frequencies, dtype=torch.float64)
        if frequencies.dim() != 1 or not bool((frequencies >= 0).all()) or not bool(frequencies.sum() > 0):
            raise ValueError("frequencies must be one number of 0 or more for each token of the vocabulary, (V,)")
        object.__setattr__(self, "frequencies", frequencies)

    def certainty(self, logp: Tensor, tokens: Tensor, places: Tensor, uniform: Tensor | None) -> Tensor:
        chance = logp.gather(-1, tokens[:, None])[:, 0].exp()
        if self.frequencies is None:
            rarity: Tensor | float = math.log(logp.shape[-1])
        else:
            rarity = self._surprise_for(logp.shape[-1]).to(chance)[tokens]
        return torch.exp(-self.decay * places.to(chance)) * (chance * rarity).clamp(max=self.clip)

    def _surprise_for(self, size: int) -> Tensor:
        if len(self._surprise) != size:
            have = len(self._surprise)
            raise ValueError(f"frequencies has {have} tokens, and the vocabulary {size}; give as many")
        return self._surprise

    @cached_property
    def _surprise(self) -> Tensor:
        """−log f of every token, float64 (V,)."""
        assert self.frequencies is not None
        least = float(self.frequencies[self.frequencies > 0].min())
        counts = self.frequencies.clamp(min=min(1.0, least))
        return (counts.sum().log() - counts.log()).clamp(min=0.0)
