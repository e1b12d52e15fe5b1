"""What every scorer of texts is, and every classifier: texts in, log-probabilities of its classes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

FLOOR = -1e4
"""Nats that take the place of −inf, so that a negative weight times a log-probability stays finite."""
TOLERANCE = 1e-4
"""How far above 0 a log-probability may lie through rounding."""


class Scorer(ABC):
    """Anything that gives numbers for a text: what a token reweighting asks about candidates.

    Attributes:
        name: for errors and reports.
        labels: what the numbers are about, in the order of the columns of :meth:`values`.
        batch_size: texts that are read at once, where the scorer is a network.
    """

    name: str
    labels: tuple[str, ...]
    batch_size: int = 64
    what: ClassVar[str]
    """What it is called in errors."""

    @abstractmethod
    def values(self, texts: Sequence[str]) -> Tensor:
        """Numbers (N, C) in float32 on the CPU, finite, for each of N texts.

        Raises:
            ValueError: the answer cannot be one; the message names the scorer and the text.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that identify it: its ``kind`` and what it was made from."""

    def continuations(self, prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> list[Tensor]:
        """:meth:`values` of ``prefixes[i] + ending`` for each of ``endings[i]``: tensors (len(endings[i]), C).

        A text that occurs several times, in one row or in many, is read once; texts of like length share a batch.

        Raises:
            ValueError: the answer cannot be one; see :meth:`values`.
        """
        same_rows(prefixes, endings)
        rows = [[prefix + ending for ending in row] for prefix, row in zip(prefixes, endings, strict=True)]
        places: dict[str, int] = {}
        for text in (text for row in rows for text in row):
            places.setdefault(text, len(places))
        values = in_batches(self, list(places))
        return [values[torch.tensor([places[text] for text in row], dtype=torch.long)] for row in rows]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {', '.join(self.labels)}>"


class Classifier(Scorer):
    """Anything that gives ``log p(class | text)``.

    Attributes:
        name: for errors and reports.
        labels: class names, in the order of the columns of :meth:`log_prob`.
        is_normalized: the probabilities of the classes sum to 1 (a softmax over exclusive classes). False: every
            class has a probability of its own (a sigmoid for each).
        batch_size: texts that are read at once, where the classifier is a network.
    """

    is_normalized: bool = True
    what = "classifier"

    @abstractmethod
    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) in float32 of every class given each of N texts."""

    def values(self, texts: Sequence[str]) -> Tensor:
        """:meth:`log_prob`, checked."""
        return checked(self, self.log_prob(texts), len(texts), texts)

    def index(self, label: str | int) -> int:
        """The column of a class.

        Args:
            label: the name of the class, in any case, or the number of its column.

        Raises:
            ValueError: there is no such class; the message lists those there are.
        """
        return column_of(label, self.labels, self.name)


def column_of(label: str | int, labels: Sequence[str], name: str) -> int:
    """The column of a class, as :meth:`Classifier.index` takes it; ``name`` is whose classes ``labels`` are.

    Raises:
        ValueError: there is no such class; the message lists those there are.
    """
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return label
    if isinstance(label, str):
        if label in labels:
            return labels.index(label)
        folded = [one.casefold() for one in labels]
        if folded.count(label.casefold()) == 1:
            return folded.index(label.casefold())
        if label.isdecimal() and int(label) < len(labels):
            return int(label)
    raise ValueError(f"{label!r} is no class of {name}; its classes are {', '.join(labels)}")


class CausalState(ABC):
    """A batch of texts that grow by tokens, read by a causal scorer."""

    @abstractmethod
    def log_prob(self, rows: Sequence[int], candidates: Tensor) -> Tensor:
        """Numbers (r, k, C), of a classifier log-probabilities, after each of ``candidates`` (r, k).

        Args:
            rows: the rows of the batch that are meant, r of them.
            candidates: token ids (r, k).

        The texts themselves stay as they are.
        """

    @abstractmethod
    def current(self, rows: Sequence[int]) -> Tensor:
        """The same (r, C) for the texts as they are."""

    @abstractmethod
    def append(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Write one token to each of ``rows``. Other rows may lag behind; a row may be named more than once."""

    @abstractmethod
    def select(self, index: Sequence[int]) -> None:
        """Keep the rows ``index``, in this order; rows may repeat."""


class CausalScorer(Scorer):
    """A scorer that reads from left to right, in the tokens of the language model that it guides."""

    @abstractmethod
    def start(self, ids: Sequence[Sequence[int]]) -> CausalState:
        """A state for texts given as token ids, one sequence a row."""


class CausalClassifier(CausalScorer, Classifier):
    """A classifier that reads from left to right, in the tokens of the language model that it guides."""


def checked(classifier: Classifier, values: Any, n: int, texts: Sequence[str] | None = None) -> Tensor:
    """What a classifier returned for ``n`` texts, as float32 log-probabilities (n, C) on the CPU.

    −inf becomes :data:`FLOOR`, values that rounding lifted above 0 become 0.

    Args:
        classifier: who returned it; errors name it.
        values: what it returned.
        n: how many texts it was given.
        texts: the texts, for errors.

    Raises:
        ValueError: the shape is wrong, there are fewer or more rows than texts, a value is not a number or lies
            above 0.
    """
    result = table(classifier, values, n, texts)
    if n == 0:
        return result
    who = f"classifier {classifier.name}"
    above = result > TOLERANCE
    if above.any():
        row, column = (int(i) for i in above.nonzero()[0])
        raise ValueError(
            f"{who} returned a log-probability above 0 ({result[row, column].item():.4g}) for class "
            f"{classifier.labels[column]}{_of(texts, row)}; log_prob must return logarithms of probabilities"
        )
    if classifier.is_normalized:
        total = result.exp().sum(1)
        row = int((total - 1).abs().argmax())
        if abs(total[row].item() - 1) > 0.01:
            raise ValueError(
                f"{who} returned probabilities that sum to {total[row].item():.4g}{_of(texts, row)}; normalise them, "
                "or set is_normalized=False where each class has a probability of its own"
            )
    return result.clamp(FLOOR, 0.0)


def table(scorer: Scorer, values: Any, n: int, texts: Sequence[str] | None = None) -> Tensor:
    """What a scorer returned for ``n`` texts as float32 (n, C) on the CPU.

    Args:
        scorer: who returned it; errors name it.
        values: what it returned.
        n: how many texts it was given.
        texts: the texts, for errors.

    Raises:
        ValueError: the shape is wrong, there are fewer or more rows than texts, or a value is not a number.
    """
    who, columns = f"{scorer.what} {scorer.name}", len(scorer.labels)
    try:
        result = torch.as_tensor(values).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{who} returned {type(values).__name__}, not a table of numbers ({error})") from error
    if result.dim() != 2 or result.shape[1] != columns:
        raise ValueError(
            f"{who} returned shape {tuple(result.shape)} for {n} texts; it must be ({n}, {columns}), one column for "
            f"each of {', '.join(scorer.labels)}"
        )
    if result.shape[0] != n:
        raise ValueError(f"{who} returned {result.shape[0]} rows for {n} texts; it must return one row for each text")
    if result.isnan().any():
        row, column = (int(i) for i in result.isnan().nonzero()[0])
        of = f"class {scorer.labels[column]}" if isinstance(scorer, Classifier) else scorer.labels[column]
        raise ValueError(f"{who} returned NaN for {of}{_of(texts, row)}")
    return result


def in_batches(scorer: Scorer, texts: Sequence[str]) -> Tensor:
    """:meth:`Scorer.values` of ``texts`` (N, C) in batches of like length."""
    values = torch.empty(len(texts), len(scorer.labels))
    for places in batches([len(text) for text in texts], scorer.batch_size):
        values[torch.tensor(places)] = scorer.values([texts[place] for place in places])
    return values


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of texts in batches of at most ``size``, the longest first: if memory runs out, it does so at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def same_rows(prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> None:
    """Raises ValueError unless there is one list of endings for each prefix."""
    if len(prefixes) != len(endings):
        raise ValueError(f"endings has {len(endings)} rows for {len(prefixes)} prefixes; give one list a prefix")


def label_names(labels: Any) -> tuple[str, ...]:
    """Class names as a tuple.

    Raises:
        ValueError: they are not at least two different texts that are not empty.
    """
    names = tuple(labels) if not isinstance(labels, str) else ()
    if len(names) < 2 or len(set(names)) != len(names) or not all(isinstance(x, str) and x for x in names):
        raise ValueError(f"labels={labels!r} must be at least two different names, such as ('negative', 'positive')")
    return names


def _of(texts: Sequence[str] | None, row: int) -> str:
    return "" if texts is None else f", text {beginning(texts[row])}"


def beginning(text: str, length: int = 40) -> str:
    """The beginning of a text, quoted, for an error message."""
    return repr(text if len(text) <= length else text[:length] + "…")
