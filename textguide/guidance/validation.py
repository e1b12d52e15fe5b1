"""Checks of fields that several guidances share."""

from __future__ import annotations

import math
from typing import Any


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
