"""Multiple choice without the model's bias towards the words of some classes (arXiv 2309.04992)."""

from __future__ import annotations

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
    """The effect of prior matching on one task.

    Args:
        right: whether the most likely class after prior matching is the right one, 0 or 1 per item.
        prior: mean probability of each class before prior matching, by the words of the class.
        weights: log-weight of each class, by the words of the class.
    """

    right: NDArray[np.float64]
    prior: dict[str, float]
    weights: dict[str, float]


def prior_matched(samples: Sequence[Mapping[str, Any]]) -> PriorMatched | None:
    """Match the prior on lm-eval's samples of a task.

    The weights are computed from the likelihoods of all items, without their labels.

    Args:
        samples: one per item: ``arguments`` (context and words of every class), ``filtered_resps``, ``target``.

    Returns:
        The effect; None if the items do not have the same classes, or no finite weights balance the classes.
    """
    classes = _classes(samples[0]) if samples else None
    if classes is None or len(set(classes)) < 2:
        return None
    scores = []
    targets = []
    for sample in samples:
        answers = sample.get("filtered_resps", ())
        target = _target(sample.get("target"))
        if _classes(sample) != classes or len(answers) != len(classes) or target is None or target >= len(classes):
            return None
        scores.append([float(answer[0]) for answer in answers])
        targets.append(target)
    log_probs = torch.tensor(scores, dtype=torch.float64)
    if not bool(torch.isfinite(log_probs).all()):
        return None
    try:
        weights = selection.matched_prior(log_probs, tolerance=1e-6)
    except ValueError:  # the model is so sure of one class that no finite weights balance the classes
        return None
    chosen = selection.reweigh(torch.log_softmax(log_probs, -1), weights).argmax(-1)
    prior = selection.class_prior(log_probs)
    return PriorMatched(
        right=(chosen.numpy() == np.asarray(targets)).astype(np.float64),
        prior=dict(zip(classes, prior.tolist(), strict=True)),
        weights=dict(zip(classes, weights.tolist(), strict=True)),
    )


def _classes(sample: Mapping[str, Any]) -> list[str] | None:
    """The words of the classes; None if the requests are not pairs of a context and a continuation."""
    arguments = sample.get("arguments")
    if not isinstance(arguments, (list, tuple)):
        return None
    if not all(isinstance(argument, (list, tuple)) and len(argument) == 2 for argument in arguments):
        return None
    return [str(continuation) for _, continuation in arguments]


def _target(value: Any) -> int | None:
    try:
        number = int(str(value))
    except ValueError:
        return None
    return number if number >= 0 else None
