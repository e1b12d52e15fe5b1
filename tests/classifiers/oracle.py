"""Plain implementations, one text at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from textguide.classifiers import Classifier, LinearClassifier


def continuations(classifier: Classifier, prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> list[Tensor]:
    """Every full text read on its own."""
    return [
        torch.cat(
            [classifier.log_prob([prefix + ending]) for ending in row] or [torch.empty(0, len(classifier.labels))]
        )
        for prefix, row in zip(prefixes, endings, strict=True)
    ]


def linear(classifier: LinearClassifier, text: str) -> list[float]:
    """The distribution of the linear classifier by its definition: distinct words, their parts, distinct neighbours."""
    features = classifier.features
    words = [word for chunk in text.split() for word in _cut(features, chunk)]
    buckets = [bucket for word in set(words) for bucket in features.of_word(word)]
    buckets += [
        bucket
        for a, b in {(words[i], words[i + 1]) for i in range(len(words) - 1)}
        for bucket in features.of_pair(a, b)
    ]
    scores = classifier.bias.double().tolist()
    for bucket in buckets:
        scores = [
            score + weight for score, weight in zip(scores, classifier.weights[bucket].double().tolist(), strict=True)
        ]
    if len(scores) < len(classifier.labels):
        scores = [0.0, *scores]
    top = max(scores)
    total = top + math.log(sum(math.exp(score - top) for score in scores))
    return [score - total for score in scores]


def _cut(features: object, chunk: str) -> list[str]:
    pieces = [chunk[i : i + 64] for i in range(0, len(chunk), 64)]
    return [word for piece in pieces for word in features.words(piece)]  # type: ignore[attr-defined]
