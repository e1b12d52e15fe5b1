"""Steps that leave the extra branches out: what they keep, how they end, and caches of fixed shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, guided_decoding
from textguide.engine import skipping
from textguide.engine.effect import EffectMeter

from ..architectures import PAD, Tokenizer, build

PROMPTS = [[5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44]]


def run(guidance: Any, prompts: Any = None, name: str = "llama", **options: Any) -> Any:
    given = PROMPTS if prompts is None else prompts
    return textguide.generate(build(name), Tokenizer(), given, guidance, **{"max_new_tokens": 24, **options})


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many distributions are kept behind every step without guidance."""
    counts: list[int] = []

    class Watched(skipping.Skipping):
        def record(self, index: int, cond: torch.Tensor, writing: torch.Tensor) -> None:
            super().record(index, cond, writing)
            counts.append(len(self._kept))

    monkeypatch.setattr("textguide.engine.loop.Skipping", Watched)
    return counts


def test_few_distributions_are_kept(kept: list[int]) -> None:
    out = run(CFG(1.5, skip_threshold=1e9), max_new_tokens=50)
    assert out.effect.skipped_passes > 60
    assert max(kept) <= skipping.LONGEST


def test_steps_outside_a_window_keep_nothing(kept: list[int]) -> None:
    run(CFG(1.5, start=0.5))
    assert kept
    assert max(kept) == 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "t5"])
def test_rows_that_end_while_steps_are_skipped_are_measured(name: str) -> None:
    guidance = CFG(1.5, skip_threshold=1e9)
    whole = run(guidance, name=name)
    candidates = {token for tokens in whole.new_tokens for token in tokens}

    def lengths(end: int) -> list[int]:
        return [tokens.index(end) + 1 if end in tokens else 24 for tokens in whole.new_tokens]

    end = max(sorted(candidates), key=lambda token: max(lengths(token)) - min(lengths(token)))
    out = run(guidance, name=name, eos_token_id=end)
    assert len(set(map(len, out.new_tokens))) > 1
    effect = out.effect
    written = sum(map(len, out.new_tokens))
    assert effect.guided_steps + effect.skipped_passes == written
    assert effect.max_skipped_kl is not None
    # Every row alone is guided at the same steps until rows of the batch end at different ones.
    alone = run(guidance, [PROMPTS[0]], name=name, eos_token_id=end)
    assert alone.effect.guided_steps + alone.effect.skipped_passes == len(alone.new_tokens[0])


def test_a_threshold_that_is_passed_ends_a_skip() -> None:
    meter = EffectMeter(1, "cpu")
    skips = skipping.Skipping(CFG(1.5, skip_threshold=0.1), 100, meter, Any)
    for index in range(skipping.PATIENCE):
        assert not skips.rests(index)
        skips.observe(index, 0.05, None)
    first = range(skipping.PATIENCE, skipping.PATIENCE + skipping.FIRST)
    assert all(skips.rests(index) for index in first)
    after = first[-1] + 1
    assert not skips.rests(after)
    skips.observe(after, 0.01, 0.09)  # harmless: the next one is twice as long
    assert all(skips.rests(after + 1 + n) for n in range(2 * skipping.FIRST))
    after += 1 + 2 * skipping.FIRST
    assert not skips.rests(after)
    skips.observe(after, 0.01, 0.2)  # what was skipped was not harmless
    assert not any(skips.rests(after + 1 + n) for n in range(skipping.LONGEST))


@pytest.mark.parametrize(
    "guidance",
    [CFG(1.5), CFG(2.5, start=0.3, stop=0.7), CFG(2.0, schedule="linear"), CFG(1.5, skip_threshold=1e9)],
    ids=["constant", "window", "schedule", "skipping"],
)
@pytest.mark.parametrize("end", [None, "some"])
def test_caches_of_fixed_shape_run_every_step_with_all_branches(guidance: CFG, end: str | None) -> None:
    model = build("llama")
    ids = torch.tensor([[PAD] * (8 - len(p)) + p for p in PROMPTS])
    common = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "max_new_tokens": 12, "do_sample": False}
    exact = CFG(guidance.scale) if guidance.skip_threshold is not None else guidance
    if end is not None:
        whole = run(exact, max_new_tokens=12)
        common["eos_token_id"] = whole.new_tokens[1][4]
    grown = model.generate(**common, custom_generate=guided_decoding(exact))
    rows: list[int] = []
    with model.register_forward_pre_hook(lambda _, __, kw: rows.append(kw["input_ids"].shape[0]), with_kwargs=True):
        static = model.generate(**common, cache_implementation="static", custom_generate=guided_decoding(guidance))
    assert static.tolist() == grown.tolist()
    assert set(rows[2:]) == {6}  # behind the two prefills


def test_rows_that_a_criterion_of_ones_own_ended_hold_padding() -> None:
    class Third:
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.tensor([row == 1 and ids.shape[1] >= 11 for row in range(len(ids))])

    from transformers import StoppingCriteria

    criterion = type("Criterion", (Third, StoppingCriteria), {})()
    whole = run(CFG(1.5), max_new_tokens=8)
    out = run(CFG(1.5), max_new_tokens=8, stopping_criteria=[criterion])
    assert out.sequences[1, 11:].tolist() == [PAD] * 5
    assert out.sequences[1, :11].tolist() == whole.sequences[1, :11].tolist()
    assert out.sequences[0].tolist() == whole.sequences[0].tolist()
