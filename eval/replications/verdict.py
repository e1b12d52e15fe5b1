"""The verdict on a claim, by rule: from per-item values, the smallest difference that counts, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..statistics.intervals import holm, paired_bootstrap

VERDICTS = {
    "supported": "a difference of at least the smallest that counts, in the direction claimed, beyond chance",
    "weaker": "a difference in the direction claimed, beyond chance, below the smallest that counts",
    "not seen": "no difference beyond chance, and one that counts is outside the interval",
    "opposite": "a difference against the direction claimed, beyond chance",
    "undecided": "neither: more items would be needed",
}
"""Each verdict, and what it says."""

LEVEL = 0.05


@dataclass(frozen=True)
class Effect:
    """Tested minus baseline, on the same items.

    Args:
        tested: mean under the method.
        baseline: mean without it.
        difference: of the two.
        low: lower end of the 95% interval (paired bootstrap, bias-corrected and accelerated).
        high: upper end.
        p: two-sided.
        n: items.
    """

    tested: float
    baseline: float
    difference: float
    low: float
    high: float
    p: float
    n: int


def effect(tested: ArrayLike, baseline: ArrayLike, seed: int = 0) -> Effect:
    """Compare per-item values.

    Raises:
        ValueError: the lengths differ, there are no values, or one is not finite.
    """
    first, second = np.asarray(tested, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    found = paired_bootstrap(first, second, seed=seed)
    return Effect(float(first.mean()), float(second.mean()), *found, n=len(first))


def verdict(found: Effect, direction: str, least: float, p_holm: float) -> str:
    """One of :data:`VERDICTS`.

    For ``higher`` and ``lower``, with the difference counted in the direction claimed: *supported* where it is beyond
    chance (``p_holm`` below .05 and the interval on one side of 0) and at least ``least``; *weaker* where it is beyond
    chance and smaller; *opposite* where it is beyond chance on the other side; *not seen* where it is not beyond chance
    and the interval ends below ``least``; else *undecided*.

    For ``same``: *supported* where the whole interval lies within ``least`` of 0; *opposite* where it lies outside
    as a whole and the difference is beyond chance; else *undecided*. There is no *weaker* and no *not seen*.

    Args:
        found: the comparison.
        direction: ``higher``, ``lower`` or ``same``.
        least: the smallest difference that counts, above 0.
        p_holm: the p of ``found``, adjusted for the family.
    """
    if direction == "same":
        if -least < found.low and found.high < least:
            return "supported"
        outside = found.low >= least or found.high <= -least
        return "opposite" if outside and p_holm < LEVEL else "undecided"
    difference, low, high = found.difference, found.low, found.high
    if direction == "lower":
        difference, low, high = -difference, -high, -low
    if p_holm < LEVEL and low > 0:
        return "supported" if difference >= least else "weaker"
    if p_holm < LEVEL and high < 0:
        return "opposite"
    return "not seen" if high < least else "undecided"


def adjusted(p_values: Mapping[str, float], family: int) -> dict[str, float]:
    """Holm's p over a family of ``family`` claims, of which these were run; the others count as 1.

    A claim that is run later can only lower its p from 1, so it takes no verdict that was beyond chance away.

    Raises:
        ValueError: more were run than the family has.
    """
    if len(p_values) > family:
        raise ValueError(f"family={family} is smaller than the {len(p_values)} claims that were run")
    values = [*p_values.values(), *[1.0] * (family - len(p_values))]
    return dict(zip(p_values, holm(values), strict=False))


def judged(run: Mapping[str, Any], p_holm: float, family: int, done: int) -> dict[str, Any]:
    """What ``verdict.json`` holds, from what ``run.json`` does."""
    found = Effect(**run["effect"])
    return {
        "claim": run["claim"],
        "digest": run["digest"],
        "verdict": verdict(found, run["direction"], run["least"], p_holm),
        "direction": run["direction"],
        "least": run["least"],
        **run["effect"],
        "p_holm": p_holm,
        "family": {"claims": family, "run": done},
    }
