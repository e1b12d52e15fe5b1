"""Contrastive activation addition (Rimsky et al., arXiv 2312.06681)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..support.checks import factor, finite_number
from .base import About, Branch
from .scaled import Scaled
from .views import Steered, VectorFile, View


@dataclass(frozen=True)
class Steering(Scaled):
    """A vector added to the residual stream: ``h_l ← h_l + strength · v_l`` after each chosen layer ``l``.

    ``v_l`` is a difference of two means of the residual stream after layer ``l``, at the last token of contrasting
    texts (section 2; :func:`textguide.steering.train`). The conditional pass itself is steered, which costs nothing.
    With γ ≠ 1, the unsteered model becomes a branch: ``lu + γ (ls − lu)``, ``s`` steered and ``u`` not, so γ above 1
    steers further than the vector does, for the cost of one extra pass. The paper adds the vector only after the
    prompt. Here it is added at every position, so that a text read in one pass or token by token gives the same
    result. The window applies to γ, not to the vector. For models without an encoder, including recurrent ones.

    Args:
        vector: a folder that ``textguide steering train`` wrote; ``"smollm2-positive"``, which is bundled with
            textguide and makes the bundled model more positive; a :class:`textguide.steering.SteeringVector`; or
            numbers, as many as the model's width, which are then added after every chosen layer.
        layers: the layers after which the vector is added: a number from 0, a share of the depth in (0, 1), several of
            these, or text such as ``"12-15"``. In the paper, the middle of the depth works best.
        strength: factor of the vector; 0 changes nothing, below 0 steers in the opposite direction. The paper uses −2
            to 2.
        scale: γ; 1 only uses the vector.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    vector: Any = None
    layers: Any = (0.5,)
    strength: float = 1.0
    scale: float = field(default=1.0, kw_only=True)

    name = "steering"
    about = About(
        paper="2312.06681",
        rule="lu + γ (ls − lu), s with h_l + strength · v_l after chosen layers",
        passes="nothing; with γ ≠ 1, one extra pass",
        neutral="strength = 0",
        helps="a style or an attitude that pairs of texts can show",
        example="steering:vector=FOLDER",
        mechanism="the vector is added at every position; the paper adds it only after the prompt",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(vector=_vector(self.vector), layers=_layers(self.layers), strength=factor("strength", self.strength))

    @property
    def is_neutral(self) -> bool:
        """Whether the strength is 0, so that both passes are the same."""
        return self.strength == 0.0

    @property
    def view(self) -> View:
        """The steered model."""
        vector = VectorFile(self.vector) if isinstance(self.vector, str) else self.vector
        return Steered(vector, self.layers, self.strength)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unsteered model, if γ is not always 1."""
        if self.scale == 1.0 and self._bounded(1.0) == 1.0:
            return ()
        return (Branch(same_prompt=True),)


def _vector(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.get("folder") is None:
            raise ValueError(
                f"vector={dict(value)!r} is not saved in a folder; save it, and pass the name of the folder"
            )
        return VectorFile(str(value["folder"]), value.get("fingerprint"))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (str, VectorFile)) and value != "":
        return value
    if hasattr(value, "directions"):
        return value if value.folder is None else VectorFile(value.folder, value.fingerprint)
    numbers = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(numbers, (list, tuple)) or not numbers:
        raise ValueError(
            f"vector={value!r} must be a folder that 'textguide steering train' wrote, a SteeringVector, or numbers"
        )
    return tuple(finite_number("vector", number) for number in numbers)


def _layers(value: Any) -> tuple[int | float, ...]:
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
            raise ValueError(f"layers={value!r} must be a number, or two with a dash between them, such as '12-15'")
        value = range(int(first), int(last if dash else first) + 1)
    several = list(value) if isinstance(value, (list, tuple, range)) else [value]
    if not several:
        raise ValueError(f"layers={value!r} does not contain a layer; give at least one")
    for layer in several:
        number = finite_number("layers", layer)
        if number < 0 or (not isinstance(layer, int) and not 0.0 < number < 1.0):
            raise ValueError(f"layers={layer!r} must be a number from 0, or a share of the depth between 0 and 1")
    return tuple(several)
