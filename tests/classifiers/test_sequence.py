"""transformers classifiers: heads, truncation from the left, batches, loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from textguide.classifiers import SequenceClassifier, resolve
from textguide.support.errors import ModelUnavailableError

from . import models

TEXTS = ["a good film .", "bad", "", "the film is not very good .", "good " * 40 + "bad", "not good"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return models.bert_tokenizer(tmp_path_factory.mktemp("bert"))


def plain_logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """One text, cut by hand: the newest ten tokens between the special ones."""
    words = tokenizer(text, add_special_tokens=False).input_ids[-10:]
    with torch.no_grad():
        return model(torch.tensor([[2, *words, 3]])).logits[0]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_softmax(tokenizer: Any, batch_size: int) -> None:
    model = models.bert(num_labels=3)
    classifier = SequenceClassifier(model, tokenizer, batch_size=batch_size, name="tiny")
    assert classifier.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    expected = torch.stack([plain_logits(model, tokenizer, text).log_softmax(0) for text in TEXTS])
    assert expected.std(0).max() > 0.05
    torch.testing.assert_close(classifier.log_prob(TEXTS), expected, atol=1e-4, rtol=0)
    assert classifier.is_normalized
    assert classifier.log_prob([]).shape == (0, 3)


def test_sigmoid(tokenizer: Any) -> None:
    model = models.bert(num_labels=2, problem_type="multi_label_classification", id2label={0: "rude", 1: "warm"})
    classifier = SequenceClassifier(model, tokenizer)
    expected = torch.stack([F.logsigmoid(plain_logits(model, tokenizer, text)) for text in TEXTS])
    torch.testing.assert_close(classifier.log_prob(TEXTS), expected, atol=1e-4, rtol=0)
    assert not classifier.is_normalized
    softmax = SequenceClassifier(model, tokenizer, activation="softmax")
    torch.testing.assert_close(softmax.log_prob(TEXTS).exp().sum(1), torch.ones(len(TEXTS)))


def test_one_output(tokenizer: Any) -> None:
    model = models.bert(num_labels=1, id2label={0: "toxic"})
    classifier = SequenceClassifier(model, tokenizer)
    assert classifier.labels == ("not toxic", "toxic")
    logit = plain_logits(model, tokenizer, TEXTS[0])
    got = classifier.log_prob(TEXTS[:1])[0]
    torch.testing.assert_close(got, torch.cat([F.logsigmoid(-logit), F.logsigmoid(logit)]), atol=1e-4, rtol=0)
    assert classifier.is_normalized


def test_the_newest_words_survive(tokenizer: Any) -> None:
    classifier = SequenceClassifier(models.bert(num_labels=2), tokenizer)
    good, bad = classifier.log_prob(["the " * 50 + "good", "the " * 50 + "bad"])
    assert (good - bad).abs().max() > 1e-3
    assert tokenizer.truncation_side == "right"  # the user's own is as it was


def test_continuations(tokenizer: Any) -> None:
    classifier = SequenceClassifier(models.bert(num_labels=2), tokenizer, batch_size=3)
    got = classifier.continuations(["a good", ""], [[" film", "", " film ."], ["bad"]])
    torch.testing.assert_close(
        got[0], classifier.log_prob(["a good film", "a good", "a good film ."]), atol=1e-5, rtol=0
    )


def test_wrong_arguments(tokenizer: Any) -> None:
    model = models.bert(num_labels=3)
    for options, match in (
        ({"activation": "relu"}, "activation='relu'"),
        ({"labels": ("a", "b")}, "do not fit the 3 outputs"),
        ({"max_length": 0}, "max_length=0"),
    ):
        with pytest.raises(ValueError, match=match):
            SequenceClassifier(model, tokenizer, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="regression"):
        SequenceClassifier(models.bert(num_labels=1, problem_type="regression"), tokenizer)


def test_loading(tokenizer: Any, tmp_path: Path) -> None:
    model = models.bert(num_labels=2, id2label={0: "neg", 1: "pos"})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classifier = resolve(f"hf:{tmp_path}")
    assert classifier.labels == ("neg", "pos")
    torch.testing.assert_close(classifier.log_prob(TEXTS), SequenceClassifier(model, tokenizer).log_prob(TEXTS))
    model.bert.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelUnavailableError, match="no trained weights for classifier"):
        resolve(f"hf:{tmp_path / 'bare'}")
    with pytest.raises(ModelUnavailableError, match="could not be loaded"):
        resolve(f"hf:{tmp_path / 'nothing'}")
