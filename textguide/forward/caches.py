"""Key/value caches of transformers models: creating, merging and picking rows.

The one place that knows how transformers spells its cache argument (``cache`` from 5.24 on, ``past_key_values``
before, ``cache_params`` in older state-space models) and what its cache layers hold.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    StaticCache,
)

ARGUMENTS = ("cache", "past_key_values", "cache_params")


@lru_cache(maxsize=256)
def _forward_parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's ``forward`` names ``argument``."""
    return argument in _forward_parameters(type(model).forward)


def cache_argument(model: Any) -> str:
    """The name under which ``forward`` takes a cache.

    Raises:
        ValueError: the model keeps its state in a form of its own.
    """
    for name in ARGUMENTS:
        if accepts(model, name):
            return name
    raise _unsupported(model)


def new_cache(model: Any) -> Cache:
    """An empty cache that grows, with the layers that the model's configuration asks for.

    Raises:
        ValueError: the model keeps its state in a form that rows of two branches cannot share.
    """
    cache_argument(model)
    supports = getattr(model, "_supports_default_dynamic_cache", None)
    if supports is not None and not supports():
        raise _unsupported(model)
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(cache, DynamicCache())  # no window slides over a source
    return cache


def with_cross_attention(cache: Cache, model: Any) -> Cache:
    """``cache`` with room for the keys and values of what a decoder looks at, so that they are computed once."""
    if isinstance(cache, DynamicCache):
        return EncoderDecoderCache(cache, DynamicCache())
    return cache


def has_recurrent_state(model: Any) -> bool:
    """Whether some layer keeps a recurrent or convolutional state, which padding would enter."""
    if model.config.is_encoder_decoder:
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in new_cache(model).layers)


def merge(caches: Sequence[Cache]) -> Cache:
    """One cache with the rows of all, in order; shorter rows get their padding on the left.

    Keys and values line up on the right, so that the distance between a cached and a new position is the true one,
    also in sliding windows. The padding has to be masked by the caller. States without a time axis are stacked.
    The given caches must not be used afterwards.
    """
    if len(caches) == 1:
        return caches[0]
    first = caches[0]
    merged: Cache = copy.copy(first)
    if isinstance(first, EncoderDecoderCache):
        merged.self_attention_cache = merge([c.self_attention_cache for c in caches])
        merged.cross_attention_cache = _merge_layers([c.cross_attention_cache for c in caches], pad_left=False)
        return merged
    return _merge_layers(caches, pad_left=True)


def select_rows(cache: Cache, index: Tensor) -> None:
    """Keep the rows ``index`` (a LongTensor; rows may repeat or change places), in place."""
    if isinstance(cache, EncoderDecoderCache):
        select_rows(cache.self_attention_cache, index)
        select_rows(cache.cross_attention_cache, index)
        return
    for layer in cache.layers:
        layer.reorder_cache(index)


def copy_rows(cache: Cache, index: Tensor) -> Cache:
    """A new cache with the rows ``index``; the given one stays as it is."""
    picked: Cache = copy.copy(cache)
    if isinstance(cache, EncoderDecoderCache):
        picked.self_attention_cache = copy_rows(cache.self_attention_cache, index)
        picked.cross_attention_cache = copy_rows(cache.cross_attention_cache, index)
        return picked
    picked.layers = [_shallow(layer) for layer in cache.layers]
    select_rows(picked, index)
    return picked


def crop(cache: Cache, tokens: int) -> bool:
    """Forget the last ``tokens`` positions, in place; False (and nothing changed) where the cache cannot."""
    if not can_crop(cache):
        return tokens == 0
    for layer in _self_attention_layers(cache):
        if tokens or getattr(layer, "record_past", False):  # a layer that records drops here what its window left
            layer.crop(-tokens)
    return True


def write_back(cache: Cache, places: Tensor, real: Tensor) -> None:
    """Put the newest positions in the place of older ones, and forget them behind, in place.

    Args:
        places: where each of the last n positions belongs, (rows, n).
        real: which of them count, bool (rows, n); the others are dropped.

    Raises:
        ValueError: the cache does not hold every position in order.
    """
    if not can_crop(cache):
        raise _unsupported(cache)
    rows, new = real.nonzero(as_tuple=True)
    for layer in _self_attention_layers(cache):
        first = layer.keys.shape[-2] - places.shape[1]
        for kept in (layer.keys, layer.values):
            kept[rows, :, places[rows, new]] = kept[rows, :, first + new]
    crop(cache, places.shape[1])


def can_crop(cache: Cache) -> bool:
    """Whether :func:`crop` can forget positions: every layer still holds what came before them."""
    return all(
        type(layer) is DynamicLayer
        or (type(layer) is DynamicSlidingWindowLayer and getattr(layer, "record_past", False))
        for layer in _self_attention_layers(cache)
    )


def record_past(cache: Cache) -> bool:
    """Let layers with a sliding window keep what they would forget, until the next :func:`crop`.

    Returns:
        Whether the cache can be cropped from now on.
    """
    for layer in _self_attention_layers(cache):
        if type(layer) is DynamicSlidingWindowLayer and hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    return can_crop(cache)


def has_no_time_axis(cache: Cache) -> bool:
    """Whether every layer keeps a state alone, in which padding has no place."""
    return getattr(cache, "layers", None) is not None and all(cache.is_linear)


def _self_attention_layers(cache: Cache) -> list[Any]:
    layers: list[Any] = cache.self_attention_cache.layers if isinstance(cache, EncoderDecoderCache) else cache.layers
    return layers


def to_static(cache: Cache, model: Any, length: int) -> StaticCache:
    """A static cache of ``length`` positions that holds what ``cache`` holds: fixed shapes, fit for compilation.

    Raises:
        ValueError: the cache has layers without a static twin.
    """
    if not isinstance(cache, DynamicCache) or not all(type(layer) is DynamicLayer for layer in cache.layers):
        raise ValueError(
            "cache_implementation='static' works with full-attention decoders alone under guidance, and "
            f"{type(model).__name__} is none; leave cache_implementation out"
        )
    static = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)
    for source, target in zip(cache.layers, static.layers, strict=True):
        target.update(source.keys, source.values)
    return static


def _shallow(layer: Any) -> Any:
    twin = copy.copy(layer)
    if isinstance(twin, LinearAttentionCacheLayerMixin):
        # The states live in dictionaries, which a shallow copy would share.
        twin.conv_states = dict(twin.conv_states)
        twin.recurrent_states = dict(twin.recurrent_states)
    return twin


def _merge_layers(caches: Sequence[Cache], pad_left: bool) -> Cache:
    merged: Cache = copy.copy(caches[0])
    merged.layers = [_merge_layer(layers, pad_left) for layers in zip(*(c.layers for c in caches), strict=True)]
    return merged


def _merge_layer(layers: Sequence[Any], pad_left: bool) -> Any:
    first = layers[0]
    merged = _shallow(first)
    known = False
    if isinstance(first, LinearAttentionCacheLayerMixin):
        known = True
        for states in ("conv_states", "recurrent_states"):
            target = getattr(merged, states)
            for i in target:
                parts = [getattr(layer, states)[i] for layer in layers]
                target[i] = None if parts[0] is None else torch.cat(parts)
    if isinstance(first, DynamicLayer):
        known = type(first) in (DynamicLayer, DynamicSlidingWindowLayer) or known
        if first.is_initialized and first.keys is not None and first.keys.dim() > 1:
            merged.keys = _stack([layer.keys for layer in layers], pad_left)
            merged.values = _stack([layer.values for layer in layers], pad_left)
        if isinstance(first, DynamicSlidingWindowLayer):
            merged.cumulative_length = max(layer.cumulative_length for layer in layers)
    if not known:
        raise ValueError(
            f"cache layers of type {type(first).__name__} cannot hold the rows of two branches; "
            "use GuidanceLogitsProcessor, which keeps a cache of its own"
        )
    return merged


def _stack(parts: Sequence[Tensor], pad_left: bool) -> Tensor:
    """Concatenate (rows, heads, time, width) tensors along rows, padding time with zeros."""
    length = max(part.shape[-2] for part in parts)
    padded = []
    for part in parts:
        missing = length - part.shape[-2]
        padded.append(F.pad(part, (0, 0, missing, 0) if pad_left else (0, 0, 0, missing)) if missing else part)
    return torch.cat(padded)


def _unsupported(model: Any) -> ValueError:
    return ValueError(
        f"{type(model).__name__} does not keep its state in a transformers Cache, so branches cannot share its forward "
        "pass; guidance is not available for this architecture"
    )
