"""Means, intervals and paired tests on per-item values: exact if there is a formula, by resampling otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textguide.support.checks import is_number, whole_number

from .resampling import bias_corrected_interval, resampled_means, resampled_ratios

Array = NDArray[np.float64]

EXACT_DISCORDANT = 1000
"""Up to this number of discordant pairs, McNemar's test is computed exactly."""


class Interval(NamedTuple):
    """A mean (or another figure) with its standard error and the ends of its confidence interval."""

    # The names are keys of the result files, so they do not change.

    mean: float
    stderr: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean of ``a − b`` over items, its interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """McNemar's test: ``b`` items are right only in the first setting, ``c`` only in the second."""

    b: int
    c: int
    p: float
    method: str


SELECT_ON = ("first-half", "second-half", "all")
"""The items that may be used to choose a scale."""


@dataclass(frozen=True)
class Selection:
    """The scale that did best on some items, and its result on the others.

    Args:
        label: the chosen scale.
        on: the items on which it was chosen: ``first-half``, ``second-half`` or ``all``.
        selected_value: its mean on those items, biased upwards by the choice.
        n_selected: number of those items.
        reported: its mean with interval on the other half; with ``on="all"`` on the items on which it was chosen.
        n_reported: number of items of the report.
        difference: the chosen scale minus the baseline on the reported items; None if there is no baseline or the
            baseline itself was chosen.
        warning: a caveat for the reader; empty if the reported figure is unbiased.
    """

    label: str
    on: str
    selected_value: float
    n_selected: int
    reported: Interval
    n_reported: int
    difference: PairedDifference | None = None
    warning: str = ""


def mean_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    method: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of per-item values with its standard error and confidence interval.

    The standard error is ``s/√n`` with ``s² = Σ(x − x̄)²/(n − 1)``; nan for a single item.

    Args:
        values: one number per item, (n,).
        confidence: coverage of the interval, between 0 and 1.
        method: ``wilson``, for values that are 0 or 1: ``(p + z²/2n ± z√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)``
            (Wilson 1927; recommended over ``p ± z·se`` by Brown, Cai and DasGupta 2001, doi
            10.1214/ss/1009213286). ``bootstrap``: bias-corrected and accelerated (Efron 1987, doi
            10.1080/01621459.1987.10478410). ``normal``: ``x̄ ± z·s/√n``. None: wilson if all values are 0 or 1,
            otherwise bootstrap.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there are no values, a value is not finite, or another argument is invalid.
    """
    x = _vector("values", values)
    z = normal_quantile(confidence)
    n = len(x)
    mean = float(x.mean())
    stderr = float(x.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    if method is None:
        method = "wilson" if is_binary(x) else "bootstrap"
    if method == "wilson":
        if not is_binary(x):
            raise ValueError("method='wilson' needs values that are 0 or 1; use 'bootstrap' or 'normal'")
        shrink = 1.0 + z * z / n
        centre = (mean + z * z / (2 * n)) / shrink
        half = z / shrink * math.sqrt(mean * (1.0 - mean) / n + z * z / (4.0 * n * n))
        # At p = 0 and p = 1 the ends are exactly 0 and 1, from which rounding would move them.
        low = 0.0 if mean == 0.0 else max(0.0, centre - half)
        high = 1.0 if mean == 1.0 else min(1.0, centre + half)
        return Interval(mean, stderr, low, high)
    if method == "normal":
        return Interval(mean, stderr, mean - z * stderr, mean + z * stderr)
    if method == "bootstrap":
        means = resampled_means(x, resamples, seed)
        return Interval(mean, stderr, *bias_corrected_interval(x, means, confidence))
    raise ValueError(f"method={method!r} must be 'wilson', 'bootstrap', 'normal' or None")


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> PairedDifference:
    """Mean difference ``a − b`` on the same items, its bootstrap interval, and a two-sided p-value.

    Items are resampled, so that the difficulty of an item, which both settings share, cancels. The interval is
    bias-corrected and accelerated. For the p-value the resampled means are shifted to the null hypothesis, a mean of
    0: ``p = (1 + #{|d* − d| ≥ |d|}) / (1 + resamples)`` (Efron and Tibshirani 1993, section 16.4). The smallest
    possible p-value is therefore ``1 / (1 + resamples)``.

    Args:
        a: one number per item, (n,).
        b: the same items under the other setting, (n,).
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.
        confidence: coverage of the interval.

    Raises:
        ValueError: the lengths differ, there are no values, or a value is not finite.
    """
    first, second = _pair(a, b)
    normal_quantile(confidence)  # checks the argument
    d = first - second
    mean = float(d.mean())
    means = resampled_means(d, resamples, seed)
    # Rounding may break a tie; with this slack it still counts as extreme, which errs on the conservative side.
    slack = 1e-9 * max(1e-300, float(np.abs(d).max()))
    extreme = int(np.count_nonzero(np.abs(means - mean) >= abs(mean) - slack))
    low, high = bias_corrected_interval(d, means, confidence)
    return PairedDifference(mean, low, high, (1 + extreme) / (1 + len(means)))


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """McNemar's test that two settings are right equally often, from the items on which they differ.

    If there is no difference, the number of items that are right only under the first setting (``b``) is
    Binomial(b + c, ½), with ``c`` the number of those that are right only under the second:
    ``p = min(1, 2 Σ_{k ≤ min(b, c)} C(b + c, k) / 2^(b + c))``. Above ``EXACT_DISCORDANT`` such items,
    ``(|b − c| − 1)²/(b + c)`` is compared with χ² with one degree of freedom (McNemar 1947, doi 10.1007/BF02295996,
    with the correction of Edwards 1948).

    Args:
        a: 0 or 1 per item, (n,).
        b: the same items under the other setting, (n,).

    Raises:
        ValueError: the lengths differ, there are no values, or a value is neither 0 nor 1.
    """
    first, second = _binary_pair(a, b)
    only_first = int(np.count_nonzero(first > second))
    only_second = int(np.count_nonzero(first < second))
    n = only_first + only_second
    fewer = min(only_first, only_second)
    if n <= EXACT_DISCORDANT:
        tail = sum(math.comb(n, k) for k in range(fewer + 1))
        return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n), "exact")
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return McNemar(only_first, only_second, math.erfc(math.sqrt(statistic / 2)), "chi-square")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple comparisons (Holm 1979), which bounds the chance of any false finding by α.

    The i-th smallest of m becomes ``max_{j ≤ i} min(1, (m − j + 1) p_(j))``. The order of the list is unchanged.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def perplexity_interval(
    nlls: ArrayLike,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    method: str = "bootstrap",
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The perplexity ``exp(Σ nll / Σ weight)`` with its standard error and confidence interval.

    The interval is computed for the rate ``r = Σ nll / Σ weight`` and then exponentiated. The standard error of the
    rate is that of a ratio, ``√(n/(n − 1) Σ (nll − r·weight)²) / Σ weight`` (Cochran 1977, section 6.3); the standard
    error of the perplexity is ``exp(r)`` times that.

    Args:
        nlls: negative log-likelihood per item in nats, (n,).
        weights: words, bytes or tokens per item, (n,), above 0; None: 1 per item.
        confidence: coverage of the interval.
        method: ``bootstrap`` resamples items and uses percentiles; ``normal`` is ``r ± z·se``.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the lengths differ, there are no items, a number is not finite, or a weight is not above 0.
    """
    nll = _vector("nlls", nlls)
    weight = np.ones_like(nll) if weights is None else _vector("weights", weights)
    if len(weight) != len(nll):
        raise ValueError(f"weights has {len(weight)} items and nlls {len(nll)}; pass one weight per item")
    if (weight <= 0).any():
        raise ValueError(f"weights[{int(np.argmax(weight <= 0))}] must be above 0")
    z = normal_quantile(confidence)
    n = len(nll)
    total = float(weight.sum())
    rate = float(nll.sum()) / total
    residuals = nll - rate * weight
    stderr = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total if n > 1 else math.nan
    if method == "normal":
        low = rate - z * stderr
        high = rate + z * stderr
    elif method == "bootstrap":
        tail = (1 - confidence) / 2
        low, high = np.quantile(resampled_ratios(nll, weight, resamples, seed), [tail, 1 - tail]).tolist()
    else:
        raise ValueError(f"method={method!r} must be 'bootstrap' or 'normal'")
    return Interval(_exp(rate), _exp(rate) * stderr, _exp(low), _exp(high))


def calibration_bins(confidences: ArrayLike, correct: ArrayLike, bins: int = 15) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of items in each of ``bins`` equal parts of [0, 1], without empty parts.

    Args:
        confidences: the probability of the chosen answer, (n,), in [0, 1].
        correct: whether the answer was right, (n,), 0 or 1.
        bins: number of parts; a confidence on a border belongs to the part below.

    Raises:
        ValueError: the lengths differ, a value lies outside its range, or ``bins`` is below 1.
    """
    confidence, right = _pair(confidences, correct, ("confidences", "correct"))
    if not is_binary(right):
        raise ValueError("correct must hold 0 or 1 per item")
    if confidence.min() < 0 or confidence.max() > 1:
        raise ValueError(f"confidences must lie in [0, 1]; they range from {confidence.min()} to {confidence.max()}")
    bins = whole_number("bins", bins, 1)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    confidence_sums = np.bincount(index, weights=confidence, minlength=bins)
    right_sums = np.bincount(index, weights=right, minlength=bins)
    return [(float(confidence_sums[i] / n), float(right_sums[i] / n), int(n)) for i, n in enumerate(counts) if n]


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """``Σ_m |B_m|/n · |accuracy(B_m) − confidence(B_m)|`` over equal parts of [0, 1] (Guo et al., arXiv
    1706.04599, Eq. 3). Arguments and errors as in :func:`calibration_bins`."""
    parts = calibration_bins(confidences, correct, bins)
    return sum(n * abs(accuracy - confidence) for confidence, accuracy, n in parts) / sum(n for *_, n in parts)


def flip_matrix(plain: ArrayLike, guided: ArrayLike) -> NDArray[np.int64]:
    """Number of items by their result under ``plain`` (row) and under ``guided`` (column), (2, 2): 0 wrong, 1 right.

    Raises:
        ValueError: the lengths differ, there are no values, or a value is neither 0 nor 1.
    """
    first, second = _binary_pair(plain, guided)
    return np.bincount((2 * first + second).astype(int), minlength=4).reshape(2, 2)


def select_scale(
    per_item: Mapping[str, ArrayLike],
    on: str = "first-half",
    higher_is_better: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
    baseline: str | None = None,
) -> Selection:
    """Choose the label with the best mean on some items, and report it on the others.

    The best of several means is biased upwards on the items on which it was chosen, so the report uses the other half.
    The first half has ``n // 2`` items. If means are equal, the first label is chosen.

    Args:
        per_item: for each label one number per item; the same items in the same order.
        on: the items on which the choice is made: ``first-half``, ``second-half`` or ``all``.
        higher_is_better: whether a larger mean is better.
        confidence: coverage of the reported interval.
        seed: seed of the bootstrap.
        baseline: the label that the chosen one is compared with on the reported items.

    Raises:
        ValueError: ``on`` is unknown, there are no labels, the lengths differ, or a half would be empty.
    """
    if on not in SELECT_ON:
        raise ValueError(f"select_on={on!r} must be one of {', '.join(SELECT_ON)}")
    if not per_item:
        raise ValueError("per_item={} holds no label; pass at least one")
    values = {label: _vector(f"per_item[{label!r}]", column) for label, column in per_item.items()}
    lengths = {label: len(column) for label, column in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"per_item must hold the same items for every label; the numbers of items are {lengths}")
    n = next(iter(lengths.values()))
    if on != "all" and n < 2:
        raise ValueError(f"select_on={on!r} needs 2 items or more, there are {n}; use select_on='all'")
    half = n // 2
    chosen_from = {"first-half": slice(0, half), "second-half": slice(half, n), "all": slice(0, n)}[on]
    rest = {"first-half": slice(half, n), "second-half": slice(0, half), "all": slice(0, n)}[on]
    sign = 1 if higher_is_better else -1
    means = {label: float(column[chosen_from].mean()) for label, column in values.items()}
    label = max(means, key=lambda name: sign * means[name])
    warning = ""
    if on == "all" and len(values) > 1:
        warning = (
            f"{label} was chosen and is reported on the same {n} items, which flatters it; "
            "choose on one half (select_on='first-half') for an honest figure"
        )
    chosen = values[label][chosen_from]
    reported = values[label][rest]
    interval = mean_interval(reported, confidence, seed=seed)
    difference = None
    if baseline in values and baseline != label:
        difference = paired_bootstrap(reported, values[baseline][rest], seed=seed, confidence=confidence)
    return Selection(label, on, means[label], len(chosen), interval, len(reported), difference, warning)


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1."""
    x = np.asarray(values)
    return bool(((x == 0) | (x == 1)).all())


def _vector(name: str, values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name} must be a non-empty list of numbers, one per item; its shape is {x.shape}")
    finite = np.isfinite(x)
    if not finite.all():
        index = int(np.argmin(finite))
        raise ValueError(f"{name}[{index}]={x[index]} must be a finite number")
    return x


def _pair(a: ArrayLike, b: ArrayLike, names: tuple[str, str] = ("a", "b")) -> tuple[Array, Array]:
    first = _vector(names[0], a)
    second = _vector(names[1], b)
    if len(first) != len(second):
        raise ValueError(
            f"{names[0]} has {len(first)} items and {names[1]} {len(second)}; both must hold the same items"
        )
    return first, second


def _binary_pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _pair(a, b)
    for name, x in (("a", first), ("b", second)):
        if not is_binary(x):
            raise ValueError(f"{name} must hold 0 or 1 per item; use paired_bootstrap for other values")
    return first, second


def normal_quantile(confidence: Any) -> float:
    """z of a two-sided normal interval.

    Raises:
        ValueError: ``confidence`` is not a number between 0 and 1.
    """
    if not is_number(confidence) or not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1, for instance 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _exp(x: float) -> float:
    # math.exp raises OverflowError above about 709.78.
    return math.exp(x) if x < 709 else math.inf
