"""Rows that keep their own lengths answer as rows that are read alone, whatever happens to them."""

from __future__ import annotations

import copy
import gc
import itertools
import random
import threading
import weakref
from typing import Any

import pytest
import torch

from textguide.forward import own_lengths, prefill, row_batch
from textguide.forward.model_adapter import adapter
from textguide.forward.own_lengths import PREFIX, OwnLengthsCache

from ..architectures import VOCAB, build

SUPPORTED = ["gpt2", "llama", "gemma3", "gpt_neox", "opt", "jamba"]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [9], [20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36]]


@pytest.fixture(autouse=True)
def without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any padding is too much."""
    monkeypatch.setattr(row_batch, "LEAST_PADDING", 1)


def _read(model: Any, prompts: list[list[int]]) -> row_batch.Rows:
    parts = [prefill.read_prompts(model, [prompt], "cpu")[0] for prompt in prompts]
    return row_batch.merge(parts)


def _alone(model: Any, text: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0]


def _cache(rows: row_batch.Rows) -> OwnLengthsCache:
    (batch,) = rows.batches()
    assert isinstance(batch.cache, OwnLengthsCache)
    assert batch.mask is None
    return batch.cache


@pytest.mark.parametrize("most", [None, 1, 2])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SUPPORTED)
@torch.no_grad()
def test_answers_are_those_of_rows_alone(
    name: str, seed: int, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``most``: groups of similar length, as on a GPU."""
    monkeypatch.setattr(own_lengths, "most_groups", lambda device: most)
    model = build(name)
    rng = random.Random(seed)
    rows = _read(model, PROMPTS)
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(14):
        action = rng.choice(["read", "read", "chunk", "select", "split", "merge"])
        index = torch.tensor([rng.randrange(len(texts)) for _ in range(rng.randint(1, 5))])
        if action == "select":
            rows.select(index)
            texts = [list(texts[i]) for i in index]
        elif action == "split":
            copied = rows.split(index)
            rows.forward(torch.full((len(texts), 1), 50))  # what the original reads does not reach the copy
            rows = copied
            texts = [list(texts[i]) for i in index]
        elif action == "merge" and len(texts) < 8:
            rows = row_batch.merge([rows, _read(model, PROMPTS[:3])])
            texts += [list(prompt) for prompt in PROMPTS[:3]]
        new = 3 if action == "chunk" else 1
        ids = torch.tensor([[rng.randrange(3, VOCAB) for _ in range(new)] for _ in texts])
        logits = rows.forward(ids, keep=new)
        for row, text in enumerate(texts):
            text += ids[row].tolist()
            torch.testing.assert_close(logits[row], _alone(model, text)[-new:], atol=2e-4, rtol=0)
    if name != "jamba":
        cache = _cache(rows)
        assert most is None or len(cache.groups.rows) <= most


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_tokens_are_removed_from_every_row(name: str, most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_lengths, "most_groups", lambda device: most)
    model = build(name)
    rows = _read(model, PROMPTS)
    rows.forward(torch.tensor([[40, 41, 42]] * 4))
    copied = rows.split(torch.tensor([3, 0]))
    assert rows.crop(2)
    rows.forward(torch.tensor([[50, 51]] * 4))  # overwrites what was removed, in these rows only
    logits = copied.forward(torch.tensor([[7], [8]]))
    torch.testing.assert_close(logits[0, -1], _alone(model, [*PROMPTS[3], 40, 41, 42, 7])[-1], atol=2e-4, rtol=0)
    torch.testing.assert_close(logits[1, -1], _alone(model, [*PROMPTS[0], 40, 41, 42, 8])[-1], atol=2e-4, rtol=0)
    logits = rows.forward(torch.tensor([[7]] * 4))
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row, -1], _alone(model, [*prompt, 40, 50, 51, 7])[-1], atol=2e-4, rtol=0)


@torch.no_grad()
def test_padded_prompts_lose_their_padding() -> None:
    model = build("llama")
    padded, _ = prefill.read_padded(model, *prefill.pad_left(PROMPTS, "cpu"))
    assert padded.mask is not None
    rows = row_batch.merge([padded, prefill.read_prompts(model, [[5]], "cpu")[0]])
    layer = _cache(rows).layers[0]
    assert sorted(buffer.states.shape[2] for buffer in layer.own_keys) == [1, 1, 4, 7, 9]
    logits = rows.forward(torch.tensor([[7]] * 5))
    for row, prompt in enumerate([*PROMPTS, [5]]):
        torch.testing.assert_close(logits[row, -1], _alone(model, [*prompt, 7])[-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("most", [None, 2])
@torch.no_grad()
def test_keys_leave_memory_with_their_cache(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_lengths, "most_groups", lambda device: most)
    model = build("llama")
    rows = _read(model, PROMPTS)
    rows.forward(torch.tensor([[7]] * 4))
    layer = weakref.ref(_cache(rows).layers[0])
    merged = row_batch.merge([rows, _read(model, PROMPTS[:1])])
    gc.collect()
    gc.disable()
    try:
        del rows
        assert layer() is None
        layer = weakref.ref(_cache(merged).layers[0])
        del merged
        assert layer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("most", [None, 2])
@torch.no_grad()
def test_rows_can_be_padded_again(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_lengths, "most_groups", lambda device: most)
    model = build("llama")
    rows = _read(model, PROMPTS)
    rows.forward(torch.tensor([[7]] * 4))
    (batch,) = rows.batches()
    batch.make_static(4)
    logits = rows.forward(torch.tensor([[8]] * 4))
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row, -1], _alone(model, [*prompt, 7, 8])[-1], atol=2e-4, rtol=0)


@torch.no_grad()
def test_windows_cannot_become_static_and_are_refused_by_name() -> None:
    rows = _read(build("gemma3"), PROMPTS)
    _cache(rows)
    (batch,) = rows.batches()
    with pytest.raises(ValueError, match=r"cache_implementation='static'.*leave cache_implementation out"):
        batch.make_static(4)


@pytest.mark.parametrize("most", [None, 2])
@torch.no_grad()
def test_chunks_of_attention_begin_where_they_begin_in_the_text(
    most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 4 attends within chunks of the text, so that a mask depends on positions and not only on distances."""
    import transformers as tf

    config = tf.Llama4TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_chunk_size=4, num_local_experts=2,
        max_position_embeddings=64, pad_token_id=0, interleave_moe_layer_step=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.Llama4ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    assert adapter(model).keeps_own_lengths
    monkeypatch.setattr(own_lengths, "most_groups", lambda device: most)
    rows = _read(model, PROMPTS)
    texts = [list(prompt) for prompt in PROMPTS]
    for step in range(8):
        logits = rows.forward(torch.tensor([[7 + step]] * 4))
        for row, text in enumerate(texts):
            text.append(7 + step)
            torch.testing.assert_close(logits[row, -1], _alone(model, text)[-1], atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_the_model_is_as_before_after_every_pass() -> None:
    model = build("llama")
    rows = _read(model, PROMPTS)
    names = []
    hook = model.register_forward_pre_hook(lambda *_: names.append(model.config._attn_implementation))
    rows.forward(torch.tensor([[7]] * 4))
    hook.remove()
    assert names == [PREFIX + "sdpa"]
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError):
        rows.forward(torch.tensor([[VOCAB + 9]] * 4))
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_threads_share_a_model() -> None:
    model = build("llama")
    expected = _alone(model, PROMPTS[0])
    rows = [_read(model, PROMPTS) for _ in range(3)]
    wrong: list[str] = []

    def decode(own: row_batch.Rows) -> None:
        with torch.no_grad():
            text: list[int] = []
            for step in range(30):
                text.append(5 + step)
                logits = own.forward(torch.tensor([[5 + step]] * 4))
                if (logits[1, -1] - _alone_in_thread([*PROMPTS[1], *text])).abs().max() > 1e-3:
                    wrong.append("own lengths")

    def _alone_in_thread(text: list[int]) -> torch.Tensor:
        return _alone(model, text)[-1]

    def read() -> None:
        with torch.no_grad():
            for _ in range(60):
                if (_alone(model, PROMPTS[0]) - expected).abs().max() > 1e-4:
                    wrong.append("plain")

    threads = [threading.Thread(target=decode, args=(own,)) for own in rows]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["bloom", "mamba", "t5"])
def test_other_models_stay_padded(name: str) -> None:
    assert not adapter(build(name)).keeps_own_lengths


@pytest.mark.parametrize("least", [1, 10**9])
@torch.no_grad()
def test_layers_that_share_keys_take_turns(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3n keeps no keys for its last layers, which read those of earlier ones."""
    import transformers as tf

    monkeypatch.setattr(row_batch, "LEAST_PADDING", least)
    config = tf.Gemma3nTextConfig(
        vocab_size=VOCAB, vocab_size_per_layer_input=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=5, num_kv_shared_layers=2,
        hidden_size_per_layer_input=8, max_position_embeddings=64, laurel_rank=4, altup_num_inputs=2, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.Gemma3nForCausalLM(config).eval()
    assert adapter(model).keeps_own_lengths
    rows = _read(model, PROMPTS)
    texts = [list(prompt) for prompt in PROMPTS]
    for step in range(5):
        logits = rows.forward(torch.tensor([[7 + step]] * 4))
        for row, text in enumerate(texts):
            text.append(7 + step)
            torch.testing.assert_close(logits[row, -1], _alone(model, text)[-1], atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_similar_rows_share_calls_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    rows = {}
    for most in (None, 2):
        monkeypatch.setattr(own_lengths, "most_groups", lambda device, most=most: most)
        rows[most] = _read(model, PROMPTS)
    assert [own.tolist() for own in _cache(rows[None]).groups.rows] == [[0], [1], [2], [3]]
    cache = _cache(rows[2])
    # 9, 1, 4 and 7 tokens: with two groups, 9 + 7 and 1 + 4 need the least padding.
    assert [own.tolist() for own in cache.groups.rows] == [[1, 2], [0, 3]]
    assert [None if own is None else own.tolist() for own in cache.groups.padding] == [[3, 0], [0, 2]]
    assert cache.groups.missing == [5, 0]
    calls = []
    attend = own_lengths._model_attention
    monkeypatch.setattr(own_lengths, "_model_attention", lambda module: _counted(attend(module), calls))
    for most in (None, 2):
        del calls[:]
        rows[most].forward(torch.tensor([[7]] * 4))
        assert len(calls) == model.config.num_hidden_layers * (most or 4)


def _counted(function: Any, calls: list[int]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("seed", range(20))
def test_the_padding_is_the_least(seed: int) -> None:
    rng = random.Random(seed)
    counts = [rng.randint(1, 4) for _ in range(6)]
    lengths = [rng.randint(1, 50) for _ in range(6)]

    def padding(groups: list[list[int]]) -> int:
        assert sorted(number for group in groups for number in group) == list(range(6))
        longest = [max(lengths[number] for number in group) for group in groups]
        return sum(counts[n] * (own - lengths[n]) for group, own in zip(groups, longest, strict=True) for n in group)

    found = own_lengths._similar(counts, lengths, 3)
    assert len(found) <= 3
    every = []
    for labels in itertools.product(range(3), repeat=6):
        groups = [[n for n in range(6) if labels[n] == label] for label in range(3)]
        every.append(padding([group for group in groups if group]))
    assert padding(found) == min(every)


@torch.no_grad()
def test_a_model_without_masks_cannot_pad_within_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_lengths, "most_groups", lambda device: 1)
    rows = _read(build("llama"), PROMPTS)
    module = build("llama").model.layers[0].self_attn
    cache = _cache(rows)
    states = torch.zeros(4, 2, 1, 8)
    keys, values = cache.layers[0].update(states, states)
    with pytest.raises(own_lengths.OwnLengthsError, match="attends without a mask"):
        own_lengths._attention(module, torch.zeros(4, 4, 1, 8), keys, values, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_a_gpu_has_few_groups() -> None:
    model = copy.deepcopy(build("llama")).cuda()
    prompts = [*PROMPTS, PROMPTS[0][:5], PROMPTS[0][:6]]
    rows = row_batch.merge([prefill.read_prompts(model, [prompt], "cuda")[0] for prompt in prompts])
    assert len(_cache(rows).groups.rows) == own_lengths.GROUPS_ON_GPU
    texts = [list(prompt) for prompt in prompts]
    for step in range(4):
        logits = rows.forward(torch.full((len(prompts), 1), 7 + step, device="cuda")).cpu()
        for row, text in enumerate(texts):
            text.append(7 + step)
            torch.testing.assert_close(logits[row, -1], _alone(build("llama"), text)[-1], atol=2e-3, rtol=2e-3)
