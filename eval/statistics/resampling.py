"""The bootstrap: means and ratios of resampled items, and intervals from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from textguide.support.checks import whole_number

Array = NDArray[np.float64]

_CHUNK = 4_000_000
"""Items drawn at a time, which limits memory to some tens of MiB."""
_FEW_VALUES = 64
"""Up to this number of distinct values, counts are drawn instead of items."""


def resampled_means(x: Array, resamples: int, seed: int) -> Array:
    """Means of ``resamples`` samples of ``len(x)`` items drawn from ``x`` with replacement.

    If ``x`` has few distinct values, as accuracies and their differences do, the number of times that each value is
    drawn has a multinomial distribution: drawing these counts is the same experiment at a thousandth of the cost.

    Raises:
        ValueError: ``resamples`` is below 1.
    """
    resamples = whole_number("resamples", resamples, 1)
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(x, return_counts=True)
    if len(distinct) <= _FEW_VALUES:
        drawn = generator.multinomial(len(x), counts / len(x), size=resamples)
        return drawn @ distinct / len(x)
    return np.concatenate([x[rows].mean(axis=1) for rows in _draws(generator, len(x), resamples)])


def resampled_ratios(numerator: Array, denominator: Array, resamples: int, seed: int) -> Array:
    """``Σ numerator / Σ denominator`` over ``resamples`` samples of items drawn with replacement.

    Raises:
        ValueError: ``resamples`` is below 1.
    """
    resamples = whole_number("resamples", resamples, 1)
    generator = np.random.default_rng(seed)
    ratios = []
    for rows in _draws(generator, len(numerator), resamples):
        ratios.append(numerator[rows].sum(axis=1) / denominator[rows].sum(axis=1))
    return np.concatenate(ratios)


def bias_corrected_interval(x: Array, means: Array, confidence: float) -> tuple[float, float]:
    """The bias-corrected and accelerated interval for the mean of ``x`` (Efron 1987).

    Its ends are the quantiles ``Φ(z0 + (z0 + z)/(1 − a(z0 + z)))`` of the resampled ``means``, with ``z0`` from the
    share of them below the mean, and ``a = Σd³ / 6(Σd²)^{3/2}``, ``d = x − x̄``.
    """
    mean = float(x.mean())
    d = x - mean
    spread = float(d @ d)
    if spread == 0.0:
        return mean, mean
    normal = NormalDist()
    acceleration = float((d**3).sum()) / (6.0 * spread**1.5)
    # Ties count half, because means of few distinct values are often equal to the mean itself.
    near = 1e-12 * max(abs(mean), math.sqrt(spread / len(x)))
    below = np.count_nonzero(means < mean - near) + np.count_nonzero(np.abs(means - mean) <= near) / 2
    share = min(max(float(below) / len(means), 0.5 / len(means)), 1 - 0.5 / len(means))
    shift = normal.inv_cdf(share)
    ends = []
    for z in (normal.inv_cdf((1 - confidence) / 2), normal.inv_cdf((1 + confidence) / 2)):
        moved = shift + z
        ends.append(normal.cdf(shift + moved / (1 - acceleration * moved)))
    low, high = np.quantile(means, ends).tolist()
    return low, high


def _draws(generator: np.random.Generator, n: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Index arrays (rows, n) that together have ``resamples`` rows."""
    while resamples:
        rows = min(resamples, max(1, _CHUNK // n))
        yield generator.integers(0, n, size=(rows, n))
        resamples -= rows
