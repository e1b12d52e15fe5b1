"""The protocol: labels, checks, and scoring many endings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from textguide.classifiers import Classifier, FunctionClassifier, checked
from textguide.classifiers.base import FLOOR

from . import oracle


def by_length(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text) / 7, text.count("a") - 1.0, 0.5] for text in texts]).log_softmax(1)


@pytest.fixture
def classifier() -> FunctionClassifier:
    return FunctionClassifier(by_length, ("Short", "long", "other"), name="length")


def test_labels(classifier: Classifier) -> None:
    assert [classifier.index(x) for x in ("Short", "short", "OTHER", 1, "1")] == [0, 0, 2, 1, 1]
    for wrong in ("sweet", 3, -1, True, "", 1.0):
        with pytest.raises(ValueError, match="is not a class of length; its classes are Short, long, other"):
            classifier.index(wrong)  # type: ignore[arg-type]


def test_labels_that_differ_in_case_alone() -> None:
    twins = FunctionClassifier(by_length, ("a", "A", "b"))
    assert (twins.index("a"), twins.index("A"), twins.index("B")) == (0, 1, 2)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_continuations_are_the_full_texts(classifier: Classifier, batch_size: int) -> None:
    classifier.batch_size = batch_size
    prefixes = ["The cat", "", "The cat", "banana"]
    endings = [[" sat", "a", ""], ["The cat sat", "x"], ["s", " sat"], []]
    got = classifier.continuations(prefixes, endings)
    for mine, theirs in zip(got, oracle.continuations(classifier, prefixes, endings), strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs)


def test_a_text_is_read_once_and_batches_hold_like_lengths() -> None:
    calls: list[list[str]] = []

    def fn(texts: list[str]) -> torch.Tensor:
        calls.append(texts)
        return by_length(texts)

    spy = FunctionClassifier(fn, ("a", "b", "c"), batch_size=2)
    spy.continuations(["ab", "a"], [["c", "", "cdef"], ["bc", "b", "bc"]])
    assert sorted(text for call in calls for text in call) == ["ab", "abc", "abcdef"]
    assert [[len(text) for text in call] for call in calls] == [[6, 3], [2]]


def test_rows_must_match(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="endings has 1 rows for 2 prefixes"):
        classifier.continuations(["a", "b"], [["c"]])
    assert classifier.continuations([], []) == []


GOOD = math.log(0.5)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([[GOOD, math.nan], [GOOD, GOOD]], ["NaN", "class b", "'bad text"]),
        ([[0.5, 0.5], [0.5, 0.5]], ["above 0", "0.5", "logarithms"]),
        ([[GOOD, GOOD]], ["1 rows for 2 texts"]),
        ([[GOOD, GOOD]] * 3, ["3 rows for 2 texts"]),
        ([[GOOD], [GOOD]], ["shape (2, 1)", "(2, 2)", "a, b"]),
        ([GOOD, GOOD], ["shape (2,)"]),
        ([[-3.0, -3.0], [GOOD, GOOD]], ["sum to 0.09957", "is_normalized=False", "'bad text"]),
        ("words", ["returned str"]),
        (None, ["returned NoneType"]),
    ],
)
def test_wrong_answers_name_the_classifier(values: Any, parts: list[str]) -> None:
    classifier = FunctionClassifier(lambda texts: values, ("a", "b"), name="broken")
    texts = ["bad text " + "x" * 99, "other"]
    for call in (lambda: classifier.log_prob(texts), lambda: classifier.continuations([""], [texts])):
        with pytest.raises(ValueError, match="classifier broken returned") as caught:
            call()
        for part in parts:
            if not part.startswith("'"):
                assert part in str(caught.value)
        assert len(str(caught.value)) < 220
    with pytest.raises(ValueError) as caught:
        classifier.log_prob(texts)
    assert all(part in str(caught.value) for part in parts)


def test_a_classifier_of_ones_own_is_checked_too() -> None:
    class Broken(Classifier):
        name = "mine"
        labels = ("a", "b")

        def log_prob(self, texts: Sequence[str]) -> Any:
            return torch.full((len(texts), 2), math.nan)

        def to_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(ValueError, match="classifier mine returned NaN"):
        Broken().continuations(["a"], [["b"]])


def test_minus_infinity_stays_finite() -> None:
    classifier = FunctionClassifier(lambda texts: [[0.0, -math.inf]], ("a", "b"))
    assert classifier.log_prob(["x"]).tolist() == [[0.0, FLOOR]]
    values = checked(classifier, [[5e-5, -20.0]], 1)
    assert values.tolist() == [[0.0, -20.0]]


def test_sigmoid_heads_need_not_sum_to_one() -> None:
    free = FunctionClassifier(lambda texts: [[-3.0, -3.0]] * len(texts), ("a", "b"), is_normalized=False)
    assert free.log_prob([""]).tolist() == [[-3.0, -3.0]]


def test_probabilities() -> None:
    classifier = FunctionClassifier(lambda texts: [[0.25, 0.75]] * len(texts), ("a", "b"), probabilities=True)
    torch.testing.assert_close(classifier.log_prob(["x"]).exp(), torch.tensor([[0.25, 0.75]]))
    assert classifier.log_prob([]).shape == (0, 2)
    wrong = FunctionClassifier(lambda texts: [[-0.5, 1.5]], ("a", "b"), probabilities=True, name="wrong")
    with pytest.raises(ValueError, match="classifier wrong returned a probability below 0"):
        wrong.log_prob(["x"])


@pytest.mark.parametrize("labels", [("a",), ("a", "a"), "ab", ("a", ""), ("a", 1), ()])
def test_wrong_labels(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels="):
        FunctionClassifier(by_length, labels)


def test_not_a_function() -> None:
    with pytest.raises(ValueError, match="fn=3"):
        FunctionClassifier(3, ("a", "b"))  # type: ignore[arg-type]
