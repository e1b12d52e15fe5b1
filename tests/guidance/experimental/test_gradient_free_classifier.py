"""Gradient-free classifier guidance: the reference and the scale follow what a classifier says of the text so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import textguide
from textguide import AWRS, CFG
from textguide.classifiers import FunctionClassifier
from textguide.constraints import Regex, Vocabulary
from textguide.guidance import GradientFreeClassifier, Guidance, Step
from textguide.guidance.places import check_place
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from ...architectures import Tokenizer, build
from ..oracles import mixed, oracle, settings

TOKENIZER = Tokenizer()


def kinds(texts: Sequence[str]) -> torch.Tensor:
    """Three classes, which depend on every character and on their order."""
    scores = [
        [0.2 * sum(math.sin((2 + kind) * ord(c) + 0.3 * i) for i, c in enumerate(text)) for kind in range(3)]
        for text in texts
    ]
    return torch.tensor(scores, dtype=torch.float32).reshape(len(texts), 3).log_softmax(-1)


KINDS = FunctionClassifier(kinds, ("good", "bad", "odd"), name="kinds")
PROMPTS = {"bad": (17, 18, 19), "odd": (20, 9)}


@oracle("gradient-free-classifier")
def gradient_free(guidance: GradientFreeClassifier, logps: list[list[float]], s: float, text: list[int]) -> list[float]:
    read = text if isinstance(text, str) else TOKENIZER.decode(text)
    said = [math.exp(p) for p in KINDS.log_prob([read])[0].tolist()]
    shares = {label: said[KINDS.index(label)] for label in guidance.classes}
    target = shares.pop(guidance.target)
    reference = max(shares, key=lambda label: shares[label])
    confusion = shares[reference] / (shares[reference] + target)
    inside = guidance.start <= s <= guidance.stop
    scale = 1 + (guidance.scale - 1) * decoding.schedule_multiplier(guidance.schedule, s) if inside else 1.0
    if not inside:
        return logps[0]
    other = logps[1 + list(shares).index(reference)]
    return decoding.normalized(mixed(logps[0], other, 1 + (scale - 1) * confusion))


settings(
    GradientFreeClassifier(KINDS, "good", PROMPTS, scale=1.0),
    GradientFreeClassifier(KINDS, "good", PROMPTS),
    GradientFreeClassifier(KINDS, "odd", {"bad": (4, 4, 8)}, scale=6.0, schedule="linear", start=0.2),
)


def test_the_reference_is_the_likeliest_other_class_and_the_scale_its_confusion() -> None:
    logp = torch.randn(3, 2, 7).log_softmax(-1)
    said = torch.tensor([[0.5, 0.3], [0.4, 0.1], [0.1, 0.6]]).log()
    guidance = GradientFreeClassifier(KINDS, "good", PROMPTS, scale=4.0)
    guided = guided_log_probs(guidance, logp, Step(class_log_probs=said))
    first = guided_log_probs(CFG(1 + 3 * 0.4 / 0.9), logp[[0, 1], :1], Step())
    second = guided_log_probs(CFG(1 + 3 * 0.6 / 0.9), logp[[0, 2], 1:], Step())
    torch.testing.assert_close(guided, torch.cat([first, second]))
    sure = torch.tensor([[0.0, 0.0], [-1e4, -1e4], [-1e4, -1e4]])
    torch.testing.assert_close(guided_log_probs(guidance, logp, Step(class_log_probs=sure)), logp[0])
    with pytest.raises(ValueError, match=r"step\.class_log_probs=None"):
        guided_log_probs(guidance, logp, Step())


def test_rows_that_move_are_read_as_they_are() -> None:
    """Every token has the probability that the text in front of it, and no other, gives it."""
    letters = Tokenizer.letters.encode()
    rest = [b""] * (61 - 3 - len(letters))
    vocabulary = Vocabulary((b"", b"", b"", *(bytes([c]) for c in letters), *rest), frozenset({2}))

    def early(text: str) -> float:
        return 2.0 * sum(letter < "m" for letter in text)

    guidance = GradientFreeClassifier(KINDS, "good", PROMPTS, scale=5.0)
    out = textguide.generate(
        build("llama"), TOKENIZER, [[5, 9, 33]], [guidance, AWRS(Regex("[a-z]*"), particles=6, critic=early)],
        max_new_tokens=6, seed=3, vocabulary=vocabulary, eos_token_id=2,
    )  # fmt: skip
    assert len({tuple(tokens[:2]) for tokens in out.new_tokens}) < 6
    scored = textguide.score(
        build("llama"), TOKENIZER, [[5, 9, 33]] * 6, out.new_tokens, guidance, batch_size=4, horizon=6
    )
    for row in range(6):
        torch.testing.assert_close(
            out.log_probs[row][: len(out.new_tokens[row])], scored.log_probs[row][0], atol=1e-3, rtol=1e-4
        )


def test_the_prompt_may_be_left_out_and_a_name_stands_for_a_classifier() -> None:
    asked: list[str] = []

    def spy(texts: Sequence[str]) -> torch.Tensor:
        asked.extend(texts)
        return kinds(texts)

    guidance = GradientFreeClassifier(
        FunctionClassifier(spy, KINDS.labels), 0, {1: "dull"}, include_prompt=False, scale=2.0
    )
    out = textguide.generate(build("llama"), TOKENIZER, [[5, 9, 33]], guidance, max_new_tokens=3)
    written = out.new_tokens[0]
    assert asked == [TOKENIZER.decode(written[:n]) for n in range(3)]
    named = GradientFreeClassifier("sentiment", "positive", {"negative": "sad"})
    assert textguide.generate(build("llama"), TOKENIZER, [[5, 9]], named, max_new_tokens=2).effect.guided_steps == 2


def test_identity_and_places() -> None:
    guidance = GradientFreeClassifier(
        "sentiment", "positive", {"negative": "A sad text:", "neutral": [{"role": "user", "content": "x"}]}, scale=2
    )
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert hash(guidance)
    system = GradientFreeClassifier("sentiment", "positive", {"negative": "Be sad."}, system=True)
    assert system.branches[0].system == "Be sad."
    for place in ("dropin", "vllm", "diffusion"):
        with pytest.raises(ValueError, match=r"another prompt|calls a classifier on the text so far"):
            check_place(guidance, place)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classifier": None}, "classifier=None does not have log_prob"),
        ({"target": ""}, "target=''"),
        ({"prompts": {}}, r"prompts=\{\} must map"),
        ({"prompts": "sad"}, "prompts='sad' must map"),
        ({"prompts": {"positive": "x"}}, "must differ from target"),
        ({"prompts": {"negative": None}}, "=None must be a prompt"),
        ({"prompts": {"negative": 3.5}}, r"prompts\['negative'\]=3\.5 is not a prompt"),
        ({"prompts": {"negative": (1, 2)}, "system": True}, "must be a text"),
        ({"system": 1}, "system=1"),
        ({"scale": math.inf}, "scale=inf"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientFreeClassifier(
            **{"classifier": "sentiment", "target": "positive", "prompts": {"negative": "sad"}, **fields}
        )


def test_a_class_that_is_none_is_named() -> None:
    guidance = GradientFreeClassifier(KINDS, "good", {"strange": "x"})
    with pytest.raises(ValueError, match="'strange' is not a class of kinds"):
        textguide.generate(build("llama"), TOKENIZER, [[5, 9]], guidance, max_new_tokens=1)
    with pytest.raises(ValueError, match="tokenizer=None"):
        build("llama").generate(
            torch.tensor([[5, 9]]), max_new_tokens=1, do_sample=False,
            custom_generate=textguide.guided_decoding(GradientFreeClassifier(KINDS, "good", PROMPTS)),
        )  # fmt: skip
