"""What is kept of a row between two passes: the values of ``cache=``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ..canvas import Canvas
from ..denoisers import Denoiser
from ..samplers.base import Named

Slot = tuple[int, int]
"""Number of a branch, 0 for the conditional one, and of a row of the batch."""


@dataclass
class Reading:
    """Rows of one denoiser that are to be read in one pass, S in number.

    Attributes:
        ids: (S, L).
        attention: bool (S, L).
        asked: positions whose distribution is wanted, bool (S, L).
        slots: which row of which branch each is.
        block: the block that each is filling, (S,).
    """

    ids: Tensor
    attention: Tensor
    asked: Tensor
    slots: list[Slot]
    block: Tensor


class Kept(Protocol):
    """Reads rows of one denoiser, and keeps what it can."""

    def read(self, reading: Reading) -> Tensor:
        """Logits (S, L, V), right where they are asked for."""


class Caching(Named, ABC):
    """What is kept of a row between two passes."""

    argument = "cache"
    registry: ClassVar[dict[str, type[Caching]]] = {}

    def __str__(self) -> str:
        """How a user writes it."""
        return self.name

    @abstractmethod
    def start(
        self, denoisers: Mapping[str, Denoiser], canvas: Canvas, branches: Sequence[tuple[str, Canvas]]
    ) -> dict[str, Kept]:
        """What reads in one run, by the names of the denoisers.

        Args:
            canvas: the batch as it was before anything was filled.
            branches: the model that each extra branch runs, and its canvas.

        Raises:
            ValueError: a model or the branches leave nothing to keep.
        """


def refuse_without_cache(model: Denoiser, name: str) -> None:
    """Refuse a model whose forward takes no keys.

    Raises:
        ValueError: it does not; the message names ``cache=name``.
    """
    if not model.can_cache:
        raise ValueError(
            f"cache={name} needs a forward that takes past_key_values, and {type(model.model).__name__} has none; "
            "leave cache off"
        )
