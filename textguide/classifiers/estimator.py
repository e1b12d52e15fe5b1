"""Scikit-learn estimators as classifiers, one of which detects profanity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..support.errors import MissingExtraError
from . import heads
from .base import Classifier, checked, label_names
from .function import FunctionClassifier

SMALLEST = 1e-12
"""The smallest probability. Trees and nearest neighbours return 0 for texts unlike all that they were trained on."""


class EstimatorClassifier(Classifier):
    """A fitted scikit-learn estimator of texts, such as a pipeline with a vectorizer.

    Its ``predict_proba`` is used if it has one, else ``decision_function``: a logit for two classes, and a softmax over
    the scores for more.

    Args:
        estimator: the fitted estimator.
        labels: class names in the order of its ``classes_``; default: the classes themselves.
        name: for errors and reports.

    Raises:
        ValueError: the estimator is not fitted, or returns neither probabilities nor scores.
    """

    batch_size = 1024

    def __init__(self, estimator: Any, labels: Sequence[str] | None = None, *, name: str | None = None) -> None:
        self.estimator = estimator
        self.name = name or type(estimator).__name__
        if not hasattr(estimator, "classes_"):
            raise ValueError(f"estimator {self.name} has no classes_; fit it first")
        self.labels = label_names([str(label) for label in (labels if labels is not None else estimator.classes_)])
        if len(self.labels) != len(estimator.classes_):
            raise ValueError(
                f"labels={list(self.labels)} do not fit the {len(estimator.classes_)} classes of {self.name}"
            )
        if not hasattr(estimator, "predict_proba") and not hasattr(estimator, "decision_function"):
            raise ValueError(f"estimator {self.name} has neither predict_proba nor decision_function; use one that has")

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``."""
        if not texts:
            return torch.empty(0, len(self.labels))
        if hasattr(self.estimator, "predict_proba"):
            probabilities = torch.as_tensor(self.estimator.predict_proba(list(texts)), dtype=torch.float64)
            return checked(self, probabilities.clamp(min=SMALLEST).log(), len(texts), texts)
        scores = torch.as_tensor(self.estimator.decision_function(list(texts)), dtype=torch.float64)
        if scores.dim() == 1:
            scores = scores[:, None]
        return checked(self, heads.log_probabilities(scores, heads.SOFTMAX), len(texts), texts)

    def to_dict(self) -> dict[str, Any]:
        """The kind, the estimator's parameters and a digest of its answers for a few texts."""
        probe = self.log_prob(["a good day", "a bad day", "nothing"]).numpy().round(4).tobytes()
        return {
            "kind": "estimator",
            "estimator": " ".join(repr(self.estimator).split()),
            "labels": list(self.labels),
            "probe": hashlib.sha256(probe).hexdigest()[:16],
        }


def profanity() -> FunctionClassifier:
    """The linear toxicity classifier of alt-profanity-check: classes ``clean`` and ``toxic``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from profanity_check import predict_prob
    except ImportError as error:
        raise MissingExtraError("alt-profanity-check", "profanity", "the profanity classifier") from error

    def probabilities(texts: list[str]) -> Tensor:
        toxic = torch.as_tensor(predict_prob(texts), dtype=torch.float64).clamp(SMALLEST, 1 - SMALLEST)
        return torch.stack([1 - toxic, toxic], dim=1)

    return FunctionClassifier(probabilities, ("clean", "toxic"), name="profanity", probabilities=True)
