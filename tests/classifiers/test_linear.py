"""The linear classifier: equal to its definition, and endings equal to full texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.classifiers import Features, LinearClassifier, linear, load_linear, resolve

from . import oracle

TEXTS = [
    "", " ", "A charming, often affecting journey.", "It doesn't work; it does n't WORK", "don't don't don't",
    "naïve café ’s Straße İstanbul", "x" * 200, "x" * 64, "x" * 63 + " y", "a\x1cb\u2028c\u00a0d", "日本語のテキスト",
    "\ud800 lone", "not good, not good; not bad",
]  # fmt: skip
ENDINGS = [
    "",
    " ",
    "ing",
    ".",
    " great",
    "n't",
    "'t",
    "'s",
    ", but",
    " is it? No",
    "x" * 70,
    "\n\nThe",
    "é",
    " not",
    "’s",
]


def random_classifier(classes: int = 2, columns: int | None = None, **options: Any) -> LinearClassifier:
    generator = torch.Generator().manual_seed(classes)
    features = Features(buckets=1 << 12, **options)
    columns = columns or classes
    weights = torch.randn(features.buckets, columns, generator=generator) / 4
    labels = [f"c{i}" for i in range(classes)]
    return LinearClassifier(weights, torch.randn(columns, generator=generator), labels, features, name="random")


CLASSIFIERS = {
    "two columns": random_classifier(),
    "one column": random_classifier(2, 1),
    "five classes": random_classifier(5),
    "words": random_classifier(3, shortest=0, longest=0, pairs=False),
}


@pytest.fixture(params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest) -> LinearClassifier:
    return CLASSIFIERS[request.param]


def test_log_prob_is_its_definition(classifier: LinearClassifier) -> None:
    got = classifier.log_prob(TEXTS)
    assert got.dtype == torch.float32
    expected = torch.tensor([oracle.linear(classifier, text) for text in TEXTS])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_endings_are_full_texts(classifier: LinearClassifier) -> None:
    got = classifier.continuations(TEXTS, [ENDINGS] * len(TEXTS))
    for mine, theirs in zip(got, oracle.continuations(classifier, TEXTS, [ENDINGS] * len(TEXTS)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.lists(st.text(max_size=12), max_size=4))
def test_endings_are_full_texts_for_any_text(prefix: str, endings: list[str]) -> None:
    classifier = CLASSIFIERS["two columns"]
    (got,) = classifier.continuations([prefix], [endings])
    (expected,) = oracle.continuations(classifier, [prefix], [endings])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_endings_are_full_texts_at_every_cut() -> None:
    text = "It doesn't matter: the film's \"charm\" isn't lost, it'll last 100 years... " + "y" * 150 + " end"
    classifier = CLASSIFIERS["five classes"]
    whole = classifier.log_prob([text])
    cuts = range(len(text) + 1)
    got = torch.cat(classifier.continuations([text[:i] for i in cuts], [[text[i:]] for i in cuts]))
    torch.testing.assert_close(got, whole.expand_as(got), atol=1e-5, rtol=0)


def test_ragged_rows(classifier: LinearClassifier) -> None:
    got = classifier.continuations(["a b", "c"], [[], ["d", " e"]])
    assert [tuple(values.shape) for values in got] == [(0, len(classifier.labels)), (2, len(classifier.labels))]
    assert classifier.continuations([], []) == []
    assert classifier.log_prob([]).shape == (0, len(classifier.labels))


def test_repeating_gains_nothing() -> None:
    classifier = CLASSIFIERS["five classes"]
    once, twice = classifier.log_prob(["great great", "great great great great"])
    torch.testing.assert_close(once, twice)


def test_spelling_of_contractions_does_not_matter() -> None:
    words = Features().words
    assert words("doesn't") == ["does", "n't"] == [*words("does"), *words("n't")]
    assert words("It’s") == ["it", "'s"]
    assert words("can't've,") == ["ca", "n't", "'ve", ","] or words("can't've,")[:1] == ["can"]


def test_the_memory_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_MEMORY_SIZE", 20)
    small = random_classifier()
    rng = random.Random(0)
    for _ in range(10):
        texts = [" ".join(rng.choice("abcdefgh") * rng.randint(1, 5) for _ in range(5)) for _ in range(4)]
        torch.testing.assert_close(small.log_prob(texts), CLASSIFIERS["two columns"].log_prob(texts))
    assert len(small._memory.buckets) < 200


def test_saved_and_loaded(classifier: LinearClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "it")
    loaded = load_linear(tmp_path / "it")
    assert loaded.labels == classifier.labels
    assert loaded.features == classifier.features
    torch.testing.assert_close(loaded.log_prob(TEXTS), classifier.log_prob(TEXTS), atol=2e-2, rtol=0)
    again = resolve(str(tmp_path / "it"))
    assert again.to_dict() == loaded.to_dict()
    assert (again.log_prob(TEXTS) == loaded.log_prob(TEXTS)).all()


def test_descriptions_tell_weights_apart() -> None:
    assert random_classifier(3).to_dict() == random_classifier(3).to_dict()
    assert CLASSIFIERS["two columns"].to_dict() != CLASSIFIERS["one column"].to_dict()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"buckets": 1000}, "buckets=1000"),
        ({"buckets": 1 << 30}, "buckets"),
        ({"shortest": 4, "longest": 3}, "shortest=4"),
    ],
)
def test_wrong_features(options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Features(**options)


def test_wrong_weights() -> None:
    features = Features(buckets=256)
    with pytest.raises(ValueError, match=r"weights \(256, 3\)"):
        LinearClassifier(torch.zeros(256, 3), torch.zeros(3), ("a", "b"), features)
    with pytest.raises(ValueError, match="not finite"):
        LinearClassifier(torch.full((256, 1), torch.inf), torch.zeros(1), ("a", "b"), features)
