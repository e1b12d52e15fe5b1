"""Prompts in chunks have the logits of prompts in one pass, and no pass reads more tokens than it may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, guided_decoding
from textguide.engine import custom_generate
from textguide.forward import chunking, prefill
from textguide.forward.chunking import Chunking
from textguide.forward.model_adapter import ModelAdapter, adapter

from ..architectures import ENCODER_DECODER, NAMES, RECURRENT, VOCAB, Tokenizer, build

DECODERS = [name for name in NAMES if name not in ENCODER_DECODER | RECURRENT]
LONG = [3 + (7 * n) % (VOCAB - 4) for n in range(30)]
PROMPTS = [LONG, [9, 5, *LONG[8:20]], [40, 6, 7]]
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


def widths(model: Any, call: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What ``call`` returns, and the number of columns of each pass."""
    adapter(model).why_not_in_chunks(4, 8)  # the probes are not counted
    found: list[int] = []

    def count(_: Any, args: Any, inputs: dict[str, Any]) -> None:
        found.append((inputs["input_ids"] if "input_ids" in inputs else args[0]).shape[1])

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return call(), found
    finally:
        hook.remove()


@pytest.mark.parametrize("keep", [1, 13])
@pytest.mark.parametrize("size", [1, 4, 29, 30])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_chunks_change_nothing(name: str, size: int, keep: int) -> None:
    model = build(name)
    expected_rows, expected = prefill.read_prompts(model, PROMPTS, "cpu", keep=keep)

    def read() -> Any:
        return prefill.read_prompts(model, PROMPTS, "cpu", keep=keep, chunking=Chunking(size=size))

    (rows, logits), columns = widths(model, read)
    assert max(columns) == size
    assert sum(columns) == 30
    for row, prompt in enumerate(PROMPTS):
        real = min(keep, len(prompt))  # what is before a short prompt has no meaning
        torch.testing.assert_close(logits[row, -real:], expected[row, -real:], atol=2e-4, rtol=1e-4)
    for step in range(3):
        ids = torch.tensor([[5 + step], [6], [7 + step]])
        torch.testing.assert_close(rows.forward(ids), expected_rows.forward(ids), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_plain_texts_have_the_bits_of_transformers(name: str) -> None:
    model = build(name)
    ids, mask = prefill.pad_left(PROMPTS, "cpu")
    options = {**OPTIONS, "attention_mask": mask, "prefill_chunk_size": 7}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    theirs = model.generate(ids, **options)

    def run() -> Any:
        return model.generate(ids, custom_generate=guided_decoding(None), **options)

    run()  # what a model does is found out at its first use, in passes that are not counted
    ours, columns = widths(model, run)
    assert columns[:6] == [7, 7, 7, 7, 2, 1]
    assert torch.equal(ours.sequences, theirs.sequences)
    for own, expected in zip(ours.logits, theirs.logits, strict=True):
        assert torch.equal(own, expected)


@torch.no_grad()
def test_types_of_tokens_are_cut_with_the_tokens() -> None:
    model = build("gpt2")
    ids, mask = prefill.pad_left(PROMPTS, "cpu")
    types = {"token_type_ids": torch.full_like(ids, 7)}
    _, whole = prefill.read_padded(model, ids, mask, extra=types)
    _, chunks = prefill.read_padded(model, ids, mask, extra=types, chunking=Chunking(size=8))
    torch.testing.assert_close(chunks, whole, atol=2e-4, rtol=1e-4)
    assert (prefill.read_padded(model, ids, mask)[1] - whole).abs().max() > 0.1


@pytest.mark.parametrize("speculation", [None, "both"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_guided_texts_stay_the_same(name: str, speculation: Any) -> None:
    model = build(name)
    guidance = CFG(1.5, negative_prompt=[LONG[4:20], [8], [9, 10]])
    options: dict[str, Any] = {"max_new_tokens": 8, "speculation": speculation}
    expected = textguide.generate(model, Tokenizer(), PROMPTS, guidance, **options)
    calls: list[tuple[int, int]] = []

    def run() -> Any:
        return textguide.generate(
            model,
            Tokenizer(),
            PROMPTS,
            guidance,
            prefill_chunk_size=8,
            prefill_progress=lambda done, total: calls.append((done, total)),
            **options,
        )

    out, columns = widths(model, run)
    assert out.new_tokens == expected.new_tokens
    assert columns[:6] == [8, 8, 8, 6, 8, 8]
    assert calls == [(0, 30), (8, 30), (16, 30), (24, 30), (30, 30), (0, 16), (8, 16), (16, 16)]


@torch.no_grad()
def test_what_follows_a_shared_prefix_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "COMPARED", 8)
    monkeypatch.setattr(prefill, "LEAST_SAVED", 8)
    model = build("llama")
    prompts = [[*LONG, *range(5, 16)], [*LONG, *range(20, 24)]]
    (_, logits), columns = widths(
        model, lambda: prefill.read_prompts(model, prompts, "cpu", keep=9, chunking=Chunking(size=8))
    )
    assert columns == [8, 8, 8, 6, 8, 3]
    for row, prompt in enumerate(prompts):
        alone = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -9:]
        torch.testing.assert_close(logits[row], alone, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_memory_bounds_the_tokens_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "LEAST", 4)
    model = build("llama")
    known = adapter(model)
    per_token = chunking.bytes_per_token(known, 30)
    assert Chunking(memory=6 * per_token).length(known, 1, 30) == 6
    assert Chunking(memory=6 * per_token + 5).length(known, 1, 30) == 6
    assert Chunking(memory=12 * per_token).length(known, 2, 30) == 6
    assert Chunking(memory=30 * per_token).length(known, 1, 30) == 30
    assert Chunking(memory=1).length(known, 1, 30) == 4
    assert Chunking(memory=1).length(known, 1, 4) == 4
    assert Chunking().length(known, 8, 10**6) == 10**6
    # One pass without padding has no mask, chunks have one.
    without = chunking.bytes_per_token(known, 30, masked=False)
    assert without < per_token
    assert Chunking(memory=30 * without).length(known, 1, 30, padded=False) == 30
    assert Chunking(memory=30 * without).length(known, 1, 30) < 30
    assert Chunking(memory=30 * without - 1).length(known, 1, 30, padded=False) < 30
    assert Chunking(memory=30 * without).length(known, 1, 30, read=1, padded=False) < 30
    # A token attends to what was read before, and masks have a column for it.
    assert Chunking(memory=6 * per_token).length(known, 1, 30, read=100) < 6
    (_, logits), columns = widths(
        model, lambda: prefill.read_prompts(model, [LONG], "cpu", chunking=Chunking(memory=6 * per_token))
    )
    assert columns == [6] * 5
    alone = model(input_ids=torch.tensor([LONG]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(logits[0, -1], alone, atol=2e-4, rtol=1e-4)


def test_only_guided_runs_are_cut_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "LEAST", 8)
    monkeypatch.setattr(custom_generate, "MEMORY", 1)
    model = build("llama")

    def passes(guidance: Any, **options: Any) -> list[int]:
        call = lambda: textguide.generate(model, Tokenizer(), [LONG], guidance, max_new_tokens=2, **options)  # noqa: E731
        return widths(model, call)[1]

    assert passes(None) == [30, 1]
    assert passes(CFG(1.0)) == [30, 1]
    assert passes(None, prefill_memory=1) == [8, 8, 8, 6, 1]
    assert passes(CFG(1.5)) == [8, 8, 8, 6, 1, 1]
    assert passes(CFG(1.5), prefill_memory=1 << 30) == [30, 1, 1]
    assert passes(CFG(1.5), prefill_memory=1 << 30, prefill_chunk_size=20) == [20, 10, 1, 1]


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_models_that_do_not_continue_by_a_chunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    with pytest.raises(ValueError, match=rf"prefill_chunk_size=8: {type(model).__name__} does not continue.*leave it"):
        textguide.generate(model, Tokenizer(), [LONG], CFG(1.5), max_new_tokens=2, prefill_chunk_size=8)
    monkeypatch.setattr(chunking, "LEAST", 8)
    out, columns = widths(
        model, lambda: textguide.generate(model, Tokenizer(), [LONG], CFG(1.5), max_new_tokens=2, prefill_memory=1)
    )
    assert columns == [30, 1, 1]
    assert len(out.new_tokens[0]) == 2


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("is_causal", False, "looks at the whole prompt from each of its tokens"),
        ("selects_tokens", 16, "looks at 16 tokens that it selects"),
        ("rotary_switch", 16, "reads prompts of more than 16 tokens with other rotary embeddings"),
    ],
)
def test_other_reasons_to_read_in_one_pass(name: str, value: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "LEAST", 4)
    known = adapter(build("llama"))
    if name == "is_causal":  # it is known by now
        monkeypatch.setitem(known.__dict__, name, value)
    else:
        monkeypatch.setattr(ModelAdapter, name, value)
    with pytest.raises(ValueError, match=f"prefill_chunk_size=8: LlamaForCausalLM {reason}"):
        Chunking(size=8).length(known, 1, 30)
    assert Chunking(memory=1).length(known, 1, 30) == 30
    if name != "is_causal":  # all chunks are on one side
        assert Chunking(size=4).length(known, 1, 16) == 4


def test_prompts_that_are_no_rows_of_tokens() -> None:
    with pytest.raises(ValueError, match="prefill_chunk_size=4 does not work with images or encoder-decoders"):
        textguide.generate(build("t5"), Tokenizer(), [LONG], CFG(1.5), max_new_tokens=2, prefill_chunk_size=4)


@pytest.mark.parametrize("name", ["prefill_chunk_size", "prefill_memory"])
def test_sizes_are_whole_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be"):
        textguide.generate(build("llama"), Tokenizer(), [LONG], CFG(1.5), max_new_tokens=2, **{name: 0})
    with pytest.raises(ValueError, match="prefill_progress=3 must be a function"):
        textguide.generate(build("llama"), Tokenizer(), [LONG], CFG(1.5), prefill_progress=3)
