"""Options of sampling: which of transformers' names make a run draw, and which values they may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_sampling(options: Mapping[str, Any]) -> None:
    """Refuse values of sampling options that transformers would ignore or fail on late."""
    bounds: dict[str, tuple[Any, str]] = {
        "temperature": (lambda x: x > 0, "above 0; leave it out for greedy decoding"),
        "top_p": (lambda x: 0 < x <= 1, "in (0, 1]"),
        "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
        "top_k": (lambda x: x >= 0 and x == int(x), "a whole number of 0 or more; 0 keeps every token"),
        "repetition_penalty": (lambda x: x > 0, "above 0; 1 changes nothing"),
    }
    for name, (holds, meaning) in bounds.items():
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value)):
            raise ValueError(f"{name}={value!r} must be {meaning}")
