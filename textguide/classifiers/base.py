"""The base classes of scorers: a scorer returns numbers for texts, a classifier log-probabilities of its classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..support.checks import is_whole_number

FLOOR = -1e4
"""Used instead of −inf (in nats), so that the product of a negative weight and a log-probability is finite."""
TOLERANCE = 1e-4
"""Log-probabilities up to this much above 0 are rounding errors."""


class Scorer(ABC):
    """Base class of everything that returns numbers for a text. Token reweighting scores its candidates with one.

    Attributes:
        name: for errors and reports.
        labels: a name for each number, in the order of the columns of :meth:`values`.
        batch_size: number of texts per pass, if the scorer is a network.
    """

    name: str
    labels: tuple[str, ...]
    batch_size: int = 64
    what: ClassVar[str]
    """The noun for it in error messages."""

    @abstractmethod
    def values(self, texts: Sequence[str]) -> Tensor:
        """Finite numbers (N, C) in float32 on the CPU, for each of N texts.

        Raises:
            ValueError: the numbers are invalid; the message names the scorer and the text.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON values that identify the scorer: its ``kind`` and what it was made from."""

    def continuations(self, prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> list[Tensor]:
        """:meth:`values` of ``prefixes[i] + ending`` for each of ``endings[i]``: tensors (len(endings[i]), C).

        A text that occurs several times, in one row or in several, is read once. Texts of similar lengths share a
        batch.

        Raises:
            ValueError: the numbers are invalid; see :meth:`values`.
        """
        same_rows(prefixes, endings)
        rows = [[prefix + ending for ending in row] for prefix, row in zip(prefixes, endings, strict=True)]
        numbers: dict[str, int] = {}
        for row in rows:
            for text in row:
                numbers.setdefault(text, len(numbers))
        values = in_batches(self, list(numbers))
        return [values[torch.tensor([numbers[text] for text in row], dtype=torch.long)] for row in rows]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {', '.join(self.labels)}>"


class Classifier(Scorer):
    """Base class of everything that returns ``log p(class | text)``.

    Attributes:
        name: for errors and reports.
        labels: class names, in the order of the columns of :meth:`log_prob`.
        is_normalized: whether the probabilities of the classes sum to 1 (a softmax over exclusive classes). If False,
            every class has an independent probability (a sigmoid for each).
        batch_size: number of texts per pass, if the classifier is a network.
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
            ValueError: there is no such class; the message lists the classes.
        """
        return column_of(label, self.labels, self.name)


def column_of(label: str | int, labels: Sequence[str], name: str) -> int:
    """The column of a class, as in :meth:`Classifier.index`.

    Args:
        label: the name of the class, in any case, or the number of its column.
        labels: the class names.
        name: the classifier, for errors.

    Raises:
        ValueError: there is no such class; the message lists the classes.
    """
    if is_whole_number(label) and 0 <= int(label) < len(labels):
        return int(label)
    if isinstance(label, str):
        if label in labels:
            return labels.index(label)
        folded = [one.casefold() for one in labels]
        if folded.count(label.casefold()) == 1:
            return folded.index(label.casefold())
        if label.isdecimal() and int(label) < len(labels):
            return int(label)
    raise ValueError(f"{label!r} is not a class of {name}; its classes are {', '.join(labels)}")


class CausalState(ABC):
    """A batch of texts that grow by tokens, read by a causal scorer."""

    @abstractmethod
    def log_prob(self, rows: Sequence[int], candidates: Tensor) -> Tensor:
        """Numbers (r, k, C), of a classifier log-probabilities, after each of ``candidates`` (r, k).

        Args:
            rows: numbers of r rows of the batch.
            candidates: token ids (r, k). They are not added to the texts.
        """

    @abstractmethod
    def current(self, rows: Sequence[int]) -> Tensor:
        """Numbers (r, C) for the current texts of ``rows``."""

    @abstractmethod
    def append(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Append one token to each of ``rows``. Rows may have different lengths, and a row may occur more than once."""

    @abstractmethod
    def select(self, index: Sequence[int]) -> None:
        """Keep the rows ``index``, in this order; rows may repeat."""


class CausalScorer(Scorer):
    """A scorer that reads from left to right, in the tokens of the language model that it guides."""

    @abstractmethod
    def start(self, ids: Sequence[Sequence[int]]) -> CausalState:
        """A state for texts as token ids, one sequence per row."""


class CausalClassifier(CausalScorer, Classifier):
    """A classifier that reads from left to right, in the tokens of the language model that it guides."""


def checked(classifier: Classifier, values: Any, n: int, texts: Sequence[str] | None = None) -> Tensor:
    """The log-probabilities that a classifier returned for ``n`` texts, as float32 (n, C) on the CPU.

    −inf becomes :data:`FLOOR`, and values that are above 0 because of rounding become 0.

    Args:
        classifier: the classifier, for errors.
        values: what it returned.
        n: number of texts.
        texts: the texts, for errors.

    Raises:
        ValueError: the shape is wrong, there are fewer or more rows than texts, or a value is NaN or above 0.
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
                "or set is_normalized=False if each class has an independent probability"
            )
    return result.clamp(FLOOR, 0.0)


def table(scorer: Scorer, values: Any, n: int, texts: Sequence[str] | None = None) -> Tensor:
    """The numbers that a scorer returned for ``n`` texts, as float32 (n, C) on the CPU.

    Args:
        scorer: the scorer, for errors.
        values: what it returned.
        n: number of texts.
        texts: the texts, for errors.

    Raises:
        ValueError: the shape is wrong, there are fewer or more rows than texts, or a value is NaN.
    """
    who = f"{scorer.what} {scorer.name}"
    columns = len(scorer.labels)
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
    """The :meth:`Scorer.values` of ``texts``, (N, C), in batches of similar lengths."""
    values = torch.empty(len(texts), len(scorer.labels))
    for indices in batches([len(text) for text in texts], scorer.batch_size):
        values[torch.tensor(indices)] = scorer.values([texts[i] for i in indices])
    return values


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of texts in batches of at most ``size``, the longest texts first."""
    # The longest first: if memory runs out, it does so immediately and not after an hour.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def same_rows(prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless there is one list of endings for each prefix."""
    if len(prefixes) != len(endings):
        raise ValueError(f"endings has {len(endings)} rows for {len(prefixes)} prefixes; pass one list per prefix")


def label_names(labels: Any) -> tuple[str, ...]:
    """Class names as a tuple.

    Raises:
        ValueError: there are fewer than two, two are equal, or one is empty.
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
