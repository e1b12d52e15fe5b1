"""What a test of a method registers: its oracle, settings for the conformance matrix, and its neutral settings."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from textguide.guidance import Guidance
from textguide.reference import decoding

SETTINGS: dict[str, Guidance] = {}
NEUTRAL: dict[str, Guidance] = {}


def oracle(name: str) -> Callable[[Any], Any]:
    """Puts the plain reading of a rule, ``(guidance, logps, progress) -> log-probabilities``, among the oracles."""

    def register(function: Any) -> Any:
        decoding.COMBINE[name] = function
        return function

    return register


def settings(neutral: Guidance, *others: Guidance) -> None:
    """Settings for the matrix: one that changes nothing, and some that do."""
    NEUTRAL[neutral.name] = neutral
    for number, guidance in enumerate(others):
        SETTINGS[f"{guidance.name}-{number}" if number else guidance.name] = guidance


def mixed(cond: list[float], other: list[float], scale: float) -> list[float]:
    """``lo + γ (lc − lo)`` with the −∞ rule."""
    both = zip(cond, other, strict=True)
    return [c if c == -INF or o == -INF else o + scale * (c - o) for c, o in both]


INF = float("inf")


def collect() -> None:
    """Import every test of a method, so that all have registered."""
    import tests.guidance

    for module in pkgutil.walk_packages(tests.guidance.__path__, "tests.guidance."):
        if module.name.rpartition(".")[2].startswith("test_"):
            importlib.import_module(module.name)
