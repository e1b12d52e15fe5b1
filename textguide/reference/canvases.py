"""The oracles of predictors of canvases: each rule as the plainest loop, one row and one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

from ..guidance import schedules
from ..guidance.canvas_guidance import CanvasReweighting
from .decoding import Distribution, normalized
from .diffusion import Reweigh

Judge = Callable[[Sequence[int]], float]
"""Token ids of a row, masks among them, to ``log f``."""


def share_at(guidance: CanvasReweighting, s: float) -> float:
    """What the fields are multiplied by."""
    return schedules.weight_at(guidance.schedule, 1.0, s, guidance.start, guidance.stop)


def classified(guidance: CanvasReweighting, judge: Judge, top_k: int | None = None) -> Reweigh:
    """D-CBG: ``p(v) f(row with v)^γ`` on the likeliest tokens."""

    def reweigh(distribution: Distribution, row: list[int], place: int, s: float) -> Distribution:
        power = guidance.weight * share_at(guidance, s)
        if power == 0.0:
            return distribution
        best = sorted(range(len(distribution)), key=lambda v: (-distribution[v], v))[:top_k]
        scores = [-math.inf] * len(distribution)
        for v in best:
            if distribution[v] > -math.inf:
                scores[v] = distribution[v] + power * judge([v if j == place else t for j, t in enumerate(row)])
        return normalized(scores)

    return reweigh


def to_first_order(
    guidance: CanvasReweighting, judge: Callable[[Sequence[Sequence[float]]], float], mask: int
) -> Reweigh:
    """The same with ``log f`` to first order, its derivative by differences.

    Args:
        judge: a table, one row of numbers a position, to ``log f``.
    """

    def reweigh(distribution: Distribution, row: list[int], place: int, s: float) -> Distribution:
        power = guidance.weight * share_at(guidance, s)
        table = [[float(v == token) for v in range(len(distribution))] for token in row]

        def slope(v: int, step: float = 1e-5) -> float:
            moved = []
            for sign in (1, -1):
                changed = [list(one) for one in table]
                changed[place][v] += sign * step
                moved.append(judge(changed))
            return (moved[0] - moved[1]) / (2 * step)

        of_mask = slope(mask)
        return normalized(
            [p if p == -math.inf else p + power * (slope(v) - of_mask) for v, p in enumerate(distribution)]
        )

    return reweigh


def of_every_text(
    guidance: CanvasReweighting, judge: Judge, estimate: Callable[[Sequence[int]], Mapping[int, Distribution]]
) -> Reweigh:
    """TFG over every completion: ``Σ_x p(x) f(x)^ρ [x has v]``.

    Args:
        estimate: the distributions of the masks that are estimated, by position, from the row.
    """

    def reweigh(distribution: Distribution, row: list[int], place: int, s: float) -> Distribution:
        power = guidance.weight * share_at(guidance, s)
        if power == 0.0:
            return distribution
        masks = estimate(row)
        places = list(masks)
        total = [0.0] * len(distribution)
        allowed = [[v for v, p in enumerate(masks[j]) if p > -math.inf] for j in places]
        for tokens in product(*allowed):
            filled = dict(zip(places, tokens, strict=True))
            chance = sum(masks[j][v] for j, v in filled.items())
            text = [filled.get(j, token) for j, token in enumerate(row)]
            total[filled[place]] += math.exp(chance + power * judge(text))
        return normalized([math.log(t) if t > 0 else -math.inf for t in total])

    return reweigh
