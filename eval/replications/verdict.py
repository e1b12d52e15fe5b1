"""The verdict on a claim, by a rule: values per item, the smallest difference that counts, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..statistics.intervals import holm, paired_bootstrap

VERDICTS = {
    "supported": "a significant difference in the claimed direction, of at least the smallest that counts",
    "weaker": "a significant difference in the claimed direction, below the smallest that counts",
    "not seen": "no significant difference, and the interval excludes one that counts",
    "opposite": "a significant difference against the claimed direction",
    "undecided": "none of these: more items are needed",
}
"""Each verdict and its meaning."""

LEVEL = 0.05
"""Level of significance."""


@dataclass(frozen=True)
class Effect:
    """Tested minus baseline, on the same items.

    Args:
        tested: mean under the method.
        baseline: mean without it.
        difference: difference of the means.
        low: lower end of the 95% interval (paired bootstrap, bias-corrected and accelerated).
        high: upper end.
        p: two-sided p-value.
        n: number of items.
    """

    tested: float
    baseline: float
    difference: float
    low: float
    high: float
    p: float
    n: int


def effect(tested: ArrayLike, baseline: ArrayLike, seed: int = 0) -> Effect:
    """Compare values per item.

    Args:
        tested: one number per item under the method.
        baseline: the same items without it.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the lengths differ, there are no values, or a value is not finite.
    """
    first = np.asarray(tested, dtype=np.float64)
    second = np.asarray(baseline, dtype=np.float64)
    difference = paired_bootstrap(first, second, seed=seed)
    return Effect(float(first.mean()), float(second.mean()), *difference, n=len(first))


def verdict(effect: Effect, direction: str, least: float, p_holm: float) -> str:
    """One of :data:`VERDICTS`.

    A difference is significant if ``p_holm`` is below .05 and the interval lies on one side of 0. For ``higher`` and
    ``lower``, the difference is counted in the claimed direction: *supported* if it is significant and at least
    ``least``; *weaker* if it is significant and smaller; *opposite* if it is significant in the other direction; *not
    seen* if it is not significant and the interval ends below ``least``; otherwise *undecided*.

    For ``same``: *supported* if the whole interval lies within ``least`` of 0; *opposite* if the whole interval lies
    outside and the difference is significant; otherwise *undecided*.

    Args:
        effect: the comparison.
        direction: ``higher``, ``lower`` or ``same``.
        least: the smallest difference that counts, above 0.
        p_holm: the p-value of ``effect``, adjusted for the family of claims.
    """
    if direction == "same":
        if -least < effect.low and effect.high < least:
            return "supported"
        outside = effect.low >= least or effect.high <= -least
        return "opposite" if outside and p_holm < LEVEL else "undecided"
    if direction == "lower":
        difference, low, high = -effect.difference, -effect.high, -effect.low
    else:
        difference, low, high = effect.difference, effect.low, effect.high
    if p_holm < LEVEL and low > 0:
        return "supported" if difference >= least else "weaker"
    if p_holm < LEVEL and high < 0:
        return "opposite"
    return "not seen" if high < least else "undecided"


def adjusted(p_values: Mapping[str, float], family: int) -> dict[str, float]:
    """Holm's adjusted p-values over a family of claims; claims that have not been run count as 1.

    The p-value of a claim that is run later can only decrease from 1, so it does not change significant verdicts.

    Args:
        p_values: of the claims that have been run, by name.
        family: number of claims.

    Raises:
        ValueError: more claims have been run than the family has.
    """
    if len(p_values) > family:
        raise ValueError(f"family={family} is smaller than the {len(p_values)} claims that have been run")
    values = [*p_values.values(), *[1.0] * (family - len(p_values))]
    return dict(zip(p_values, holm(values), strict=False))


def verdict_record(run: Mapping[str, Any], p_holm: float, family: int, done: int) -> dict[str, Any]:
    """The content of ``verdict.json``.

    Args:
        run: the content of ``run.json``.
        p_holm: its p-value, adjusted for the family of claims.
        family: number of claims.
        done: number of claims that have been run.
    """
    return {
        "claim": run["claim"],
        "digest": run["digest"],
        "verdict": verdict(Effect(**run["effect"]), run["direction"], run["least"], p_holm),
        "direction": run["direction"],
        "least": run["least"],
        **run["effect"],
        "p_holm": p_holm,
        "family": {"claims": family, "run": done},
    }
