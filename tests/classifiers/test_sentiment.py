"""The classifier that the package carries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from textguide.classifiers import LinearClassifier, resolve
from textguide.classifiers.training import evaluate, read_examples


def test_sentiment() -> None:
    classifier = resolve("sentiment")
    assert isinstance(classifier, LinearClassifier)
    assert classifier.labels == ("negative", "positive")
    distribution = classifier.log_prob(["What a wonderful film!", "A dull, tedious mess.", ""])
    assert distribution.argmax(1).tolist()[:2] == [1, 0]
    torch.testing.assert_close(distribution.exp().sum(1), torch.ones(3))
    assert 0.3 < distribution[2, 1].exp().item() < 0.7


def test_accuracy_is_the_one_that_is_written_beside_it() -> None:
    if "TEXTGUIDE_DATA" not in os.environ:
        pytest.skip("TEXTGUIDE_DATA is not set: no SST-2 to measure on")
    examples = read_examples(
        Path(os.environ["TEXTGUIDE_DATA"]) / "sst2" / "test.tsv", header=True, names=("negative", "positive")
    )
    report = evaluate(resolve("sentiment"), examples)
    assert report.n == 872
    assert report.accuracy == pytest.approx(0.8257, abs=1e-3)
