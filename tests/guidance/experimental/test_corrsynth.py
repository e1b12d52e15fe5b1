"""CorrSynth: rows that move away from each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import textguide
from tests.architectures import Tokenizer, build
from textguide.guidance import AWRS, CFG, Composed, CorrSynth, EAGer, FeynmanKac, Guidance, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from ..oracles import mixed

PROMPTS = [[5, 9, 33, 7], [11, 4, 52], [30, 31, 5, 6, 44], [8, 12, 3]]


def written_together(prompts: list[list[int]], guidance: CorrSynth, new: int, end: int | None) -> list[list[int]]:
    """The plainest reading: all texts of the groups token by token, each with the log-probabilities of the others."""
    model = build("llama")
    texts: list[list[int]] = [[] for _ in prompts]
    for index in range(new):
        open_ = [row for row, text in enumerate(texts) if end is None or end not in text]
        logps = {row: decoding.next_log_probs(model, prompts[row] + texts[row]) for row in open_}
        scale = decoding.cfg_scale(guidance, index / (new - 1))
        for row in open_:
            others = [logps[j] for j in open_ if j // guidance.group == row // guidance.group and j != row]
            logp = logps[row]
            if others:
                logp = mixed(logp, [sum(column) / len(others) for column in zip(*others, strict=True)], scale)
            texts[row].append(max(range(len(logp)), key=logp.__getitem__))
    return texts


@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize("end", [None, "early"])
def test_equals_its_oracle(group: int, end: str | None) -> None:
    guidance = CorrSynth(2.0, group=group, schedule="linear")
    free = written_together(PROMPTS, guidance, 8, None)
    stop = free[0][2] if end else None
    expected = written_together(PROMPTS, guidance, 8, stop)
    out = textguide.generate(build("llama"), Tokenizer(), PROMPTS, guidance, max_new_tokens=8, eos_token_id=stop)
    assert out.new_tokens == expected
    plain = textguide.generate(build("llama"), Tokenizer(), PROMPTS, max_new_tokens=8)
    assert out.new_tokens != plain.new_tokens


def test_copies_of_a_prompt_never_meet() -> None:
    """With ``num_return_sequences`` a group is written as often: its first texts, its second ones, …"""
    guidance = CorrSynth(2.0, group=2)
    seen: dict[int, list[torch.Tensor]] = {}

    def keep(view: Any) -> None:
        for row, cond, guided in zip(view.samples, view.cond, view.guided, strict=True):
            seen.setdefault(row, []).append(torch.stack([cond, guided]))

    textguide.generate(
        build("llama"), Tokenizer(), PROMPTS, guidance, max_new_tokens=5, num_return_sequences=3, seed=0,
        temperature=1.0, observer=keep,
    )  # fmt: skip
    assert sorted(seen) == list(range(12))
    for row, steps in seen.items():
        prompt, copy = divmod(row, 3)
        partner = (prompt ^ 1) * 3 + copy
        for (cond, guided), (other, _) in zip(steps, seen[partner], strict=True):
            expected = (other + 2.0 * (cond - other)).log_softmax(-1)
            torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beside", [AWRS("regex:a+", particles=2), FeynmanKac(particles=1), EAGer(max_branches=2)])
def test_rows_that_move_are_refused(beside: Guidance) -> None:
    with pytest.raises(ValueError, match=rf"\[corrsynth, {beside.name}\]: corrsynth contrasts each text"):
        Composed((CorrSynth(2.0), beside))
    assert Composed((CorrSynth(2.0), AWRS("regex:a+", sampler="mask")))


def test_whole_groups_are_asked_for_before_the_window_opens() -> None:
    with pytest.raises(ValueError, match="group=3 does not divide a batch of 4 prompts"):
        textguide.generate(build("llama"), Tokenizer(), PROMPTS, CorrSynth(2.0, group=3, start=0.9), max_new_tokens=1)


def test_no_extra_row_is_run() -> None:
    model = build("llama")
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    textguide.generate(model, Tokenizer(), PROMPTS, CorrSynth(1.5), max_new_tokens=4)
    hook.remove()
    assert rows == [4] * 4


def test_two_rows_are_each_others_negatives() -> None:
    logp = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    logp[0, 0, 3] = logp[0, 1, 4] = -float("inf")
    guided = guided_log_probs(CorrSynth(1.7), logp, Step(rows=(0, 1), batch=2))
    pairs = torch.stack([logp[0], logp[0].flip(0)])
    torch.testing.assert_close(guided, guided_log_probs(CFG(1.7), pairs, Step()))


def test_gamma_one_is_plain() -> None:
    assert CorrSynth(1.0).is_neutral


def test_what_cannot_work_is_named() -> None:
    with pytest.raises(ValueError, match="group=1"):
        CorrSynth(group=1)
    with pytest.raises(ValueError, match="group=3 does not divide a batch of 4 prompts"):
        textguide.generate(build("llama"), Tokenizer(), PROMPTS, CorrSynth(2.0, group=3), max_new_tokens=2)
    with pytest.raises(ValueError, match="each given text is scored on its own"):
        textguide.score(build("llama"), Tokenizer(), PROMPTS, PROMPTS, CorrSynth(2.0))
