"""Comparing samples with distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def chi_square(observed: Mapping[Any, float], distribution: Mapping[Any, float], count: float) -> float:
    """The p-value of Pearson's test; small cells are pooled. 0 where something impossible was seen."""
    if any(amount > 0 and distribution.get(item, 0.0) == 0 for item, amount in observed.items()):
        return 0.0
    cells, rest = [], [0.0, 0.0]
    for item, probability in distribution.items():
        if probability * count < 5:
            rest = [rest[0] + observed.get(item, 0.0), rest[1] + probability * count]
        else:
            cells.append((observed.get(item, 0.0), probability * count))
    if rest[1] > 0:
        cells.append((rest[0], max(rest[1], 1e-9)))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    return survival(statistic, len(cells) - 1)


def survival(statistic: float, degrees: int) -> float:
    """P(chi-square with that many degrees of freedom exceeds the statistic)."""
    import torch

    if degrees < 1:
        return 1.0
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def z_score(values: Sequence[float], mean: float) -> float:
    """How many standard errors the average of ``values`` lies from ``mean``."""
    average = sum(values) / len(values)
    variance = sum((value - average) ** 2 for value in values) / (len(values) - 1)
    return (average - mean) / math.sqrt(max(variance, 1e-30) / len(values))
