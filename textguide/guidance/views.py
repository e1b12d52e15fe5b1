"""Parts of a model to run: values that describe layers and changes inside them, without the model itself."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from ..support.checks import finite_number


class View:
    """Some layers of a model, in order, with its embeddings, last norm and head. A view may also change the layers."""

    def layers(self, count: int) -> list[int]:
        """The layers to run, of ``count`` layers. The default is all of them.

        Raises:
            ValueError: the model does not have enough layers.
        """
        return list(range(count))

    def change(self, count: int) -> str:
        """What the view changes inside a model with ``count`` layers, in a few words for reports."""
        return f"a part of the model ({type(self).__name__})"


@dataclass(frozen=True)
class EarlyExit(View):
    """The first layers, whose output goes directly to the head.

    Args:
        depth: number of layers (an integer, 1 or more), or a share of them in (0, 1) (rounded, at least one and never
            all).
    """

    depth: int | float

    def __post_init__(self) -> None:
        value = finite_number("exit", self.depth)
        if value <= 0 or (value >= 1 and value != int(value)):
            raise ValueError(f"exit={self.depth} must be a number of layers, or a share of them between 0 and 1")
        object.__setattr__(self, "depth", value if value < 1 else int(value))

    def layers(self, count: int) -> list[int]:
        """The first ones."""
        if isinstance(self.depth, float):
            depth = max(1, min(round(self.depth * count), count - 1))
        else:
            depth = self.depth
        if depth >= count:
            raise ValueError(f"exit={self.depth} leaves no layer out of {count}; use a smaller one")
        return list(range(depth))


def as_exits(value: Any) -> tuple[int | float, ...]:
    """One or several depths of :class:`EarlyExit`, as a tuple.

    Raises:
        ValueError: there is none, or one is not a valid depth.
    """
    exits = value if isinstance(value, (list, tuple)) else (value,)
    if not exits:
        raise ValueError("exits is empty; name at least one early layer")
    return tuple(EarlyExit(depth).depth for depth in exits)


@dataclass(frozen=True)
class WithoutBlocks(View):
    """All layers except some.

    Args:
        share: share of the layers that is left out, in (0, 1), at least one layer; never the first or the last.
        seed: seed for choosing them.
    """

    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < finite_number("drop", self.share) < 1.0:
            raise ValueError(f"drop={self.share} must be a share of the blocks between 0 and 1")

    def layers(self, count: int) -> list[int]:
        """The layers that are not left out."""
        inner = range(1, count - 1) if count > 2 else range(count)
        number = max(1, round(self.share * count))
        if number >= count:
            raise ValueError(f"drop={self.share} leaves none of {count} blocks; use a smaller share")
        dropped = set(random.Random(self.seed).sample(list(inner), min(number, len(inner))))
        return [layer for layer in range(count) if layer not in dropped]


@dataclass(frozen=True)
class VectorFile:
    """A steering vector on disk.

    Args:
        folder: folder that ``textguide steering train`` wrote.
        fingerprint: fingerprint of its content; any other content is refused. None: accept any content.
    """

    folder: str
    fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"folder": self.folder, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class Steered(View):
    """All layers, with a vector added to the residual stream after some of them, at every position.

    Args:
        vector: numbers, as many as the model's width; a :class:`VectorFile`; or an object with ``directions`` (layers,
            width) and ``fingerprint``, such as a :class:`textguide.steering.SteeringVector`.
        at: the layers after which the vector is added: numbers from 0, or shares of the depth in (0, 1).
        strength: factor of the vector.
    """

    vector: Any
    at: tuple[int | float, ...]
    strength: float = 1.0

    def change(self, count: int) -> str:
        """The strength and the layers."""
        layers = self.places(count)
        return f"vector × {self.strength:g} after layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"

    def places(self, count: int) -> list[int]:
        """The numbers of the layers in a model with ``count`` layers.

        Raises:
            ValueError: the model has fewer layers.
        """
        numbers = {int(place * count) if isinstance(place, float) else place for place in self.at}
        for number in sorted(numbers):
            if number >= count:
                raise ValueError(f"layers={number} is not one of the model's {count} layers, which are counted from 0")
        return sorted(numbers)


@dataclass(frozen=True)
class MaskedHeads(View):
    """All layers, with the output of some attention heads set to 0.

    Args:
        heads: pairs of a layer and a head in it, both counted from 0. None: find the heads that copy most from the
            text.
        count: number of heads to find.
    """

    heads: tuple[tuple[int, int], ...] | None = None
    count: int = 10

    @staticmethod
    def check(heads: tuple[tuple[int, int], ...], layers: int, each: int) -> None:
        """Refuse ``heads`` that a model with this number of ``layers``, with ``each`` heads per layer, does not have.

        Raises:
            ValueError: the model does not have one of them; the message names the first.
        """
        for layer, head in heads:
            if layer >= layers or head >= each:
                raise ValueError(
                    f"heads names head {head} of layer {layer}, and the model has {layers} layers of {each} heads, "
                    "which are counted from 0"
                )


@dataclass(frozen=True)
class Adapted(View):
    """All layers, with an adapter from ``textguide distill`` applied to them.

    Args:
        folder: folder of the adapter.
        scale: γ of the guidance that the adapter reproduces.
    """

    folder: str
    scale: float

    def change(self, count: int) -> str:
        """The adapter and γ."""
        return f"adapter {self.folder} at γ = {self.scale:g}"
