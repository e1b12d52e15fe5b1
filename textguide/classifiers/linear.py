"""A linear classifier over words, pairs of words and parts of words, made for scoring many endings of one text.

A text is cut at white space into pieces, a piece into words and marks; what a piece contributes depends on nothing
but itself and the word before it. Every feature counts once a text, however often it occurs: repeating a word gains
nothing. So an ending costs what it changes, never a second reading of the prefix.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from . import heads, storage
from .base import Classifier, label_names, same_rows

# A piece is bounded, so that text without blanks costs no more than other text.
_PIECE = re.compile(r"\S{1,64}")
# "doesn't" is read as "does n't" and "it's" as "it 's", however the blanks are set.
_WORD = re.compile(r"\w+?(?=n't(?!\w))|n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)|\w+|[^\w\s]")
_PART = crc32(b"p")  # continued by crc32, this gives the bucket of "p" and what follows
_REMEMBERED = 1 << 19
"""Features that are kept; the memory is emptied when it holds more."""


@dataclass(frozen=True)
class Features:
    """Which features a text has.

    Args:
        buckets: number of weights; a power of two. Features share them by hash.
        pairs: neighbouring words count as a feature of their own.
        shortest: least length of the parts of words; 0: no parts.
        longest: greatest length of the parts of words.
    """

    buckets: int = 1 << 18
    pairs: bool = True
    shortest: int = 3
    longest: int = 5

    def __post_init__(self) -> None:
        if not isinstance(self.buckets, int) or not 256 <= self.buckets <= 1 << 26 or self.buckets & (self.buckets - 1):
            raise ValueError(f"buckets={self.buckets!r} must be a power of two from 256 to 2^26")
        if not 0 <= self.shortest <= max(self.longest, 0) <= 16:
            raise ValueError(
                f"shortest={self.shortest} and longest={self.longest} must satisfy 0 <= shortest <= longest <= 16"
            )

    def words(self, piece: str) -> list[str]:
        """The words and marks of a piece of text without white space."""
        return _WORD.findall(piece.casefold().replace("’", "'"))

    def of_word(self, word: str) -> list[int]:
        """The buckets of a word and of its parts."""
        found = [self._bucket("w" + word)]
        if self.shortest and len(word) > 1:
            framed = f"<{word[:64]}>"
            length, mask = len(framed), self.buckets - 1
            spans = [(i, i + n) for n in range(self.shortest, self.longest + 1) for i in range(length - n + 1)]
            if framed.isascii():
                data = framed.encode()
                found += [crc32(part, _PART) & mask for part in {data[i:j] for i, j in spans}]
            else:
                found += [self._bucket("p" + part) for part in {framed[i:j] for i, j in spans}]
        return found

    def of_pair(self, first: str, second: str) -> list[int]:
        """The bucket of two neighbouring words."""
        return [self._bucket(f"b{first} {second}")] if self.pairs else []

    def _bucket(self, key: str) -> int:
        return crc32(key.encode("utf-8", "surrogatepass")) & (self.buckets - 1)


class _Memory:
    """Words and pairs that were seen, each with a number and, in a table, with its summed weights."""

    def __init__(self, features: Features, weights: Tensor) -> None:
        self.features = features
        self.weights = weights
        self.pieces: dict[str, tuple[int, ...]] = {}
        self.words: dict[str, int] = {}
        self.pairs: dict[tuple[int, int], int] = {}
        self.names: dict[int, str] = {}
        self.buckets: list[list[int]] = []
        self.table = torch.empty(0, weights.shape[1], dtype=torch.float64)

    def piece(self, text: str) -> tuple[int, ...]:
        """The numbers of the words of a piece."""
        found = self.pieces.get(text)
        if found is None:
            found = self.pieces[text] = tuple(self._word(word) for word in self.features.words(text))
        return found

    def pair(self, first: int, second: int) -> int:
        """The number of two neighbouring words."""
        found = self.pairs.get((first, second))
        if found is None:
            found = self.pairs[first, second] = len(self.buckets)
            self.buckets.append(self.features.of_pair(self.names[first], self.names[second]))
        return found

    def sums(self) -> Tensor:
        """The table, with rows for everything that was numbered."""
        new = self.buckets[len(self.table) :]
        if new:
            flat = torch.tensor([bucket for row in new for bucket in row], dtype=torch.long)
            owner = torch.repeat_interleave(torch.arange(len(new)), torch.tensor([len(row) for row in new]))
            rows = torch.zeros(len(new), self.weights.shape[1], dtype=torch.float64)
            rows.index_add_(0, owner, self.weights[flat].double())
            self.table = torch.cat([self.table, rows])
        return self.table

    def _word(self, word: str) -> int:
        found = self.words.get(word)
        if found is None:
            found = self.words[word] = len(self.buckets)
            self.names[found] = word
            self.buckets.append(self.features.of_word(word))
        return found


class LinearClassifier(Classifier):
    """Additive weights for words, pairs of words and parts of words.

    ``log p(c | text) = log_softmax(bias + Σ weights[feature])`` over the distinct features of the text. The empty
    text has the bias alone.

    Args:
        weights: (buckets, K); K is the number of classes, or 1 for two classes (the second against the first).
        bias: (K,).
        labels: class names.
        features: which features a text has.
        name: for errors and reports.
        source: what identifies the weights, for :meth:`to_dict`.

    Raises:
        ValueError: the shapes do not belong together.
    """

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor,
        labels: Sequence[str],
        features: Features | None = None,
        *,
        name: str = "linear",
        source: dict[str, Any] | None = None,
    ) -> None:
        self.labels = label_names(labels)
        self.features = features or Features()
        self.name = name
        self.source = source or {"weights": heads.digest(weights, bias), **asdict(self.features)}
        columns = 1 if len(self.labels) == 2 and weights.dim() == 2 and weights.shape[1] == 1 else len(self.labels)
        if tuple(weights.shape) != (self.features.buckets, columns) or tuple(bias.shape) != (columns,):
            raise ValueError(
                f"classifier {name}: weights {tuple(weights.shape)} and bias {tuple(bias.shape)} do not belong to "
                f"{self.features.buckets} buckets and {len(self.labels)} classes"
            )
        if not (weights.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"classifier {name}: weights or bias hold values that are not finite")
        self.weights, self.bias = weights, bias
        self._memory = _Memory(self.features, weights)

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``, each read whole."""
        memory = self._fresh()
        rows = []
        for text in texts:
            seen: set[int] = set()
            _read(memory, _PIECE.findall(text), -1, seen)
            rows.append(list(seen))
        return self._distribution(self._sum(memory, rows))

    def continuations(self, prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> list[Tensor]:
        """As :meth:`Classifier.continuations`; each prefix is read once, each ending costs what it changes."""
        same_rows(prefixes, endings)
        memory = self._fresh()
        bases: list[list[int]] = []
        rows: list[list[int]] = []
        for prefix, row in zip(prefixes, endings, strict=True):
            pieces = _PIECE.findall(prefix)
            # The last piece is open where an ending can still grow it.
            is_open = bool(pieces) and not prefix[-1].isspace() and len(pieces[-1]) < 64
            tail = pieces.pop() if is_open else ""
            seen: set[int] = set()
            last = _read(memory, pieces, -1, seen)
            bases.append(list(seen))
            for ending in row:
                rows.append(_added(memory, tail + ending, last, seen))
        base = self._sum(memory, bases)
        added = self._sum(memory, rows, bias=False)
        counts = [len(row) for row in endings]
        distribution = self._distribution(
            torch.repeat_interleave(base, torch.tensor(counts, dtype=torch.long), dim=0) + added
        )
        return list(distribution.split(counts)) if counts else []

    def to_dict(self) -> dict[str, Any]:
        """The kind and what identifies the weights."""
        return {"kind": "linear", "labels": list(self.labels), **self.source}

    def save(self, folder: str | os.PathLike[str], report: dict[str, Any] | None = None) -> Path:
        """Write the classifier into a folder, with float16 weights; :func:`load_linear` reads it."""
        tensors = {"weights": self.weights.half(), "bias": self.bias.float()}
        return storage.write(folder, "linear", self.labels, tensors, asdict(self.features), report)

    def _fresh(self) -> _Memory:
        if len(self._memory.buckets) > _REMEMBERED or len(self._memory.pieces) > _REMEMBERED:
            self._memory = _Memory(self.features, self.weights)
        return self._memory

    def _sum(self, memory: _Memory, rows: list[list[int]], bias: bool = True) -> Tensor:
        """Summed weights (N, K) of the numbered features of each row."""
        table = memory.sums()
        start = self.bias.double() if bias else torch.zeros(self.weights.shape[1], dtype=torch.float64)
        total = start.repeat(len(rows), 1)
        flat = torch.tensor([number for row in rows for number in row], dtype=torch.long)
        owner = torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([len(row) for row in rows], dtype=torch.long)
        )
        return total.index_add_(0, owner, table[flat])

    def _distribution(self, scores: Tensor) -> Tensor:
        if scores.shape[1] < len(self.labels):
            scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
        return scores.log_softmax(1).float()


def load_linear(path: str | os.PathLike[str], name: str | None = None) -> LinearClassifier:
    """The classifier that :meth:`LinearClassifier.save` wrote.

    Raises:
        ValueError: the files are damaged or do not belong together; the message names the file.
    """
    description, tensors = storage.read(path)
    storage.expect(description, "linear", path, [field.name for field in fields(Features)])
    features = Features(**description["settings"])
    labels = description["labels"]
    columns = tensors["weights"].shape[-1] if "weights" in tensors and len(labels) == 2 else len(labels)
    weights = storage.tensor(tensors, "weights", (features.buckets, columns), path)
    bias = storage.tensor(tensors, "bias", (columns,), path)
    source = {"sha256": description["sha256"]}
    return LinearClassifier(weights, bias, labels, features, name=name or Path(path).name, source=source)


def _read(memory: _Memory, pieces: Sequence[str], last: int, seen: set[int]) -> int:
    """Add the numbers of the features of ``pieces`` to ``seen``; returns the last word (−1: none so far)."""
    for piece in pieces:
        for word in memory.piece(piece):
            seen.add(word)
            if last >= 0:
                seen.add(memory.pair(last, word))
            last = word
    return last


def _added(memory: _Memory, text: str, last: int, seen: set[int]) -> list[int]:
    """The numbers of the features that ``text`` adds to those in ``seen``."""
    new: set[int] = set()
    _read(memory, _PIECE.findall(text), last, new)
    return list(new - seen)
