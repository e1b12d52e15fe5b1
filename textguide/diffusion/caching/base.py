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
"""Number of a branch, 0 for the conditional one, and number of a row of the batch."""


@dataclass
class Reading:
    """Rows of one denoiser that are to be read in one pass, S of them.

    Attributes:
        ids: token ids, (S, L).
        attention: False on padding, bool (S, L).
        positions: positions whose distribution is needed, bool (S, L).
        slots: branch and row of each.
        block: the block that each is filling, (S,).
    """

    ids: Tensor
    attention: Tensor
    positions: Tensor
    slots: list[Slot]
    block: Tensor


class CachedReader(Protocol):
    """Reads rows of one denoiser with the keys and values that it keeps."""

    def read(self, reading: Reading) -> Tensor:
        """Logits (S, L, V); they are only valid at :attr:`Reading.positions`."""


class Caching(Named, ABC):
    """A way of keeping keys and values between passes."""

    argument = "cache"
    registry: ClassVar[dict[str, type[Caching]]] = {}

    def __str__(self) -> str:
        """The value as a user writes it."""
        return self.name

    @abstractmethod
    def start(
        self, denoisers: Mapping[str, Denoiser], canvas: Canvas, branches: Sequence[tuple[str, Canvas]]
    ) -> dict[str, CachedReader]:
        """The readers of one run, by the names of the denoisers.

        Args:
            canvas: the batch before anything is filled.
            branches: the model that each extra branch runs, and its canvas.

        Raises:
            ValueError: a model does not support this cache.
        """


def canvases_by_model(
    conditional: tuple[str, Canvas], branches: Sequence[tuple[str, Canvas]]
) -> dict[str, dict[int, Canvas]]:
    """The canvases of all branches by the model that reads them and by the number of the branch."""
    canvases: dict[str, dict[int, Canvas]] = {}
    for number, (name, canvas) in enumerate([conditional, *branches]):
        canvases.setdefault(name, {})[number] = canvas
    return canvases


def refuse_without_cache(model: Denoiser, name: str) -> None:
    """Refuse a model whose forward does not accept keys and values.

    Raises:
        ValueError: it does not; the message names ``cache=name``.
    """
    if not model.can_cache:
        raise ValueError(
            f"cache={name} needs a forward that takes past_key_values, and {type(model.model).__name__} has none; "
            "leave cache off"
        )
