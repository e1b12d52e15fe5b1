"""Nearest neighbours under compression: a classifier that only needs example texts.

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

from ..support.checks import is_whole_number
from .base import Classifier, checked, label_names


class GzipClassifier(Classifier):
    """The examples that compress best together with a text vote for its class.

    The distance is the normalised compression distance ``(C(xy) − min(C(x), C(y))) / max(C(x), C(y))`` with the size
    ``C`` after DEFLATE. The ``k`` nearest examples vote with ``exp(−d / temperature)``, and every class additionally
    gets ``smoothing`` times the strongest vote, so that none has probability 0. Every text is compressed together with
    every example: if 100 candidates are scored per step, a few dozen examples are already slow.

    Args:
        texts: example texts.
        classes: the class of each.
        labels: class names in the order of the columns; default: sorted.
        k: number of neighbours that vote.
        temperature: how fast a vote falls with distance.
        smoothing: the vote that every class gets in addition, relative to the nearest neighbour's vote.
        name: for errors and reports.

    Raises:
        ValueError: an argument is invalid; the message names it.
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
            raise ValueError(f"{len(texts)} texts and {len(classes)} classes; pass one class per text, at least one")
        if not is_whole_number(k) or not 1 <= k <= len(texts):
            raise ValueError(f"k={k!r} must be between 1 and the number of examples ({len(texts)})")
        for field, value in (("temperature", temperature), ("smoothing", smoothing)):
            if not value > 0:
                raise ValueError(f"{field}={value!r} must be above 0")
        self.labels = label_names(labels if labels is not None else sorted(set(classes)))
        difference = set(self.labels) ^ set(classes)
        if difference:
            raise ValueError(
                f"labels={list(self.labels)} and the examples' classes differ in {', '.join(sorted(difference))}"
            )
        self.name = name
        self.k = int(k)
        self.temperature = temperature
        self.smoothing = smoothing
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
        for i, (example, example_size) in enumerate(zip(self._examples, self._sizes, strict=True)):
            joint_size = _size(text + b" " + example)
            distances.append(((joint_size - min(size, example_size)) / max(size, example_size), i))
        nearest = sorted(distances)[: self.k]
        # Relative to the nearest, so that no vote underflows.
        weights = torch.tensor([nearest[0][0] - d for d, _ in nearest], dtype=torch.float64).div(self.temperature).exp()
        votes = Counter(dict.fromkeys(range(len(self.labels)), self.smoothing))
        for weight, (_, i) in zip(weights.tolist(), nearest, strict=True):
            votes[self._classes[i]] += weight
        return [votes[column] for column in range(len(self.labels))]


def _size(data: bytes) -> int:
    return len(zlib.compress(data, 9))
