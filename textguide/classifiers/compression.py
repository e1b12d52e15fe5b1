"""Nearest neighbours under compression: a classifier that needs nothing but example texts.

Jiang et al., "Low-resource" text classification: a parameter-free classification method with compressors (Findings
of ACL 2023).
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Classifier, checked, label_names


class GzipClassifier(Classifier):
    """The examples that compress best together with a text vote for its class.

    The distance is the normalised compression distance ``(C(xy) − min(C(x), C(y))) / max(C(x), C(y))`` with the size
    ``C`` that DEFLATE gives. The ``k`` nearest examples vote with ``exp(−d / temperature)``, and every class gets
    ``smoothing`` times the strongest vote, so that none has probability 0. Every text is compressed with every
    example: a few dozen examples are many where 100 candidates are scored a step.

    Args:
        texts: example texts.
        classes: the class of each.
        labels: class names in the order of the columns; default: sorted.
        k: how many neighbours vote.
        temperature: how fast a vote falls with distance.
        smoothing: what each class gets for nothing, relative to the nearest neighbour's vote.
        name: for errors and reports.

    Raises:
        ValueError: an argument cannot work; the message names it.
    """

    batch_size = 1024

    def __init__(
        self,
        texts: Sequence[str],
        classes: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        k: int = 5,
        temperature: float = 0.1,
        smoothing: float = 0.5,
        name: str = "gzip",
    ) -> None:
        if len(texts) != len(classes) or not texts:
            raise ValueError(
                f"{len(texts)} texts and {len(classes)} classes; give one class for each text, one at least"
            )
        if not isinstance(k, int) or not 1 <= k <= len(texts):
            raise ValueError(f"k={k!r} must lie between 1 and the number of examples ({len(texts)})")
        for field, value in (("temperature", temperature), ("smoothing", smoothing)):
            if not value > 0:
                raise ValueError(f"{field}={value!r} must be above 0")
        self.labels = label_names(labels if labels is not None else sorted(set(classes)))
        without = set(self.labels) ^ set(classes)
        if without:
            raise ValueError(
                f"labels={list(self.labels)} and the examples' classes differ in {', '.join(sorted(without))}"
            )
        self.name, self.k, self.temperature, self.smoothing = name, k, temperature, smoothing
        self._examples = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._sizes = [_size(example) for example in self._examples]
        self._classes = [self.labels.index(label) for label in classes]

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``."""
        rows = [self._votes(text.encode("utf-8", "surrogatepass")) for text in texts]
        votes = torch.tensor(rows, dtype=torch.float64).view(len(texts), len(self.labels))
        return checked(self, (votes / votes.sum(1, keepdim=True)).log(), len(texts), texts)

    def to_dict(self) -> dict[str, Any]:
        """The kind, the parameters and a digest of the examples."""
        digest = hashlib.sha256()
        for example, column in zip(self._examples, self._classes, strict=True):
            digest.update(f"{len(example)} {column}\n".encode() + example)
        return {
            "kind": "gzip",
            "labels": list(self.labels),
            "k": self.k,
            "temperature": self.temperature,
            "smoothing": self.smoothing,
            "examples": digest.hexdigest(),
        }

    def _votes(self, text: bytes) -> list[float]:
        size = _size(text)
        distances = []
        for i, (example, other) in enumerate(zip(self._examples, self._sizes, strict=True)):
            together = _size(text + b" " + example)
            distances.append(((together - min(size, other)) / max(size, other), i))
        nearest = sorted(distances)[: self.k]
        # Relative to the nearest, so that no vote underflows.
        weights = torch.tensor([nearest[0][0] - d for d, _ in nearest], dtype=torch.float64).div(self.temperature).exp()
        votes = Counter(dict.fromkeys(range(len(self.labels)), self.smoothing))
        for weight, (_, i) in zip(weights.tolist(), nearest, strict=True):
            votes[self._classes[i]] += weight
        return [votes[column] for column in range(len(self.labels))]


def _size(data: bytes) -> int:
    return len(zlib.compress(data, 9))
