"""score: many settings from one pair of passes, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import textguide
from textguide import CFG
from textguide.guidance import Formula
from textguide.reference import decoding

from .architectures import ENCODER_DECODER, NAMES, Tokenizer, build
from .test_conformance import _count_rows

TOKENIZER = Tokenizer()
CONTEXTS = [[5, 9, 33, 7, 20], [4, 8], [11, 4, 52, 8, 30, 31]]
TARGETS = [[7, 8, 9], [21], [30, 31, 32, 33]]
SCALES = [0.0, 1.0, 1.25, 1.5, 3.0]


SHARED = [[5, 9, 33, 7, 20], [4, 8], [5, 9, 33, 7, 20], [4, 8], [5, 9, 33, 7, 20]]
CHOICES = [[7, 8, 9], [21], [30], [30, 31, 32, 33], [7, 9]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("contexts", "targets"), [(CONTEXTS, TARGETS), (SHARED, CHOICES)], ids=["unlike", "shared"])
def test_equals_the_oracle_at_every_scale(name: str, contexts: list[list[int]], targets: list[list[int]]) -> None:
    model = build(name)
    scored = textguide.score(model, TOKENIZER, contexts, targets, CFG(), scales=SCALES, batch_size=4)
    for s, scale in enumerate(SCALES):
        for n, (context, target) in enumerate(zip(contexts, targets, strict=True)):
            if name in ENCODER_DECODER:
                from textguide.engine.branch_inputs import empty_source

                start = [model.config.decoder_start_token_id]
                negative = [empty_source(model.config)]
                expected, greedy = decoding.score(model, start, target, CFG(scale), negative, source=context)
            else:
                expected, greedy = decoding.score(model, context, target, CFG(scale), [context[-1:]])
            assert scored.log_probs[n][s].tolist() == pytest.approx(expected, abs=1e-3)
            assert bool(scored.is_greedy[s, n]) == greedy
    assert scored.tokens.tolist() == [len(target) for target in targets]


def test_a_shared_context_is_read_once() -> None:
    model = build("llama")
    with _count_rows(model) as rows:
        textguide.score(model, TOKENIZER, SHARED, CHOICES)
    assert rows == [2, 3]


def test_many_scales_equal_separate_runs_and_cost_no_further_pass() -> None:
    model = build("llama")
    with _count_rows(model) as rows:
        together = textguide.score(model, TOKENIZER, CONTEXTS, TARGETS, CFG(), scales=SCALES)
    assert len(rows) == 2
    for s, scale in enumerate(SCALES):
        alone = textguide.score(model, TOKENIZER, CONTEXTS, TARGETS, CFG(scale))
        if scale == 1.0:
            # A neutral guidance runs no extra branch; its conditional branch is the same.
            assert torch.equal(alone.log_likelihood[0], together.log_likelihood[s])
        assert torch.equal(alone.log_likelihood[0], together.log_likelihood[s])
        assert torch.equal(alone.is_greedy[0], together.is_greedy[s])


def test_paper_mode_sums_without_renormalising() -> None:
    model = build("gpt2")
    plain = textguide.score(model, TOKENIZER, CONTEXTS, TARGETS)
    uncond = textguide.score(model, TOKENIZER, [c[-1:] for c in CONTEXTS], TARGETS)
    paper = textguide.score(model, TOKENIZER, CONTEXTS, TARGETS, CFG(1.5, renormalize=False))
    expected = 1.5 * plain.log_likelihood - 0.5 * uncond.log_likelihood
    torch.testing.assert_close(paper.log_likelihood, expected, atol=1e-4, rtol=0)
    renormalized = textguide.score(model, TOKENIZER, CONTEXTS, TARGETS, CFG(1.5))
    assert not torch.allclose(paper.log_likelihood, renormalized.log_likelihood, atol=1e-3)


def test_settings_with_a_schedule_and_plain_together() -> None:
    model = build("llama")
    settings = [None, CFG(1.5), CFG(1.5, schedule="linear"), CFG(2.0, start=0.5)]
    scored = textguide.score(model, TOKENIZER, CONTEXTS, TARGETS, settings=settings)
    for s, setting in enumerate(settings):
        for n, (context, target) in enumerate(zip(CONTEXTS, TARGETS, strict=True)):
            expected, _ = decoding.score(model, context, target, setting, [context[-1:]])
            assert scored.log_likelihood[s, n].item() == pytest.approx(sum(expected), abs=1e-3)


def test_texts_chats_and_one_context_for_all() -> None:
    model = build("llama")
    by_text = textguide.score(model, TOKENIZER, "hello", [" there", " you"], CFG(2.0))
    by_ids = textguide.score(
        model,
        TOKENIZER,
        [TOKENIZER("hello").input_ids] * 2,
        [TOKENIZER(" there").input_ids, TOKENIZER(" you").input_ids],
        CFG(2.0),
    )
    assert torch.equal(by_text.log_likelihood, by_ids.log_likelihood)
    chat = [{"role": "user", "content": "hi"}]
    guided = textguide.score(model, TOKENIZER, [chat], ["yes"], CFG(2.0, negative_system="no"), system="ok")
    by_hand = textguide.score(
        model, TOKENIZER, ["system:ok\nuser:hi\n"], ["yes"], CFG(2.0, negative_prompt="system:no\nuser:hi\n")
    )
    assert torch.equal(guided.log_likelihood, by_hand.log_likelihood)


@pytest.mark.parametrize(
    ("contexts", "targets", "options", "message"),
    [
        (CONTEXTS, TARGETS[:2], {}, "3 contexts and 2 continuations"),
        (CONTEXTS[:1], [[]], {}, r"continuations\[0\] is empty"),
        (CONTEXTS, TARGETS, {"scales": []}, "scales is empty"),
        (CONTEXTS, TARGETS, {"scales": [float("nan")]}, "scale=nan"),
        (CONTEXTS, TARGETS, {"batch_size": 0}, "batch_size=0"),
        (
            CONTEXTS,
            TARGETS,
            {"settings": [CFG(1.5), CFG(1.5, negative_prompt=[4])]},
            "must share their branches",
        ),
        (CONTEXTS, TARGETS, {"settings": []}, "settings is empty"),
        (CONTEXTS, TARGETS, {"settings": [None], "scales": [1.0]}, "excludes"),
        ([[3] * 80], [[4]], {}, r"contexts\[0\].*64 positions"),
    ],
)
def test_bad_input(contexts: Any, targets: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        textguide.score(build("llama"), TOKENIZER, contexts, targets, **options)


@pytest.mark.parametrize("formula", ["cond/(last - last)", "-1*cond/(last - last)", "(cond - cond)/(last - last)"])
def test_scores_that_are_no_numbers_are_refused(formula: str) -> None:
    settings = [Formula("1.5*cond - 0.5*last"), Formula(formula)]
    with pytest.raises(ValueError, match=r"Formula.* NaN or \+inf for row [01]; use a smaller scale"):
        textguide.score(build("llama"), TOKENIZER, CONTEXTS[:2], TARGETS[:2], settings=settings)
