"""Multiple choice without the bias of the words that name the classes (arXiv 2309.04992)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textguide.tasks import selection

METRIC = "acc_prior_matched"


@dataclass(frozen=True)
class PriorMatched:
    """What prior matching does to one task.

    Args:
        right: whether the likeliest class after prior matching is the right one, 0 or 1 an item.
        prior: how much of the model's belief each class has on average before it, by the class's words.
        weights: log-weight of each class, by the class's words.
    """

    right: NDArray[np.float64]
    prior: dict[str, float]
    weights: dict[str, float]


def prior_matched(samples: Sequence[Mapping[str, Any]]) -> PriorMatched | None:
    """Prior matching on lm-eval's samples of a task; None where its items do not share their classes.

    The weights come from all items' likelihoods, without their labels.

    Args:
        samples: one an item: ``arguments`` (context and class words for every class), ``filtered_resps``, ``target``.
    """
    first = _classes(samples[0]) if samples else None
    if first is None or len(set(first)) < 2:
        return None
    scores, targets = [], []
    for sample in samples:
        answers, target = sample.get("filtered_resps", ()), _target(sample.get("target"))
        if _classes(sample) != first or len(answers) != len(first) or target is None or target >= len(first):
            return None
        scores.append([float(answer[0]) for answer in answers])
        targets.append(target)
    if not all(math.isfinite(score) for row in scores for score in row):
        return None
    log_probs = torch.tensor(scores, dtype=torch.float64)
    try:
        weights = selection.matched_prior(log_probs, tolerance=1e-6)
    except ValueError:  # items so sure of one class that no finite weights balance them
        return None
    chosen = selection.reweigh(torch.log_softmax(log_probs, -1), weights).argmax(-1)
    prior = selection.class_prior(log_probs)
    return PriorMatched(
        right=(chosen.numpy() == np.asarray(targets)).astype(np.float64),
        prior=dict(zip(first, prior.tolist(), strict=True)),
        weights=dict(zip(first, weights.tolist(), strict=True)),
    )


def _classes(sample: Mapping[str, Any]) -> list[str] | None:
    arguments = sample.get("arguments")
    if not isinstance(arguments, (list, tuple)) or not all(
        isinstance(a, (list, tuple)) and len(a) == 2 for a in arguments
    ):
        return None
    return [str(ending) for _, ending in arguments]


def _target(value: Any) -> int | None:
    try:
        number = int(str(value))
    except ValueError:
        return None
    return number if number >= 0 else None
