"""What an order and a sampler are: values that say which positions are surest, and which of them a step fills."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

N = TypeVar("N", bound="Named")


class Named:
    """Values with a name, which text can spell: ``name``, or ``name:field=value,field=value``."""

    name: ClassVar[str]
    argument: ClassVar[str]
    registry: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            cls.registry[cls.name] = cls

    @classmethod
    def of(cls: type[N], value: Any) -> N:
        """``value`` where it is one of these, or the one that a text names.

        Raises:
            ValueError: it is neither; the message names the argument, the value and what there is.
        """
        if isinstance(value, cls):
            return value
        known = ", ".join(cls.registry)
        name, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        if name not in cls.registry:
            raise ValueError(f"{cls.argument}={value!r} is unknown; use one of {known}")
        made = cls.registry[name]
        kinds = {one.name: one.default for one in dataclasses.fields(made)}
        values = {}
        for part in filter(None, rest.split(",")):
            key, _, text = part.partition("=")
            if key not in kinds:
                raise ValueError(f"{cls.argument}={value!r}: {key!r} is no field; {name} has {', '.join(kinds)}")
            values[key] = _read(text, kinds[key], f"{cls.argument}={value!r}: {key}")
        return made(**values)


def _read(text: str, default: Any, what: str) -> Any:
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
    """Which masked positions come first: how sure a distribution is of each.

    Attributes:
        is_probability: the values are probabilities or differences of such, which a threshold can be compared with.
        is_random: :meth:`certainty` needs uniform draws.
    """

    argument = "order"
    registry: ClassVar[dict[str, type[Order]]] = {}
    is_probability: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    @abstractmethod
    def certainty(self, logp: Tensor, tokens: Tensor, places: Tensor, uniform: Tensor | None) -> Tensor:
        """How sure a distribution is of each position, (N,); larger is surer.

        Args:
            logp: log-probabilities, (N, V).
            tokens: the tokens that were drawn there, (N,).
            places: which position of its block each is, from 0, (N,).
            uniform: draws from [0, 1), (N,), for an order that is random.
        """

    def log_certainty(self, certainty: Tensor) -> Tensor:
        """The values on the scale of log-probabilities, 0 at the surest."""
        return certainty.log()


@dataclass
class Turn:
    """What a sampler sees of one row in one step: the current block, n masked positions and m that are filled.

    Attributes:
        row: number of the row in the batch.
        certainty: by the order, (n,).
        logp: log-probabilities that rank positions, (n, V).
        places: which positions of the row are masked, (n,).
        quota: how many an equal share of the steps fills now.
        turn: number of the step within its block, from 0.
        turns: steps of the block.
        uniform: gives so many float64 draws from [0, 1).
        filled: which positions of the row are filled, (m,).
        confidence: probability of each filled token when it was filled, (m,).
        filled_certainty: by the order, from the distribution at a filled position and the token there, (m,); only
            where the sampler reads filled positions.
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
"""Which masked positions are filled, bool (n,), and which filled ones are emptied, bool (m,); None: none is."""


class Unmasking(Named, ABC):
    """A sampler: which positions a step fills, and which it empties.

    Attributes:
        revises: it empties positions, so that each block takes all of its steps, and a row ends at the last of them.
        reads_filled: it wants the distributions at filled positions too.
        remembers: what it chooses depends on a row's steps before.
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
        """Refuse an order that the sampler cannot use.

        Raises:
            ValueError: it is one; the message names both.
        """

    def start(self, order: Order) -> Callable[[Turn], Chosen]:
        """What chooses in one run; whatever it remembers of a row, it remembers by :attr:`Turn.row`."""
        return lambda turn: self.choose(turn, order)

    def choose(self, turn: Turn, order: Order) -> Chosen:
        """The choice of a sampler that remembers nothing."""
        raise NotImplementedError

    def counts(self, sure: Tensor, quotas: Tensor) -> Tensor | None:
        """For samplers that fill the surest positions and ask for nothing else: how many in each row, (B,); else None.

        Args:
            sure: certainties, (B, L), the largest first; −inf behind those of the masked positions.
            quotas: :attr:`Turn.quota` of each row, (B,).
        """
        return None


def surest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest of (n,) values as bool (n,), the first among equals."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.sort(descending=True, stable=True).indices[:count]] = True
    return chosen


def number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Refuse a field that is no number from ``low`` to ``high``.

    Raises:
        ValueError: it is none; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number from {low:g} to {high:g}")


def one_of(name: str, value: Any, names: Sequence[str]) -> None:
    """Refuse a field that is none of ``names``.

    Raises:
        ValueError: it is none; the message names it.
    """
    if value not in names:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(names)}")
