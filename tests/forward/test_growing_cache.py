"""Caches that grow in place give the bits of transformers' own caches, and no two of them share room."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from textguide.forward import caches
from textguide.forward.growing_cache import GrowingLayer, grow_in_place

from ..architectures import VOCAB, build

DECODERS = ["gpt2", "llama", "gemma3", "gpt_neox", "opt", "bloom", "jamba"]


def _tokens(rows: int, new: int, seed: int) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, new), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_the_bits_are_those_of_transformers(name: str, rows: int) -> None:
    model = build(name)
    theirs = DynamicCache(config=model.config)
    ours = grow_in_place(DynamicCache(config=model.config))
    for step, new in enumerate([7, 1, 1, 3, 1, 1, 1, 2] + [1] * 30):
        ids = _tokens(rows, new, step)
        if name == "jamba" and new > 1 and step:
            ids = ids[:, :1]  # its states only continue by one token
        expected = model(input_ids=ids, cache=theirs).logits
        assert torch.equal(model(input_ids=ids, cache=ours).logits, expected)
        if step in (9, 20):
            index = torch.arange(rows).flip(0)
            caches.select_rows(theirs, index)
            caches.select_rows(ours, index)
        if step == 12 and caches.can_crop(ours):
            assert caches.crop(theirs, 2)
            assert caches.crop(ours, 2)


@torch.no_grad()
def test_a_step_copies_no_key() -> None:
    layer = GrowingLayer()
    for step in range(40):
        layer.update(torch.full((1, 2, 1, 4), float(step)), torch.zeros(1, 2, 1, 4))
    buffers = layer._buffers
    assert buffers is not None
    address = buffers[0].room.data_ptr()
    layer.update(torch.full((1, 2, 1, 4), 40.0), torch.zeros(1, 2, 1, 4))
    assert layer._buffers is buffers
    assert buffers[0].room.data_ptr() == address
    assert layer.keys[0, 0, :, 0].tolist() == list(range(41))


@torch.no_grad()
def test_a_copy_does_not_write_into_the_room_of_the_original() -> None:
    model = build("llama")
    cache = caches.new_cache(model)
    for step in range(4):
        model(input_ids=_tokens(2, 2, step), cache=cache)
    copied = caches.copy_rows(cache, torch.tensor([0, 1]))
    deep = copy.deepcopy(cache)
    before = [layer.keys.clone() for layer in cache.layers]
    for other in (copied, deep):
        caches.crop(other, 3)
        model(input_ids=_tokens(2, 5, 9), cache=other)
    for layer, keys in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
    caches.crop(cache, 3)
    kept = [layer.keys.clone() for layer in copied.layers]
    model(input_ids=_tokens(2, 5, 10), cache=cache)
    for layer, keys in zip(copied.layers, kept, strict=True):
        assert torch.equal(layer.keys, keys)


def test_gradients_are_those_of_concatenation() -> None:
    model = build("llama")
    ids = _tokens(1, 4, 0)
    weight = model.model.layers[0].self_attn.k_proj.weight

    def gradient(cache: Any) -> torch.Tensor:
        model.zero_grad()
        for position in range(4):
            loss = model(input_ids=ids[:, position : position + 1], cache=cache).logits.sum()
        loss.backward()
        assert weight.grad is not None
        return weight.grad.clone()

    expected = gradient(DynamicCache(config=model.config))
    assert torch.equal(gradient(grow_in_place(DynamicCache(config=model.config))), expected)


def test_a_prompt_of_inference_mode_is_continued_outside_of_it() -> None:
    model = build("gemma3")
    cache = caches.new_cache(model)
    with torch.inference_mode():
        for step in range(8):
            model(input_ids=_tokens(1, 1, step), cache=cache)
    with torch.no_grad():
        for step in range(8, 12):
            logits = model(input_ids=_tokens(1, 1, step), cache=cache).logits
        whole = torch.cat([_tokens(1, 1, step) for step in range(12)], dim=1)
        torch.testing.assert_close(logits[0, -1], model(input_ids=whole).logits[0, -1], atol=1e-4, rtol=0)


def test_caches_of_other_kinds_do_not_change() -> None:
    offloaded = DynamicCache(config=build("llama").config)
    offloaded.offloading = True
    assert grow_in_place(offloaded) is offloaded
    assert all(type(layer) is DynamicLayer for layer in offloaded.layers)
    assert grow_in_place(None) is None
