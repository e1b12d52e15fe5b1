"""The bundled SmolLM2-135M: every way in agrees with the oracle on a real model, and guidance changes its text."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import textguide
from textguide import AWRS, CFG, CFGLogitsProcessor, guided_decoding
from textguide.constraints import Regex
from textguide.engine.model_views import copying_heads, part
from textguide.guidance import Steering
from textguide.guidance.views import MaskedHeads
from textguide.reference import decoding
from textguide.smc.lookahead import hidden_markov, naming

from .marks import NEEDS_SMOLLM2

pytestmark = NEEDS_SMOLLM2
PROMPT = "The dragon flew over Paris, France,"


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    return textguide.load("smollm2", device="cpu")


def test_every_way_in_equals_the_oracle(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    ids = tokenizer(PROMPT).input_ids
    expected, distributions = decoding.generate(model, ids, CFG(1.5), [ids[-1:]], 6)
    out = textguide.generate(model, tokenizer, [PROMPT], CFG(1.5), max_new_tokens=6)
    assert out.new_tokens[0] == expected
    log_probs = [distribution[token] for distribution, token in zip(distributions, expected, strict=True)]
    assert out.log_probs[0].tolist() == pytest.approx(log_probs, abs=1e-4)
    scored = textguide.score(model, tokenizer, [PROMPT], [expected], CFG(), scales=[1.0, 1.5])
    assert scored.log_likelihood[1, 0].item() == pytest.approx(sum(log_probs), abs=1e-3)
    common: dict[str, Any] = {
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long), "max_new_tokens": 6, "do_sample": False,
    }  # fmt: skip
    custom = model.generate(torch.tensor([ids]), **common, custom_generate=guided_decoding(CFG(1.5)))
    drop_in = model.generate(torch.tensor([ids]), **common, logits_processor=[CFGLogitsProcessor(model, 1.5)])
    assert custom[0, len(ids) :].tolist() == drop_in[0, len(ids) :].tolist() == expected


def test_guidance_changes_the_text_and_scale_one_does_not(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer([PROMPT], return_tensors="pt")
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    same = textguide.generate(model, tokenizer, [PROMPT], CFG(1.0), max_new_tokens=12)
    other = textguide.generate(model, tokenizer, [PROMPT], CFG(1.5), max_new_tokens=12)
    assert same.new_tokens[0] == plain.tolist()
    assert other.new_tokens[0] != plain.tolist()
    assert other.effect.mean_kl > 0.01
    assert other.texts[0].isascii()


@pytest.mark.parametrize("draft", ["prompt-lookup", "recycling"])
def test_speculation_writes_the_same_text_in_fewer_passes(smollm2: tuple[Any, Any], draft: str) -> None:
    model, tokenizer = smollm2
    prompt = "Monday: open 9 to 5. Tuesday: open 9 to 5. Wednesday:"
    for sampling in ({}, {"temperature": 0.3, "seed": 0}):
        plain = textguide.generate(model, tokenizer, prompt, CFG(1.5), max_new_tokens=24, **sampling)
        fast = textguide.generate(model, tokenizer, prompt, CFG(1.5), max_new_tokens=24, speculation=draft, **sampling)
        assert fast.new_tokens == plain.new_tokens
        torch.testing.assert_close(fast.log_probs, plain.log_probs, atol=1e-3, rtol=1e-3)
        assert fast.speculation is not None
        assert fast.speculation.passes < 20


def test_the_steering_vector_that_comes_along_moves_the_mood(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    prompts, words = ["All in all, the film was"] * 4, [" wonderful", " beautiful", " terrible", " awful"]

    def mood(strength: float) -> float:
        guidance = Steering("smollm2-positive", 18, strength)
        wonderful, beautiful, terrible, awful = textguide.score(
            model, tokenizer, prompts, words, guidance
        ).log_likelihood[0].tolist()  # fmt: skip
        return float(wonderful + beautiful - terrible - awful)

    moods = [mood(strength) for strength in (-4.0, 0.0, 4.0)]
    assert moods[0] + 1 < moods[1] < moods[2] - 1


def test_the_heads_that_copy_are_those_without_which_nothing_is_copied(smollm2: tuple[Any, Any]) -> None:
    model, _ = smollm2
    text = [int(token) for token in torch.randint(49152, (40,), generator=torch.Generator().manual_seed(1))]
    scores = copying_heads(model)
    assert scores.max() > 0.5

    def copied(heads: tuple[tuple[int, int], ...]) -> float:
        view = part(model, MaskedHeads(heads)) if heads else model
        with torch.no_grad():
            logp = view(input_ids=torch.tensor([[*text, *text]])).logits[0].log_softmax(-1)
        return float(logp[torch.arange(40, 79), text[1:]].mean())

    order = scores.flatten().argsort(descending=True).tolist()
    heads = [divmod(place, scores.shape[1]) for place in order]
    most, fewest = tuple(heads[:10]), tuple(heads[-10:])
    whole, without_most, without_fewest = copied(()), copied(most), copied(fewest)
    assert without_most < whole - 2
    assert without_fewest > without_most + 2


def test_the_hidden_markov_model_that_comes_along_is_one_of_this_models_texts(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    date = Regex("(19|20)[0-9]{2}-[0-9]{2}")
    out = textguide.generate(
        model, tokenizer, "The war ended in ", AWRS(date, particles=4, lookahead="hmm"), seed=0, max_new_tokens=9
    )
    assert all(re.fullmatch(date.pattern, text) for text in out.texts)
    known = hidden_markov.load(naming.SHIPPED)
    likely, unlikely = (
        known.log_likelihood(tokenizer(text)["input_ids"]) for text in ("On 1987-06-12 it was", "it 12 was-06 On-1987")
    )
    assert likely > unlikely + 2
