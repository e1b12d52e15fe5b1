"""Two settings on the same items: the items that they share, and their difference on these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .intervals import holm, is_binary, mcnemar, paired_bootstrap


@dataclass(frozen=True)
class Comparison:
    """One setting compared with another on the items that both have.

    Args:
        task: name of the task.
        metric: name of the metric.
        label: the setting.
        baseline: the setting that it is compared with.
        n: number of items that were compared.
        difference: mean of ``label − baseline``; for perplexities in nats per item, so that below 0 is better.
        low: lower end of its confidence interval (paired bootstrap).
        high: upper end.
        p: two-sided p-value of the paired bootstrap.
        gained: items that are right only under ``label``; None if items are not right or wrong.
        lost: items that are right only under ``baseline``.
        p_mcnemar: p-value of McNemar's test.
        p_holm: the p-value of McNemar's test (without one, that of the bootstrap), adjusted for the number of settings
            that were compared.
    """

    task: str
    metric: str
    label: str
    baseline: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    gained: int | None = None
    lost: int | None = None
    p_mcnemar: float | None = None
    p_holm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare_items(
    values: ArrayLike,
    baseline_values: ArrayLike,
    *,
    task: str = "",
    metric: str = "",
    label: str = "",
    baseline: str = "",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two settings by the paired bootstrap, and by McNemar's test if all values are 0 or 1.

    Args:
        values: one number per item, (n,).
        baseline_values: the same items under the setting to compare with, (n,).
        task, metric, label, baseline: names, copied into the result.
        confidence: coverage of the interval.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the lengths differ, there are no values, or a value is not finite.
    """
    difference = paired_bootstrap(values, baseline_values, resamples, seed, confidence)
    comparison = Comparison(task, metric, label, baseline, len(np.asarray(values)), *difference)
    if is_binary(values) and is_binary(baseline_values):
        test = mcnemar(values, baseline_values)
        comparison = replace(comparison, gained=test.b, lost=test.c, p_mcnemar=test.p)
    return comparison


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with ``p_holm``, adjusted over all settings of one task and metric."""
    adjusted = list(comparisons)
    families: dict[tuple[str, str], list[int]] = {}
    for index, comparison in enumerate(comparisons):
        families.setdefault((comparison.task, comparison.metric), []).append(index)
    for members in families.values():
        p_values = []
        for index in members:
            comparison = comparisons[index]
            p_values.append(comparison.p if comparison.p_mcnemar is None else comparison.p_mcnemar)
        for index, p in zip(members, holm(p_values), strict=True):
            adjusted[index] = replace(adjusted[index], p_holm=p)
    return adjusted


def shared_items(
    ids: Sequence[str] | None, other_ids: Sequence[str] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """Positions of the items that two lists share, in the order of the first list.

    Args:
        ids: identifiers of the items, such as a hash of their content; None if they are not known.
        other_ids: the same for the other list.

    Returns:
        Positions in the first list and in the second; None if no items are known to be the same.
    """
    if not ids or not other_ids:
        return None
    if list(ids) == list(other_ids):
        positions = np.arange(len(ids))
        return positions, positions
    positions_by_id = {item: index for index, item in enumerate(other_ids)}
    if len(positions_by_id) < len(other_ids) or len(set(ids)) < len(ids):
        return None  # an item that occurs twice does not have a unique partner
    pairs = [(index, positions_by_id[item]) for index, item in enumerate(ids) if item in positions_by_id]
    if not pairs:
        return None
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)
