"""Which part of a model a branch runs: values that name layers, without a model at hand."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from .validation import finite


class View(ABC):
    """Some of the layers of a model, in order, with its own embeddings, last norm and head."""

    @abstractmethod
    def layers(self, count: int) -> list[int]:
        """Which of ``count`` layers are run.

        Raises:
            ValueError: the model is too shallow for it.
        """


@dataclass(frozen=True)
class EarlyExit(View):
    """The first layers, whose output goes straight to the head.

    Args:
        depth: number of layers (an integer, 1 or more), or a share of them in (0, 1) (rounded, at least one).
    """

    depth: int | float

    def __post_init__(self) -> None:
        value = finite("exit", self.depth)
        if value <= 0 or (value >= 1 and value != int(value)):
            raise ValueError(f"exit={self.depth} must be a number of layers, or a share of them between 0 and 1")
        object.__setattr__(self, "depth", value if value < 1 else int(value))

    def layers(self, count: int) -> list[int]:
        """The first ones."""
        depth = max(1, round(self.depth * count)) if isinstance(self.depth, float) else self.depth
        if depth >= count:
            raise ValueError(f"exit={self.depth} leaves no layer out of {count}; use a smaller one")
        return list(range(depth))


@dataclass(frozen=True)
class WithoutBlocks(View):
    """All layers but some.

    Args:
        share: how many are left out, a share of them in (0, 1), at least one; never the first or the last.
        seed: which ones.
    """

    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < finite("drop", self.share) < 1.0:
            raise ValueError(f"drop={self.share} must be a share of the blocks between 0 and 1")

    def layers(self, count: int) -> list[int]:
        """Those that stay."""
        inner = range(1, count - 1) if count > 2 else range(count)
        lost = max(1, round(self.share * count))
        if lost >= count:
            raise ValueError(f"drop={self.share} leaves none of {count} blocks; use a smaller share")
        gone = set(random.Random(self.seed).sample(list(inner), min(lost, len(inner))))
        return [layer for layer in range(count) if layer not in gone]
