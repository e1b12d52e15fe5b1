"""CAIF with a classifier that shares the language model's tokenizer and keeps a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf

import textguide
from textguide import CAIF, CFG
from textguide.classifiers.causal import CausalSequenceClassifier
from textguide.reference import decoding

from ..architectures import BOS, EOS, PAD, VOCAB, Tokenizer, build

PROMPTS = ([5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44])
NEW = 6


@cache
def classifier(name: str) -> CausalSequenceClassifier:
    ids = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "num_labels": 2}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if name == "gpt2":
            config: Any = tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
            model: Any = tf.GPT2ForSequenceClassification(config)
        else:
            config = tf.LlamaConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, **ids,
            )  # fmt: skip
            model = tf.LlamaForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    return CausalSequenceClassifier.from_model(model.eval(), Tokenizer(), labels=["low", "high"], name="causal")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options", [{"top_k": 10}, {"top_k": None}, {"top_k": 10, "entropy_threshold": 0.5, "every": 2}]
)
def test_generation_equals_reading_every_candidate_anew(name: str, options: dict[str, Any]) -> None:
    guide = classifier(name)
    caif = CAIF(guide, "high", 3.0, **options)
    model = build("llama")
    prompts = [list(prompt) for prompt in PROMPTS]
    out = textguide.generate(model, Tokenizer(), prompts, [CFG(1.5), caif], max_new_tokens=NEW, eos_token_id=EOS)
    for row, prompt in enumerate(prompts):

        def reweigh(
            distribution: list[float], written: Sequence[int], index: int, s: float, prompt: Any = prompt
        ) -> list[float]:
            def read(_: Any, text: Any) -> float:
                return float(guide.log_prob_ids([text])[0, 1])

            # Texts are token ids here; without its end token a text is the finished one.
            return decoding.reweighed(
                [caif], distribution, prompt, written, index, s, score=read,
                text_of=lambda ids: ids[:-1] if ids[-1] == EOS else ids,  # type: ignore[arg-type, return-value]
            )  # fmt: skip

        tokens, _ = decoding.generate(model, prompt, CFG(1.5), [prompt[-1:]], NEW, end=EOS, reweigh=reweigh)
        assert out.new_tokens[row] == tokens


def test_the_end_token_is_the_finished_text() -> None:
    from textguide.classifiers.reweighting import Reweighter
    from textguide.guidance import Step

    guide = classifier("llama")
    reweighting = Reweighter([CAIF(guide, "high", 1.0, top_k=None)], Tokenizer(), build("llama"), [EOS])
    reweighting.begin([[5, 6, 7], [9]])
    reweighting.append([8, 10])
    reweighting.select([1, 0, 0])
    distribution = torch.log_softmax(torch.zeros(3, VOCAB), -1)
    changed, acted = reweighting(distribution, Step(), 1, [0, 1, 2])
    assert acted.all()
    for row, text in enumerate([[9, 10], [5, 6, 7, 8], [5, 6, 7, 8]]):
        finished, going_on = guide.log_prob_ids([text, [*text, 11]])[:, 1]
        assert (changed[row, EOS] - changed[row, 11]).item() == pytest.approx((finished - going_on).item(), abs=1e-4)
