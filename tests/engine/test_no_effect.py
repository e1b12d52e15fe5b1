"""Rows for which guidance does nothing are named: the last token of a one-token prompt is the prompt."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, CFGLogitsProcessor, guided_decoding
from textguide.engine.branch_inputs import warn_of_same
from textguide.guidance import ContrastiveDecoding
from textguide.support.errors import GuidanceHadNoEffectWarning

from ..architectures import PAD, Tokenizer, build

PROMPTS = [[5, 9, 33], [7], [4, 8], [20]]
WARNING = (
    r"changes nothing for 2 of 4 rows \({0}\[1\], {0}\[3\]\): the other branch reads the last token of a prompt, and "
    r"these prompts are one token; pass a negative prompt that differs, or begin the prompt with .*BOS"
)


def padded() -> dict[str, Any]:
    rows = [[PAD] * (3 - len(row)) + row for row in PROMPTS]
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor([[int(token != PAD) for token in row] for row in rows]),
        "max_new_tokens": 3,
        "do_sample": False,
    }


def test_every_way_in_names_the_rows() -> None:
    model = build("llama")
    with pytest.warns(GuidanceHadNoEffectWarning, match=WARNING.format("prompts")):
        textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=3)
    with pytest.warns(GuidanceHadNoEffectWarning, match=WARNING.format("input_ids")):
        model.generate(**padded(), custom_generate=guided_decoding(CFG(1.5)))
    with pytest.warns(GuidanceHadNoEffectWarning, match=WARNING.format("input_ids")):
        model.generate(**padded(), logits_processor=[CFGLogitsProcessor(model, 1.5)])
    with pytest.warns(GuidanceHadNoEffectWarning, match=WARNING.format("contexts")):
        textguide.score(model, Tokenizer(), PROMPTS, [[8, 9]] * 4, CFG(1.5))


def test_ids_that_score_cannot_read() -> None:
    model = build("llama")
    for contexts, continuations, name in ([[[99]], [[8]], "contexts"], [[[9, 8]], [[8, -1]], "continuations"]):
        with pytest.raises(ValueError, match=rf"{name}\[0\] has token id (99|-1); the vocabulary has 61"):
            textguide.score(model, Tokenizer(), contexts, continuations)
    with pytest.raises(ValueError, match=r"negative_prompt\[0\] has token id 99"):
        textguide.score(model, Tokenizer(), [[9, 8]], [[8]], CFG(1.5, negative_prompt=[99]))


def test_a_run_without_any_effect_warns_once() -> None:
    model = build("llama")
    calls = [
        lambda: textguide.generate(model, Tokenizer(), [[7]], CFG(1.5), max_new_tokens=3),
        lambda: model.generate(torch.tensor([[7]]), max_new_tokens=3, custom_generate=guided_decoding(CFG(1.5))),
        lambda: model.generate(
            torch.tensor([[7]]), max_new_tokens=3, logits_processor=[CFGLogitsProcessor(model, 1.5)], do_sample=False
        ),
        lambda: textguide.score(model, Tokenizer(), [[7]], [[8, 9]], CFG(1.5)),
    ]
    for call in calls:
        with pytest.warns(GuidanceHadNoEffectWarning, match=r"change[ds] nothing.*negative prompt.*BOS") as caught:
            call()
        assert len(caught) == 1


def test_batches_are_counted_together() -> None:
    with pytest.warns(GuidanceHadNoEffectWarning, match=WARNING.format("prompts")) as caught:
        textguide.generate(build("llama"), Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=3, batch_size=1)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("prompts", "guidance"),
    [
        ([[1, 7], [5, 9]], CFG(1.5)),
        ([[7]], CFG(1.5, negative_prompt=[9])),
        ([[7]], CFG(1.0)),
        ([[7]], None),
        ([[7]], ContrastiveDecoding()),
    ],
)
def test_rows_that_are_guided_are_not_named(prompts: Any, guidance: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = {"amateur": build("gpt2")}
        textguide.generate(build("llama"), Tokenizer(), prompts, guidance, max_new_tokens=3, models=models)


def test_a_negative_prompt_that_is_the_prompt() -> None:
    with pytest.warns(GuidanceHadNoEffectWarning, match=r"\(prompts\[0\]\): every branch of it reads the same tokens"):
        warn_of_same(CFG(1.5, negative_prompt=[5, 9]), [[5, 9], [5]], [[[5, 9], [5, 9]]])


def test_a_combination_that_acts_on_equal_branches_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The amateur is the model itself, and the cut of unlikely tokens acts all the same.
        warn_of_same(ContrastiveDecoding(amateur="", prompt_free=True), [[7]], [[[7]]])
