"""Two settings on the same items: which items they share, and how they differ there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .intervals import holm, is_binary, mcnemar, paired_bootstrap


@dataclass(frozen=True)
class Comparison:
    """One setting against another on the items that both have.

    Args:
        task: name of the task.
        metric: name of the metric.
        label: the setting.
        baseline: the setting that it is compared with.
        n: items that were compared.
        difference: mean of ``label − baseline``; for perplexities in nats an item, so that below 0 is better.
        low: lower end of its confidence interval (paired bootstrap).
        high: upper end.
        p: two-sided p of the paired bootstrap.
        gained: items right under ``label`` alone; None where items are not right or wrong.
        lost: items right under ``baseline`` alone.
        p_mcnemar: p of McNemar's test.
        p_holm: McNemar's p, else the bootstrap's, adjusted for the number of settings that were compared.
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
    """Paired bootstrap, and McNemar's test where all values are 0 or 1.

    Args:
        values: one number an item, (n,).
        baseline_values: the same items under the setting to compare with, (n,).
        task: goes into the result, as do ``metric``, ``label`` and ``baseline``.
        confidence: coverage of the interval.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ValueError: the lengths differ, there are no values, or one is not finite.
    """
    difference = paired_bootstrap(values, baseline_values, resamples, seed, confidence)
    comparison = Comparison(task, metric, label, baseline, len(np.asarray(values)), *difference)
    if is_binary(values) and is_binary(baseline_values):
        test = mcnemar(values, baseline_values)
        comparison = replace(comparison, gained=test.b, lost=test.c, p_mcnemar=test.p)
    return comparison


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with ``p_holm``: within one task and metric, over all settings."""
    adjusted = list(comparisons)
    families: dict[tuple[str, str], list[int]] = {}
    for index, comparison in enumerate(comparisons):
        families.setdefault((comparison.task, comparison.metric), []).append(index)
    for members in families.values():
        p_values = [comparisons[i].p if comparisons[i].p_mcnemar is None else comparisons[i].p_mcnemar for i in members]
        for index, p in zip(members, holm([float(p) for p in p_values if p is not None]), strict=True):
            adjusted[index] = replace(adjusted[index], p_holm=p)
    return adjusted


def shared_items(
    ids: Sequence[str] | None, other_ids: Sequence[str] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """Where in two lists of items the items stand that both have, in the order of the first.

    Args:
        ids: what identifies an item, a hash of its content for instance; None where it is not known.
        other_ids: the same for the other list.

    Returns:
        Positions in the first list and in the second; None where nothing says that the items are the same.
    """
    if not ids or not other_ids:
        return None
    if list(ids) == list(other_ids):
        positions = np.arange(len(ids))
        return positions, positions
    where = {item: index for index, item in enumerate(other_ids)}
    if len(where) < len(other_ids) or len(set(ids)) < len(ids):
        return None  # an item that is there twice has no one partner
    pairs = [(index, where[item]) for index, item in enumerate(ids) if item in where]
    if not pairs:
        return None
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)
