"""The guidance scale as a function of progress (arXiv 2404.13040).

A schedule is named by a string, optionally with a parameter after a colon: ``"constant"``, ``"linear"``,
``"powered-cosine:2"``, ``"clamp-linear:0.5"``. It multiplies the guidance weight ``w = γ − 1``::

    γ(s) = 1 + (γ − 1) · m(s),    s = progress in [0, 1]

so a scale of 1 changes nothing under any schedule. The mean of every multiplier over ``s`` is 1, except for the clamped
ones, so the total amount of guidance is the same as with the constant schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Progress = TypeVar("Progress", float, Tensor)


class _Shape(NamedTuple):
    multiplier: Callable[[Any, float], Any]
    parameter: float | None  # the default; None if the schedule does not have one
    meaning: str


def _cos(x: Any) -> Any:
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def _sin(x: Any) -> Any:
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def _at_least(x: Any, floor: float) -> Any:
    return x.clamp(min=floor) if isinstance(x, Tensor) else max(x, floor)


def _least(x: Any, y: Any) -> Any:
    return torch.minimum(x, y) if isinstance(x, Tensor) else min(x, y)


def _powered_cosine(s: Any, power: float) -> Any:
    # The mean of (1 − cos πs^k)/2 is not 1/2 unless k = 1; dividing by it keeps the total guidance.
    return (1 - _cos(math.pi * s**power)) / 2 / _powered_cosine_mean(power)


@lru_cache(maxsize=64)
def _powered_cosine_mean(power: float, points: int = 2048) -> float:
    grid = ((i + 0.5) / points for i in range(points))
    return sum((1 - math.cos(math.pi * s**power)) / 2 for s in grid) / points


SCHEDULES: dict[str, _Shape] = {
    "constant": _Shape(lambda s, _: 1.0 + 0 * s, None, "the same weight at every step"),
    "linear": _Shape(lambda s, _: 2 * s, None, "rises from 0 to twice the weight"),
    "linear-decreasing": _Shape(lambda s, _: 2 * (1 - s), None, "falls from twice the weight to 0"),
    "cosine": _Shape(lambda s, _: 1 - _cos(math.pi * s), None, "rises along a half cosine"),
    "cosine-decreasing": _Shape(lambda s, _: 1 + _cos(math.pi * s), None, "falls along a half cosine"),
    # Mirrored, so that it is 0 at the end and not 1e-16.
    "sine": _Shape(lambda s, _: _sin(math.pi * _least(s, 1 - s)) * math.pi / 2, None, "largest in the middle"),
    "v-shape": _Shape(lambda s, _: 2 * abs(1 - 2 * s), None, "smallest in the middle"),
    "lambda-shape": _Shape(lambda s, _: 2 * (1 - abs(1 - 2 * s)), None, "a tent, largest in the middle"),
    "powered-cosine": _Shape(_powered_cosine, 2.0, "a half cosine of s^k: rises later for a larger k"),
    "clamp-linear": _Shape(lambda s, c: _at_least(2 * s, c), 1.0, "linear, but never below c times the weight"),
    "clamp-cosine": _Shape(
        lambda s, c: _at_least(1 - _cos(math.pi * s), c), 1.0, "cosine, but never below c times the weight"
    ),
}


def parse(schedule: str) -> tuple[Callable[[Any, float], Any], float]:
    """The multiplier and the parameter of a schedule.

    Raises:
        ValueError: there is no such schedule, it does not have a parameter, or the parameter is not a number above 0.
    """
    name, colon, text = str(schedule).partition(":")
    shape = SCHEDULES.get(name)
    if shape is None:
        raise ValueError(f"schedule={schedule!r} is unknown; use one of {', '.join(SCHEDULES)}")
    if not colon:
        return shape.multiplier, shape.parameter if shape.parameter is not None else 0.0
    if shape.parameter is None:
        raise ValueError(f"schedule={schedule!r}: {name!r} does not have a parameter; write schedule={name!r}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= STEEPEST:
        raise ValueError(
            f"schedule={schedule!r}: the part after the colon must be a number above 0 and at most {STEEPEST}"
        )
    return shape.multiplier, value


CORNER = 1e-6
"""Tolerance at both ends of a window: 1/3 is inside in float32 and in float64."""
STEEPEST = 1000
"""The largest parameter of a schedule. With it, scales are still far within the range of float32."""


def inside(progress: float | Tensor, start: float, stop: float) -> bool | Tensor:
    """Whether ``start <= progress <= stop``, with the tolerance :data:`CORNER`.

    Returns:
        A bool for a float, a bool tensor for a tensor.
    """
    return (progress >= start - CORNER) & (progress <= stop + CORNER)


def scale_at(schedule: str, scale: float, progress: Progress, start: float = 0.0, stop: float = 1.0) -> Progress:
    """γ(s) for a scale γ; 1 outside the window.

    Args:
        schedule: name of the schedule.
        scale: γ.
        progress: ``s``, in [0, 1].
        start: progress at which the window begins.
        stop: progress at which it ends.

    Returns:
        A float for a float, a tensor for a tensor.
    """
    return 1 + weight_at(schedule, scale - 1, progress, start, stop)


def weight_at(schedule: str, weight: float, progress: Progress, start: float = 0.0, stop: float = 1.0) -> Progress:
    """``w · m(s)`` for a weight that changes nothing at 0; 0 outside the window. See :func:`scale_at`."""
    multiplier, parameter = parse(schedule)
    weighed: Any = weight * multiplier(progress, parameter)
    within = inside(progress, start, stop)
    if isinstance(within, Tensor):
        return torch.where(within, weighed, torch.zeros_like(weighed))  # type: ignore[return-value]
    return weighed if within else 0.0  # type: ignore[return-value]
