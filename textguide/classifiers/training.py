"""Trains classifiers on labelled texts, and measures them."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.columns import names_columns
from ..support.errors import MissingExtraError
from .base import Classifier, in_batches
from .linear import _PIECE, Features, LinearClassifier


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Args:
        texts: N texts.
        labels: the class of each, N names.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted; names that are whole numbers by value."""
        names = set(self.labels)
        return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))


def read_examples(
    path: str | os.PathLike[str],
    *,
    text_column: str | int = 0,
    label_column: str | int = 1,
    header: bool | None = None,
    names: Sequence[str] | None = None,
) -> Examples:
    """Read labelled texts from a tab-separated file, or from a comma-separated one if its name ends in ``.csv``.

    Args:
        path: the file, in UTF-8. Quotes are part of the text in a tab-separated file.
        text_column: the column of the texts, by number from 0 or by its name in the header.
        label_column: the column of the labels.
        header: whether the first line has the names of the columns. None: it does if a column is passed by name, if
            all its cells are common names of columns, or if its label does not occur again.
        names: names that replace the labels, in the order of :attr:`Examples.classes`.

    Raises:
        ValueError: the file cannot be read, a column is missing, there are fewer than two classes, or ``names`` does
            not have one name per class.
    """
    source = Path(path)
    rows = _read_rows(source)
    by_name = isinstance(text_column, str) or isinstance(label_column, str)
    if header is False and by_name:
        raise ValueError(f"text_column={text_column!r} and label_column={label_column!r} need a header in {source}")
    text_number = _column_number(source, rows[0], text_column)
    label_number = _column_number(source, rows[0], label_column)
    _check_widths(source, rows, max(text_number, label_number))
    labels = [row[label_number].strip() for row in rows]
    if header is None:
        header = by_name or names_columns(rows[0]) or labels[0] not in labels[1:]
    first = 1 if header else 0
    texts = [row[text_number] for row in rows]
    examples = Examples(tuple(texts[first:]), tuple(labels[first:]))
    if "" in examples.labels:
        raise ValueError(f"{source} has a row without a label in column {label_column!r}")
    if len(examples.classes) < 2:
        raise ValueError(
            f"{source} has {len(examples.classes)} class(es) in column {label_column!r}; at least two are needed"
        )
    return examples if names is None else _renamed(source, examples, names)


def _read_rows(source: Path) -> list[list[str]]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            if source.suffix.lower() == ".csv":
                rows = [row for row in csv.reader(stream) if row]
            else:
                rows = [line.rstrip("\r\n").split("\t") for line in stream if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text") from error
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{source} cannot be read ({reason}); check the path") from error
    if not rows:
        raise ValueError(f"{source} is empty; write a text and its label on each line, with a tab between them")
    return rows


def _column_number(source: Path, first: Sequence[str], column: str | int) -> int:
    if isinstance(column, int):
        if not 0 <= column < len(first):
            raise ValueError(f"{source} has {len(first)} columns and no column {column} (columns count from 0)")
        return column
    stripped = [name.strip() for name in first]
    if column not in stripped:
        raise ValueError(f"{source} has no column {column!r}; its header has {', '.join(stripped)}")
    return stripped.index(column)


def _check_widths(source: Path, rows: Sequence[Sequence[str]], largest: int) -> None:
    for number, row in enumerate(rows, 1):
        if len(row) <= largest:
            raise ValueError(
                f"{source}, row {number} has {len(row)} columns and no column {largest} (columns count from 0)"
            )


def _renamed(source: Path, examples: Examples, names: Sequence[str]) -> Examples:
    if len(names) != len(examples.classes) or len(set(names)) != len(names):
        raise ValueError(
            f"labels={list(names)!r} must be one name for each of {', '.join(examples.classes)} in {source}"
        )
    name_of = dict(zip(examples.classes, names, strict=True))
    return Examples(examples.texts, tuple(name_of[label] for label in examples.labels))


def targets(examples: Examples, labels: Sequence[str]) -> Tensor:
    """The columns (N,) of the examples' classes among ``labels``.

    Raises:
        ValueError: an example has a class that is not among them.
    """
    columns = {label: i for i, label in enumerate(labels)}
    unknown = sorted(set(examples.labels) - set(labels))
    if unknown:
        raise ValueError(f"the examples have classes {', '.join(unknown)}, the classifier {', '.join(labels)}")
    return torch.tensor([columns[label] for label in examples.labels])


def train_linear(
    examples: Examples,
    *,
    labels: Sequence[str] | None = None,
    features: Features | None = None,
    strength: float = 0.1,
    name: str = "linear",
) -> LinearClassifier:
    """Fit a :class:`~textguide.classifiers.LinearClassifier` by logistic regression.

    Args:
        examples: labelled texts.
        labels: class names in the order of the columns; default: as in ``examples.classes``.
        features: the features of a text.
        strength: inverse of the L2 penalty (scikit-learn's ``C``); a larger one fits the examples more closely.
        name: for errors and reports.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: ``strength`` is not above 0, or a class has no example.
    """
    sklearn_linear = _sklearn("linear_model")
    features = features or Features()
    names = tuple(labels) if labels is not None else examples.classes
    columns = _checked_targets(examples, names, strength)
    regression = sklearn_linear.LogisticRegression(C=strength, max_iter=1000)
    regression.fit(_matrix(examples.texts, features), columns.numpy())
    # Rounded to half precision, as in the saved file, so that a loaded classifier equals this one.
    weights = torch.from_numpy(regression.coef_.T.copy()).float().half().float()
    bias = torch.from_numpy(regression.intercept_.copy()).float()
    return LinearClassifier(weights, bias, names, features, name=name)


def train_head(vectors: Tensor, examples: Examples, names: Sequence[str], strength: float) -> tuple[Tensor, Tensor]:
    """Weights (H, K) and bias (K,) of a logistic regression on ``vectors`` (N, H).

    The regression is fitted on standardised vectors, and the standardisation becomes part of the weights.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: ``strength`` is not above 0, or a class has no example.
    """
    columns = _checked_targets(examples, names, strength)
    mean = vectors.double().mean(0)
    deviation = vectors.double().std(0).clamp(min=1e-6)
    regression = _sklearn("linear_model").LogisticRegression(C=strength, max_iter=2000)
    regression.fit(((vectors.double() - mean) / deviation).numpy(), columns.numpy())
    weights = torch.from_numpy(regression.coef_.T.copy()) / deviation[:, None]
    bias = torch.from_numpy(regression.intercept_.copy()) - mean @ weights
    return weights.float(), bias.float()


def train_embedding(
    examples: Examples,
    encoder: Any,
    *,
    labels: Sequence[str] | None = None,
    strength: float = 0.1,
    name: str = "embedding",
) -> Any:
    """Fit an :class:`~textguide.classifiers.EmbeddingClassifier`: a head on a frozen encoder.

    Args:
        examples: labelled texts.
        encoder: an :class:`~textguide.classifiers.Encoder`.
        labels: class names in the order of the columns; default: as in ``examples.classes``.
        strength: inverse of the L2 penalty on standardised embeddings.
        name: for errors and reports.
    """
    from .embedding import EmbeddingClassifier

    names = tuple(labels) if labels is not None else examples.classes
    # Before the texts are read, which takes long.
    _sklearn("linear_model")
    _checked_targets(examples, names, strength)
    weights, bias = train_head(encoder(examples.texts), examples, names, strength)
    return EmbeddingClassifier(encoder, weights, bias, names, name=name)


def train_causal(
    examples: Examples,
    model: Any,
    tokenizer: Any,
    *,
    model_name: str,
    labels: Sequence[str] | None = None,
    strength: float = 0.1,
    name: str = "causal",
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Fit a :class:`~textguide.classifiers.HeadClassifier`: a head on a frozen language model.

    Args:
        examples: labelled texts.
        model: the language model.
        tokenizer: its tokenizer.
        model_name: the name of the model, by which :func:`textguide.load` finds it when the head is loaded.
        labels: class names in the order of the columns; default: as in ``examples.classes``.
        strength: inverse of the L2 penalty on standardised hidden states.
        name: for errors and reports.
        progress: called with the number of texts that were read since the last call.
    """
    from .causal_head import Head, HeadClassifier, last_states

    names = tuple(labels) if labels is not None else examples.classes
    # Before the texts are read, which takes long.
    _sklearn("linear_model")
    _checked_targets(examples, names, strength)
    weights, bias = train_head(last_states(model, tokenizer, examples.texts, progress), examples, names, strength)
    return HeadClassifier(model, tokenizer, Head(weights, bias), names, model_name=model_name, name=name)


def _checked_targets(examples: Examples, names: Sequence[str], strength: float) -> Tensor:
    if not strength > 0:
        raise ValueError(f"strength={strength!r} must be above 0")
    columns = targets(examples, names)
    if len(columns.unique()) != len(names):
        raise ValueError(f"some of the classes {', '.join(names)} have no example; add one for each class")
    return columns


def _matrix(texts: Sequence[str], features: Features) -> Any:
    """Sparse counts (N, buckets) of the distinct features of each text."""
    import numpy
    from scipy import sparse

    known: dict[str, list[int]] = {}
    columns: list[int] = []
    ends = [0]
    for text in texts:
        words = [word for piece in _PIECE.findall(text) for word in features.words(piece)]
        for word in set(words):
            if word not in known:
                known[word] = features.of_word(word)
            columns += known[word]
        for first, second in set(itertools.pairwise(words)):
            columns += features.of_pair(first, second)
        ends.append(len(columns))
    shape = (len(texts), features.buckets)
    matrix = sparse.csr_matrix((numpy.ones(len(columns), numpy.float32), columns, ends), shape=shape)
    matrix.sum_duplicates()
    return matrix


@dataclass(frozen=True)
class Report:
    """Measures of a classifier on labelled texts.

    Args:
        n: number of texts.
        accuracy: share of the texts whose class is the most probable one.
        log_loss: mean of −log p(class), in nats.
        ece: expected calibration error: mean distance between confidence and accuracy in fifteen equal bins.
        classes: for each class its precision, recall, F1 and number of texts.
    """

    n: int
    accuracy: float
    log_loss: float
    ece: float
    classes: dict[str, dict[str, float]]


def evaluate(classifier: Classifier, examples: Examples) -> Report:
    """Measure ``classifier`` on labelled texts.

    Raises:
        ValueError: a text has a class that the classifier does not know.
    """
    truth = targets(examples, classifier.labels)
    distribution = in_batches(classifier, examples.texts).double()
    if not classifier.is_normalized:
        distribution = distribution.log_softmax(1)
    confidence, guess = distribution.exp().max(1)
    correct = guess == truth
    n = len(truth)
    return Report(
        n=n,
        accuracy=correct.double().mean().item(),
        log_loss=-distribution.gather(1, truth[:, None]).mean().item(),
        ece=_calibration_error(confidence, correct) / n,
        classes={label: _class_measures(truth == i, guess == i) for i, label in enumerate(classifier.labels)},
    )


def _class_measures(true: Tensor, predicted: Tensor) -> dict[str, float]:
    """Precision, recall, F1 and number of texts of a class.

    Args:
        true: whether each text has the class, (N,).
        predicted: whether the classifier predicts it, (N,).
    """
    hits = int((true & predicted).sum())
    n_true = int(true.sum())
    n_predicted = int(predicted.sum())
    return {
        "precision": hits / n_predicted if n_predicted else 0.0,
        "recall": hits / n_true if n_true else 0.0,
        "f1": 2 * hits / (n_predicted + n_true) if n_predicted + n_true else 0.0,
        "n": n_true,
    }


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """The sum over all texts of the distance between confidence and accuracy in the text's bin."""
    bins = (confidence * 15).long().clamp(max=14)
    total = 0.0
    for number in bins.unique().tolist():
        inside = bins == number
        distance = abs(correct[inside].double().mean().item() - confidence[inside].mean().item())
        total += distance * int(inside.sum())
    return total


def _sklearn(module: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "classifiers", "training a classifier") from error
