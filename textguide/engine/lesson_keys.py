"""Which rows can learn from each other: those whose next-token distributions and ends depend on the same inputs."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria

from ..guidance.composed import Parts

# Criteria that keys need not contain: two follow from the end tokens and the limit, and time teaches nothing.
_KNOWN = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria)


def lesson_keys(
    model: Any,
    models: Mapping[str, Any],
    parts: Parts,
    rows: Sequence[Sequence[Sequence[int]]] | None,
    size: int,
    processors: Any,
    criteria: Any,
    horizon: int,
) -> list[Hashable]:
    """A key for each of ``size`` rows; rows with equal keys learn from each other.

    Args:
        models: further models by name.
        parts: of the guidance.
        rows: the token ids that every branch reads, the conditional one first. None if rows read more than ids, so that
            no two rows are the same.
        processors: logits processors of transformers.
        criteria: stopping criteria of transformers.
        horizon: the limit of new tokens.
    """
    common = (
        weakref.ref(model),
        tuple((name, weakref.ref(one)) for name, one in sorted(models.items())),
        _value((parts.branching, parts.reweighting)),
        tuple(_settings(one) for one in processors),
        tuple(_ending(one) for one in criteria if not isinstance(one, _KNOWN)),
        horizon,
    )
    if rows is None:
        run = object()  # differs from that of every other run
        return [(common, run, number) for number in range(size)]
    return [(common, tuple(tuple(branch[number]) for branch in rows)) for number in range(size)]


def _ending(criterion: Any) -> Hashable:
    return ("stop", criterion.stop_strings) if isinstance(criterion, StopStringCriteria) else _Itself(criterion)


def _settings(processor: Any) -> Hashable:
    """A hashable value for what a processor does; a processor with settings that are not plain only equals itself."""
    values: list[tuple[str, Hashable]] = []
    for name, value in sorted(getattr(processor, "__dict__", {"": processor}).items()):
        if isinstance(value, Tensor) and value.numel() <= 64:
            value = value.tolist()
        if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
            value = tuple(value)
        if not isinstance(value, (str, int, float, tuple, torch.device, type(None))):
            return _Itself(processor)
        values.append((name, _value(value)))
    return type(processor), tuple(values)


def _value(value: Any) -> Hashable:
    """``value``, or a wrapper that is only equal to itself if ``value`` has no hash."""
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return value


class _Itself:
    """Wraps an object and compares by identity."""

    def __init__(self, one: Any) -> None:
        self.one = one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.one is self.one

    def __hash__(self) -> int:
        return id(self.one)
