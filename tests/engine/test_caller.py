"""What is read of a running ``generate`` call: transformers must still have it under these names."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, LogitsProcessor

from textguide.engine.caller import LOCALS, running_generate_call

from ..architectures import PAD, build


class Spy(LogitsProcessor):
    """Looks up the call at every step."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls.append(running_generate_call())
        return scores


@pytest.mark.parametrize("name", LOCALS)
def test_generate_has_the_local_variable(name: str) -> None:
    code = inspect.unwrap(GenerationMixin.generate).__code__
    assert name in (*code.co_varnames, *code.co_cellvars), (
        f"transformers' generate has no local variable {name!r} any more; textguide/engine/caller.py reads it"
    )


def test_there_is_none_outside_of_generate() -> None:
    assert running_generate_call() is None


def test_a_call_is_found_with_its_arguments() -> None:
    spy = Spy()
    ids = torch.tensor([[PAD, 5, 9], [4, 8, 7]])
    mask = (ids != PAD).long()
    build("llama").generate(
        ids, attention_mask=mask, max_new_tokens=2, do_sample=False, logits_processor=[spy], num_return_sequences=1
    )
    first, second = spy.calls
    assert first.prompts == 2
    assert first.processors is second.processors is not None
    assert torch.equal(first.attention_mask, mask)
    assert (first.streamer, first.assistant_model, first.negative_prompt_ids) == (None,) * 3
    build("llama").generate(ids[1:], max_new_tokens=1, do_sample=False, logits_processor=[spy], num_beams=2)
    assert spy.calls[-1].attention_mask is None  # no padding
    assert spy.calls[-1].processors is not first.processors
    assert spy.calls[-1].prompts == 1
