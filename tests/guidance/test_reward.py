"""ARGS: a reward's fields, its identity, what it can be, and the distribution it gives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import textguide
from textguide import CAIF, Guidance, Reward
from textguide.classifiers import FunctionClassifier, FunctionReward, RewardModel, resolve_reward
from textguide.guidance.places import check_place
from textguide.guidance.spec import parse
from textguide.reference import decoding
from textguide.support.errors import ModelUnavailableError

from ..architectures import VOCAB, Tokenizer, build
from ..classifiers import models
from ..smc.statistics import chi_square

PROMPT = [11, 4, 52]
TOKENIZER = Tokenizer()


def vowels(texts: Sequence[str]) -> list[float]:
    """A reward that a module holds under a name."""
    return [sum(math.sin(5 * ord(c)) for c in text) for text in texts]


def run(guidance: Any, **options: Any) -> Any:
    options.setdefault("max_new_tokens", 5)
    return textguide.generate(build("llama"), TOKENIZER, [PROMPT], guidance, **options)


def test_a_log_probability_as_reward_is_caif() -> None:
    def tone(texts: Sequence[str]) -> torch.Tensor:
        scores = torch.tensor([[v] for v in vowels(texts)])
        return torch.nn.functional.logsigmoid(torch.cat([-scores, scores], dim=1))

    caif = CAIF(FunctionClassifier(tone, ["low", "high"]), "high", 2.0, top_k=12)
    reward = Reward(lambda texts: tone(texts)[:, 1], 2.0, top_k=12)
    one, other = (run(guidance, do_sample=True, seed=1, num_return_sequences=4) for guidance in (caif, reward))
    assert one.new_tokens == other.new_tokens
    assert all(torch.equal(a, b) for a, b in zip(one.log_probs, other.log_probs, strict=True))


def test_sampled_at_a_temperature_it_is_the_softmax_of_the_scores() -> None:
    """ARGS-stochastic; plain sampling is seen to be another distribution."""
    plain = decoding.next_log_probs(build("llama"), PROMPT)
    order = sorted(range(VOCAB), key=lambda token: -plain[token])[:8]
    scores = {token: plain[token] + 0.8 * vowels([TOKENIZER.decode([*PROMPT, token])])[0] for token in order}
    total = math.log(sum(math.exp(score / 0.7) for score in scores.values()))
    expected = {token: math.exp(score / 0.7 - total) for token, score in scores.items()}

    def drawn(weight: float) -> Counter[int]:
        out = textguide.generate(
            build("llama"), TOKENIZER, [PROMPT] * 2000, Reward(vowels, weight, 8), max_new_tokens=1, seed=0,
            temperature=0.7, top_k=0,
        )  # fmt: skip
        return Counter(row[0] for row in out.new_tokens)

    assert chi_square(drawn(0.8), expected, 2000) > 1e-3
    assert chi_square(drawn(0.4), expected, 2000) < 1e-6


def test_greedy_takes_the_best_score() -> None:
    out = run(Reward(vowels, 1.5, top_k=6), max_new_tokens=1)
    plain = decoding.next_log_probs(build("llama"), PROMPT)
    order = sorted(range(VOCAB), key=lambda token: -plain[token])[:6]
    best = max(order, key=lambda token: plain[token] + 1.5 * vowels([TOKENIZER.decode([*PROMPT, token])])[0])
    assert out.new_tokens == [[best]]
    assert best != order[0]


def test_identity_and_text() -> None:
    guidance = Reward("rewards/mine", -2, top_k=None, every=2)
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert parse("reward:model=rewards/mine,weight=-2,top_k=null,every=2") == guidance
    assert Reward("x", 0).is_neutral
    # A function goes by its name, and is found by it.
    named = Reward(vowels)
    assert named.to_dict()["model"] == f"python:{__name__}:vowels"
    again = Guidance.from_json(named.to_json())
    assert run(again).new_tokens == run(named).new_tokens
    assert Reward(FunctionReward(vowels)).to_dict()["model"] == {"kind": "python", "function": f"{__name__}:vowels"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 3}, "model=3 is not a reward"),
        ({"model": " "}, "model=' ' is not a reward"),
        ({"weight": math.inf}, "weight=inf"),
        ({"top_k": 0}, "top_k=0"),
        ({"include_prompt": "no"}, "include_prompt='no'"),
        ({"start": 0.6, "stop": 0.5}, r"start=0\.6"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reward(**{"model": "mine", **fields})


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda texts: [math.nan] * len(texts), "reward <lambda> returned NaN for reward, text"),
        (lambda texts: [-math.inf] * len(texts), r"returned -inf for text .* must be within ±1e\+06"),
        (lambda texts: [1.0], "returned 1 rows for 5 texts"),
        (lambda texts: [[1.0, 2.0]] * len(texts), r"returned shape \(5, 2\)"),
        (lambda texts: "good", "returned str, not numbers"),
    ],
)
def test_wrong_rewards_are_named(fn: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(Reward(FunctionReward(fn, name="<lambda>"), top_k=5), max_new_tokens=1)


# -- models ---------------------------------------------------------------------------------------------------------


TEXTS = ["a good film .", "bad", "the film is not very good .", "good " * 40 + "bad", "not good"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return models.bert_tokenizer(tmp_path_factory.mktemp("bert"))


def decoder(tokenizer: Any, pad: int | None) -> Any:
    config = tf.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=1, pad_token_id=pad,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return tf.GPT2ForSequenceClassification(config).eval()


@pytest.mark.parametrize("kind", ["bert", "decoder", "decoder-without-padding"])
def test_a_model_with_one_output(tokenizer: Any, kind: str) -> None:
    model = models.bert(num_labels=1) if kind == "bert" else decoder(tokenizer, 0 if kind == "decoder" else None)
    reward = RewardModel(model, tokenizer, max_length=12)
    values = reward.values(TEXTS)
    assert values.std() > 1e-3
    for text, value in zip(TEXTS, values, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids[-10:]
        with torch.no_grad():
            expected = model(torch.tensor([[2, *ids, 3]])).logits[0]
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
    parts = reward.continuations(["a good"], [[" film .", " bad"]])[0]
    torch.testing.assert_close(parts, reward.values(["a good film .", "a good bad"]))


def test_a_folder_is_loaded_and_guides(tokenizer: Any, tmp_path: Path) -> None:
    models.bert(num_labels=1).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    loaded = resolve_reward(str(tmp_path / "reward"))
    torch.testing.assert_close(loaded.values(TEXTS), RewardModel(models.bert(num_labels=1), tokenizer).values(TEXTS))
    assert resolve_reward("hf:" + str(tmp_path / "reward")).name.startswith("hf:")
    models.bert(num_labels=3).save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="has 3 outputs and a reward model has one"):
        resolve_reward(str(tmp_path / "three"))
    with pytest.raises(ValueError, match="is not a folder"):
        resolve_reward("nothing here")
    with pytest.raises(ValueError, match="has no 'absent'"):
        resolve_reward("python:math:absent")
    with pytest.raises(ModelUnavailableError, match="reward hf:"):
        resolve_reward("hf:" + str(tmp_path))
    with pytest.raises(ValueError, match="RewardModel"):
        Reward(models.bert(num_labels=1))


def test_places() -> None:
    with pytest.raises(
        ValueError, match=r"only calls the classifier that it was started with; use textguide\.generate"
    ):
        check_place(Reward("mine"), "vllm")
