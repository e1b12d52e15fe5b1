"""Checks of fields that several guidances share."""

from __future__ import annotations

import math
from typing import Any

LARGEST = 1e6
"""The largest factor of a log-probability. Differences of log-probabilities reach some thousands of nats; times this
and the steepest schedule they still lie far inside float32, whose largest number is 3.4e38."""


def finite(name: str, value: Any) -> float:
    """``value`` as a float.

    Raises:
        ValueError: it is not a finite number; the message names the argument ``name``.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number + 0.0  # makes −0 a 0: equal guidances have equal fingerprints
    raise ValueError(f"{name}={value!r} must be a finite number")


def factor(name: str, value: Any) -> float:
    """``value`` as a float that log-probabilities may be multiplied by.

    Raises:
        ValueError: it is not a finite number within ±:data:`LARGEST`; the message names the argument ``name``.
    """
    number = finite(name, value)
    if abs(number) > LARGEST:
        raise ValueError(
            f"{name}={value!r} lies outside ±{LARGEST:g}, where products with log-probabilities may leave float32; "
            "use a smaller one"
        )
    return number


def whole(name: str, value: Any, least: int | None = None) -> int:
    """``value`` as it is.

    Raises:
        ValueError: it is no whole number, or one below ``least``; the message names the argument ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise ValueError(f"{name}={value!r} must be a whole number{'' if least is None else f' of {least} or more'}")
    return value


def window(start: Any, stop: Any) -> tuple[float, float]:
    """The progress at which a guidance begins and ends to act.

    Raises:
        ValueError: it is no part of [0, 1].
    """
    start, stop = finite("start", start), finite("stop", stop)
    if not 0.0 <= start <= stop <= 1.0:
        raise ValueError(f"start={start} and stop={stop} must satisfy 0 <= start <= stop <= 1")
    return start, stop
