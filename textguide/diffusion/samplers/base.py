"""Base classes of orders, which rank positions by certainty, and of samplers, which choose those that a step fills."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...support.checks import is_number

N = TypeVar("N", bound="Named")


class Named:
    """Values that have a name and can be written as text: ``name``, or ``name:field=value,field=value``."""

    name: ClassVar[str]
    argument: ClassVar[str]
    registry: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            cls.registry[cls.name] = cls

    @classmethod
    def of(cls: type[N], value: Any) -> N:
        """``value`` itself if it is an instance of this class, or the instance that the text ``value`` describes.

        Raises:
            ValueError: it is neither; the message names the argument, the value and the known names.
        """
        if isinstance(value, cls):
            return value
        name, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        if name not in cls.registry:
            raise ValueError(f"{cls.argument}={value!r} is unknown; use one of {', '.join(cls.registry)}")
        kind = cls.registry[name]
        defaults = {one.name: one.default for one in dataclasses.fields(kind)}
        values = {}
        for part in filter(None, rest.split(",")):
            key, _, text = part.partition("=")
            if key not in defaults:
                raise ValueError(f"{cls.argument}={value!r}: {key!r} is not a field; {name} has {', '.join(defaults)}")
            values[key] = _parse(text, defaults[key], f"{cls.argument}={value!r}: {key}")
        return kind(**values)


def _parse(text: str, default: Any, what: str) -> Any:
    """The value that ``text`` means for a field with this default."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{what}={text!r} must be true or false")
        return text.lower() == "true"
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise ValueError(f"{what}={text!r} must be a number") from None


class Order(Named, ABC):
    """Ranks masked positions by how certain the model is of them.

    Attributes:
        is_probability: the certainties are probabilities or differences of probabilities, which a threshold can be
            compared with.
        is_random: :meth:`certainty` needs uniform draws.
    """

    argument = "order"
    registry: ClassVar[dict[str, type[Order]]] = {}
    is_probability: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    @abstractmethod
    def certainty(self, logp: Tensor, tokens: Tensor, places: Tensor, uniform: Tensor | None) -> Tensor:
        """The certainty of each position, (N,); positions with a larger one are filled earlier.

        Args:
            logp: log-probabilities of each position, (N, V).
            tokens: the token that was drawn at each position, (N,).
            places: the number of each position within its block, from 0, (N,).
            uniform: draws from [0, 1), (N,), if the order is random; else None.
        """

    def log_certainty(self, certainty: Tensor) -> Tensor:
        """The certainties on the scale of log-probabilities: 0 for the highest certainty."""
        return certainty.log()


@dataclass
class Turn:
    """What a sampler sees of one row in one step: the current block with n masked and m filled positions.

    Attributes:
        row: number of the row in the batch.
        certainty: certainty of each masked position by the order, (n,).
        logp: log-probabilities by which positions are ranked, (n, V).
        places: the masked positions of the row, (n,).
        quota: how many positions this step fills if all steps fill an equal share.
        turn: number of the step within its block, from 0.
        turns: steps of the block.
        uniform: returns the requested number of float64 draws from [0, 1).
        filled: the filled positions of the row, (m,).
        confidence: probability of each filled token when it was filled, (m,).
        filled_certainty: certainty of the token at each filled position by its current distribution, (m,); only set
            if the sampler reads filled positions.
    """

    row: int
    certainty: Tensor
    logp: Tensor
    places: Tensor
    quota: int
    turn: int
    turns: int
    uniform: Callable[[int], Tensor]
    filled: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    confidence: Tensor = field(default_factory=lambda: torch.zeros(0))
    filled_certainty: Tensor = field(default_factory=lambda: torch.zeros(0))


Chosen = tuple[Tensor, "Tensor | None"]
"""The masked positions that are filled, bool (n,), and the filled positions that are emptied, bool (m,); None: none."""


class Unmasking(Named, ABC):
    """A sampler: decides which positions a step fills, and which it empties.

    Attributes:
        revises: the sampler empties positions. Each block then takes all of its steps, and a row ends after the last.
        reads_filled: the sampler needs the distributions at filled positions too.
        remembers: its choice depends on earlier steps of a row.
    """

    argument = "sampler"
    remembers: ClassVar[bool] = False
    registry: ClassVar[dict[str, type[Unmasking]]] = {}

    @property
    def revises(self) -> bool:
        return False

    @property
    def reads_filled(self) -> bool:
        return False

    def check(self, order: Order) -> None:
        """Refuse an order that this sampler cannot use.

        Raises:
            ValueError: the sampler cannot use ``order``; the message names both.
        """

    def start(self, order: Order) -> Callable[[Turn], Chosen]:
        """The function that chooses in one run. A sampler that remembers keeps its state there, by :attr:`Turn.row`."""
        return lambda turn: self.choose(turn, order)

    def choose(self, turn: Turn, order: Order) -> Chosen:
        """The choice of a sampler without state."""
        raise NotImplementedError

    def counts(self, certainties: Tensor, quotas: Tensor) -> Tensor | None:
        """How many of the most certain positions to fill in each row, (B,), for samplers that need no more than this:
        the whole batch is then filled at once. None for all others, whose :meth:`choose` is called row by row.

        Args:
            certainties: of each row in descending order, (B, L); −inf after those of the masked positions.
            quotas: :attr:`Turn.quota` of each row, (B,).
        """
        return None


def surest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest of (n,) values as bool (n,); of equal values, the first."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.sort(descending=True, stable=True).indices[:count]] = True
    return chosen


def number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Refuse a field that is not a number from ``low`` to ``high``; infinity is allowed.

    Raises:
        ValueError: it is not; the message names it.
    """
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number from {low:g} to {high:g}")
