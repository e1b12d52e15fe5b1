"""Steps outside of a window leave the extra branches out; caches of fixed shape run them at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, guided_decoding
from textguide.forward.model_adapter import adapter

from ..architectures import PAD, Tokenizer, build

PROMPTS = [[5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44]]


def run(guidance: Any, prompts: Any = None, name: str = "llama", **options: Any) -> Any:
    given = PROMPTS if prompts is None else prompts
    return textguide.generate(build(name), Tokenizer(), given, guidance, **{"max_new_tokens": 24, **options})


@pytest.mark.parametrize(
    "guidance",
    [CFG(1.5), CFG(2.5, start=0.3, stop=0.7), CFG(2.0, schedule="linear")],
    ids=["constant", "window", "schedule"],
)
@pytest.mark.parametrize("end", [None, "some"])
def test_caches_of_fixed_shape_run_every_step_with_all_branches(guidance: CFG, end: str | None) -> None:
    model = build("llama")
    ids = torch.tensor([[PAD] * (8 - len(p)) + p for p in PROMPTS])
    common = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "max_new_tokens": 12, "do_sample": False}
    if end is not None:
        whole = run(guidance, max_new_tokens=12)
        common["eos_token_id"] = whole.new_tokens[1][4]
    grown = model.generate(**common, custom_generate=guided_decoding(guidance))
    assert adapter(model).reads_static  # established here, not while rows are counted
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
