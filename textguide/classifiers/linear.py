"""A linear classifier over words, pairs of words and parts of words that scores many endings of one text quickly.

A text is split at white space into pieces, and a piece into words and punctuation marks. The features of a piece only
depend on the piece and on the word before it. Every feature counts once per text, so that repeating a word does not
raise the score. Scoring an ending therefore only costs the features that it adds; the prefix is not read again.
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

from ..support.checks import is_whole_number
from . import heads, storage
from .base import Classifier, label_names, same_rows

# The length of a piece is limited, so that text without blanks does not cost more than other text.
_PIECE = re.compile(r"\S{1,64}")
# "doesn't" is read as "does n't" and "it's" as "it 's", with and without blanks.
_WORD = re.compile(r"\w+?(?=n't(?!\w))|n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)|\w+|[^\w\s]")
# crc32(part, _PART) is crc32(b"p" + part), without building the longer bytes.
_PART = crc32(b"p")
_MEMORY_SIZE = 1 << 19
"""The largest number of features in the memory; it is cleared if there are more."""


@dataclass(frozen=True)
class Features:
    """Which features a text has.

    Args:
        buckets: number of weights; a power of two. A hash assigns features to them.
        pairs: whether pairs of neighbouring words are features.
        shortest: the smallest length of parts of words; 0: parts are not features.
        longest: the largest length of parts of words.
    """

    buckets: int = 1 << 18
    pairs: bool = True
    shortest: int = 3
    longest: int = 5

    def __post_init__(self) -> None:
        is_size = is_whole_number(self.buckets) and 256 <= self.buckets <= 1 << 26
        if not is_size or self.buckets & (self.buckets - 1):
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
        buckets = [self._bucket("w" + word)]
        if not self.shortest or len(word) < 2:
            return buckets
        framed = f"<{word[:64]}>"
        length = len(framed)
        spans = [(i, i + n) for n in range(self.shortest, self.longest + 1) for i in range(length - n + 1)]
        if framed.isascii():
            # The same buckets as below, several times faster.
            data = framed.encode()
            mask = self.buckets - 1
            buckets += [crc32(part, _PART) & mask for part in {data[i:j] for i, j in spans}]
        else:
            buckets += [self._bucket("p" + part) for part in {framed[i:j] for i, j in spans}]
        return buckets

    def of_pair(self, first: str, second: str) -> list[int]:
        """The bucket of two neighbouring words."""
        return [self._bucket(f"b{first} {second}")] if self.pairs else []

    def _bucket(self, key: str) -> int:
        return crc32(key.encode("utf-8", "surrogatepass")) & (self.buckets - 1)


class _Memory:
    """Numbers of words and pairs, and a table with the summed weights of each number."""

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
        words = self.pieces.get(text)
        if words is None:
            words = tuple(self._word(word) for word in self.features.words(text))
            self.pieces[text] = words
        return words

    def pair(self, first: int, second: int) -> int:
        """The number of two neighbouring words."""
        number = self.pairs.get((first, second))
        if number is None:
            number = len(self.buckets)
            self.pairs[first, second] = number
            self.buckets.append(self.features.of_pair(self.names[first], self.names[second]))
        return number

    def sums(self) -> Tensor:
        """The table of summed weights, with a row for every number."""
        new = self.buckets[len(self.table) :]
        if new:
            flat = torch.tensor([bucket for row in new for bucket in row], dtype=torch.long)
            owner = torch.repeat_interleave(torch.arange(len(new)), torch.tensor([len(row) for row in new]))
            rows = torch.zeros(len(new), self.weights.shape[1], dtype=torch.float64)
            rows.index_add_(0, owner, self.weights[flat].double())
            self.table = torch.cat([self.table, rows])
        return self.table

    def _word(self, word: str) -> int:
        number = self.words.get(word)
        if number is None:
            number = len(self.buckets)
            self.words[word] = number
            self.names[number] = word
            self.buckets.append(self.features.of_word(word))
        return number


class LinearClassifier(Classifier):
    """Additive weights for words, pairs of words and parts of words.

    ``log p(c | text) = log_softmax(bias + Σ weights[feature])`` over the distinct features of the text. The
    log-probabilities of the empty text are those of the bias.

    Args:
        weights: (buckets, K); K is the number of classes, or 1 for two classes (the second against the first).
        bias: (K,).
        labels: class names.
        features: which features a text has.
        name: for errors and reports.
        source: JSON values that identify the weights, for :meth:`to_dict`.

    Raises:
        ValueError: the shapes do not match.
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
                f"classifier {name}: weights {tuple(weights.shape)} and bias {tuple(bias.shape)} do not match "
                f"{self.features.buckets} buckets and {len(self.labels)} classes"
            )
        if not (weights.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"classifier {name}: weights or bias contain values that are not finite")
        self.weights = weights
        self.bias = bias
        self._memory = _Memory(self.features, weights)

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``."""
        memory = self._fresh()
        rows = []
        for text in texts:
            seen: set[int] = set()
            _read(memory, _PIECE.findall(text), -1, seen)
            rows.append(list(seen))
        return self._distribution(self._sum(memory, rows))

    def continuations(self, prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> list[Tensor]:
        """See :meth:`Classifier.continuations`. Each prefix is read once, and of an ending only what it adds."""
        same_rows(prefixes, endings)
        memory = self._fresh()
        bases: list[list[int]] = []
        rows: list[list[int]] = []
        for prefix, row in zip(prefixes, endings, strict=True):
            pieces = _PIECE.findall(prefix)
            # An ending without a blank at its start continues the last piece.
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
        """The kind and the identity of the weights."""
        return {"kind": "linear", "labels": list(self.labels), **self.source}

    def save(self, folder: str | os.PathLike[str], report: dict[str, Any] | None = None) -> Path:
        """Write the classifier into a folder, with float16 weights; :func:`load_linear` reads it."""
        tensors = {"weights": self.weights.half(), "bias": self.bias.float()}
        return storage.write(folder, "linear", self.labels, tensors, asdict(self.features), report)

    def _fresh(self) -> _Memory:
        if len(self._memory.buckets) > _MEMORY_SIZE or len(self._memory.pieces) > _MEMORY_SIZE:
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
    """Load a classifier that :meth:`LinearClassifier.save` wrote.

    Raises:
        ValueError: the files are damaged or do not match; the message names the file.
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
    """Add the numbers of the features of ``pieces`` to ``seen``, and return the last word (−1: there is none)."""
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
