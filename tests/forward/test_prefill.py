"""A beginning that prompts have in common is read once, and answers are those of prompts that are read one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import textguide
from textguide import CFG, guided_decoding
from textguide.forward import caches, prefill
from textguide.forward.model_adapter import adapter

from ..architectures import ENCODER_DECODER, NAMES, RECURRENT, VOCAB, Tokenizer, build

BEGINNING = [3 + (7 * n) % (VOCAB - 4) for n in range(24)]
PROMPTS = {
    "of unlike length": [[*BEGINNING, 5, 6, 7], [*BEGINNING, 8], [*BEGINNING, 9, 10, 11, 12, 5], [4, 5, 6], BEGINNING],
    "of one length": [[*BEGINNING, token, 6] for token in range(5, 10)],
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "COMPARED", 8)
    monkeypatch.setattr(prefill, "LEAST_SAVED", 8)


def tokens_of(model: Any, call: Any) -> tuple[Any, int]:
    """What ``call`` returns, and how many tokens the model read for it."""
    adapter(model).padding  # noqa: B018 - tries the model out
    read = [0]

    def count(_: Any, args: Any, inputs: dict[str, Any]) -> None:
        read[0] += (inputs["input_ids"] if "input_ids" in inputs else args[0]).numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return call(), read[0]
    finally:
        hook.remove()


@pytest.mark.parametrize("lengths", list(PROMPTS))
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ENCODER_DECODER])
@torch.no_grad()
def test_a_shared_beginning_is_read_once_and_changes_nothing(name: str, lengths: str) -> None:
    model, prompts = build(name), PROMPTS[lengths]
    adapter(model).can_share_prefix(len(BEGINNING), 30)
    (rows, logits), read = tokens_of(model, lambda: prefill.read_prompts(model, prompts, "cpu", keep=2))
    assert (read < sum(map(len, prompts))) == (name not in RECURRENT)
    alone = [prefill.read_prompts(model, [prompt], "cpu", keep=2) for prompt in prompts]
    torch.testing.assert_close(logits, torch.cat([last for _, last in alone]), atol=1e-4, rtol=0)
    for step in range(4):
        ids = torch.tensor([[5 + (row + step) % 9] for row in range(len(prompts))])
        found = rows.forward(ids)
        wanted = torch.cat([own.forward(ids[row : row + 1]) for row, (own, _) in enumerate(alone)])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", list(PROMPTS))  # transformers passes no mask for prompts of one length
@pytest.mark.parametrize("samples", [1, 3])
def test_guided_texts_are_those_of_prompts_one_by_one(samples: int, lengths: str) -> None:
    model, tokenizer = build("llama"), Tokenizer()
    prompts = PROMPTS[lengths]

    def texts(some: list[list[int]]) -> list[list[int]]:
        out = textguide.generate(
            model,
            tokenizer,
            some,
            CFG(1.5),
            max_new_tokens=6,
            num_return_sequences=samples,
            do_sample=samples > 1,
            top_k=1,
        )
        return out.new_tokens

    together, read = tokens_of(model, lambda: texts(prompts))
    alone = [tokens_of(model, lambda prompt=prompt: texts([prompt])) for prompt in prompts]
    assert together == [text for some, _ in alone for text in some]
    assert read < sum(count for _, count in alone)


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_the_cache_of_generate_keeps_no_second_copy_of_the_prompts(count: int) -> None:
    model = build("llama")
    ids = torch.tensor(PROMPTS["of one length"][:count])
    cache = DynamicCache(config=model.config)
    prepared = {caches.cache_argument(model): cache, "attention_mask": None}
    rows, logits = prefill.read_prepared(model, ids, prepared, fresh=True)
    assert rows.rows == count
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(logits, model(ids).logits[:, -1], atol=1e-4, rtol=0)
    prefill.read_prepared(model, ids, prepared)  # plain decoding uses it
    assert cache.get_seq_length() == ids.shape[1]


@pytest.mark.parametrize("samples", [1, 3])
def test_plain_texts_share_it_where_bits_are_not_asked_for(samples: int) -> None:
    model, prompts = build("llama"), PROMPTS["of unlike length"]
    ids, mask = prefill.pad_left(prompts, "cpu")
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "num_return_sequences": samples,
        "do_sample": samples > 1,
        "top_k": 1,
    }

    def texts(**how: Any) -> Any:
        call = guided_decoding(None, warn=False, **how)
        return model.generate(ids, attention_mask=mask, custom_generate=call, pad_token_id=0, **options)

    exact, every = tokens_of(model, texts)
    fast, read = tokens_of(model, lambda: texts(fast=True))
    assert torch.equal(exact, model.generate(ids, attention_mask=mask, pad_token_id=0, **options))
    assert torch.equal(fast, exact)
    assert read < every


def test_short_beginnings_are_read_with_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    prompts = PROMPTS["of one length"]
    _, read = tokens_of(build("llama"), lambda: prefill.read_prompts(build("llama"), prompts, "cpu"))
    assert read == sum(map(len, prompts))
