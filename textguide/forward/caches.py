"""Key/value caches of transformers models: creating and merging them, and selecting rows.

Only this file knows the name of transformers' cache argument (``cache`` since 5.24, ``past_key_values`` before,
``cache_params`` in older state-space models) and what the layers of a cache hold.
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

from .growing_cache import GrowingLayer, GrowingWindowLayer, forget_buffers, grow_in_place
from .own_lengths import DummyLayer, OwnLengthsCache, OwnLengthsLayer

ARGUMENTS = ("cache", "past_key_values", "cache_params")
# Their subclasses in transformers hold more than keys and values.
_FULL_ATTENTION = (DynamicLayer, GrowingLayer)
_SLIDING_WINDOW = (DynamicSlidingWindowLayer, GrowingWindowLayer)


@lru_cache(maxsize=256)
def _forward_parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's ``forward`` names ``argument``."""
    return argument in _forward_parameters(type(model).forward)


def cache_argument(model: Any) -> str:
    """The name of the cache argument of ``forward``.

    Raises:
        ValueError: it does not accept a transformers cache.
    """
    for name in ARGUMENTS:
        if accepts(model, name):
            return name
    raise _unsupported(model)


def new_cache(model: Any) -> Cache:
    """An empty cache that grows, with the layers that the model's configuration specifies.

    Raises:
        ValueError: the model does not keep its state in a transformers cache.
    """
    cache_argument(model)
    supports = getattr(model, "_supports_default_dynamic_cache", None)
    if supports is not None and not supports():
        raise _unsupported(model)
    config = model.config.get_text_config(decoder=True)
    cache = grow_in_place(DynamicCache(config=config))
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(cache, DynamicCache())  # no window slides over a source
    return cache


def with_cross_attention(cache: Cache, model: Any) -> Cache:
    """``cache`` with a part for cross-attention, so that keys and values of the encoder's states are computed once."""
    if isinstance(cache, DynamicCache):
        return EncoderDecoderCache(cache, DynamicCache())
    return cache


def has_recurrent_state(model: Any) -> bool:
    """Whether some layer keeps a recurrent or convolutional state, which padding would enter."""
    if model.config.is_encoder_decoder:
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in new_cache(model).layers)


def merge(caches: Sequence[Cache]) -> Cache:
    """One cache with the rows of all, in order; shorter rows are padded on the left.

    Keys and values are aligned on the right, so that the distance between a cached position and a new one is correct,
    also in sliding windows. The caller has to mask the padding. States without a time axis are concatenated.
    ``caches`` must not be used afterwards.

    Raises:
        ValueError: a layer is of a kind that cannot hold the rows of two branches.
    """
    first = caches[0]
    if len(caches) == 1:
        return first
    if not isinstance(first, EncoderDecoderCache):
        return _merge_layers(caches, pad_left=True)
    merged: Cache = copy.copy(first)
    merged.self_attention_cache = merge([cache.self_attention_cache for cache in caches])
    # Encoders pad sources on the right.
    merged.cross_attention_cache = _merge_layers([cache.cross_attention_cache for cache in caches], pad_left=False)
    return merged


def select_rows(cache: Cache, index: Tensor) -> None:
    """Keep the rows ``index``, in place. It is a LongTensor in any order, and may contain a row several times."""
    if isinstance(cache, EncoderDecoderCache):
        select_rows(cache.self_attention_cache, index)
        select_rows(cache.cross_attention_cache, index)
        return
    if isinstance(cache, OwnLengthsCache):
        cache.select(index)
        return
    for layer in cache.layers:
        layer.reorder_cache(index)


def copy_rows(cache: Cache, index: Tensor) -> Cache:
    """A new cache with the rows ``index`` of ``cache``, which does not change."""
    if isinstance(cache, OwnLengthsCache):
        return cache.copy(index)
    rows: Cache = copy.copy(cache)
    if isinstance(cache, EncoderDecoderCache):
        rows.self_attention_cache = copy_rows(cache.self_attention_cache, index)
        rows.cross_attention_cache = copy_rows(cache.cross_attention_cache, index)
        return rows
    rows.layers = [_shallow_copy(layer) for layer in cache.layers]
    select_rows(rows, index)
    return rows


def crop(cache: Cache, tokens: int) -> bool:
    """Remove the last ``tokens`` positions, in place.

    Returns:
        False if the cache cannot remove them; it did not change then.
    """
    if not can_crop(cache):
        return tokens == 0
    for layer in _self_attention_layers(cache):
        # A layer that records its past drops what is outside of its window in crop, so call it for 0 tokens too.
        if tokens or getattr(layer, "record_past", False):
            layer.crop(-tokens)
    return True


def write_back(cache: Cache, positions: Tensor, real: Tensor) -> None:
    """Overwrite older positions with the last ones, and remove the last ones, in place.

    Args:
        positions: the position that each of the last n ones overwrites, (rows, n).
        real: which of the last n ones are used, bool (rows, n); the others are only removed.

    Raises:
        ValueError: the cache does not hold every position in order.
    """
    if not can_crop(cache):
        raise _unsupported(cache)
    rows, new = real.nonzero(as_tuple=True)
    for layer in _self_attention_layers(cache):
        first = layer.keys.shape[-2] - positions.shape[1]
        for states in (layer.keys, layer.values):
            states[rows, :, positions[rows, new]] = states[rows, :, first + new]
    crop(cache, positions.shape[1])


def can_crop(cache: Cache) -> bool:
    """Whether :func:`crop` can remove positions: every layer still holds the positions before them."""
    if isinstance(cache, OwnLengthsCache):
        return cache.can_crop
    return all(_layer_can_crop(layer) for layer in _self_attention_layers(cache))


def _layer_can_crop(layer: Any) -> bool:
    if type(layer) in _SLIDING_WINDOW:
        return getattr(layer, "record_past", False)
    return type(layer) in _FULL_ATTENTION or isinstance(layer, DummyLayer)


def record_past(cache: Cache, record: bool = True) -> bool:
    """Let layers with a sliding window keep positions outside of it, until the next :func:`crop`; or no longer.

    Returns:
        Whether the cache can now be cropped.
    """
    for layer in _self_attention_layers(cache):
        if getattr(layer, "is_sliding", False) and hasattr(layer, "record_past"):
            layer.record_past = record
    return can_crop(cache)


def is_full_attention(layer: Any) -> bool:
    """Whether a layer holds the keys and values of every position, and nothing else."""
    return type(layer) in _FULL_ATTENTION


def has_no_time_axis(cache: Cache) -> bool:
    """Whether every layer only keeps a state, which cannot be padded."""
    return getattr(cache, "layers", None) is not None and all(cache.is_linear)


def _self_attention_layers(cache: Cache) -> list[Any]:
    layers: list[Any] = cache.self_attention_cache.layers if isinstance(cache, EncoderDecoderCache) else cache.layers
    return layers


def check_static(cache: Cache, model: Any) -> None:
    """Refuse a ``cache`` whose content does not fit into a static one.

    Raises:
        ValueError: the cache has layers other than those of full attention.
    """
    if isinstance(cache, OwnLengthsCache):
        fits = all(isinstance(layer, OwnLengthsLayer) and layer.sliding_window is None for layer in cache.layers)
    else:
        fits = isinstance(cache, DynamicCache) and all(is_full_attention(layer) for layer in cache.layers)
    if not fits:
        raise ValueError(
            "cache_implementation='static' under guidance only works with full-attention decoders, and "
            f"{type(model).__name__} is not one; leave cache_implementation out"
        )


def to_static(cache: Cache, model: Any, length: int) -> StaticCache:
    """A static cache of ``length`` positions with the content of ``cache``: fixed shapes, as compilation needs them.

    Raises:
        ValueError: the cache has layers other than those of full attention.
    """
    check_static(cache, model)
    static = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)
    for source, target in zip(cache.layers, static.layers, strict=True):
        target.update(source.keys, source.values)
    return static


def _shallow_copy(layer: Any) -> Any:
    copied = copy.copy(layer)
    forget_buffers(copied)
    if isinstance(copied, LinearAttentionCacheLayerMixin):
        # The states are in dictionaries, which a shallow copy would share.
        copied.conv_states = dict(copied.conv_states)
        copied.recurrent_states = dict(copied.recurrent_states)
    return copied


def _merge_layers(caches: Sequence[Cache], pad_left: bool) -> Cache:
    merged: Cache = copy.copy(caches[0])
    merged.layers = [_merge_layer(layers, pad_left) for layers in zip(*(c.layers for c in caches), strict=True)]
    return merged


def _merge_layer(layers: Sequence[Any], pad_left: bool) -> Any:
    first = layers[0]
    if isinstance(first, DummyLayer):  # it uses the keys of another layer, or has none
        return first
    # Hybrid layers have both a state and keys.
    has_state = isinstance(first, LinearAttentionCacheLayerMixin)
    if not has_state and type(first) not in (*_FULL_ATTENTION, *_SLIDING_WINDOW):
        raise ValueError(
            f"cache layers of type {type(first).__name__} cannot hold the rows of two branches; "
            "use GuidanceLogitsProcessor, which keeps a separate cache for each"
        )
    merged = _shallow_copy(first)
    if has_state:
        _merge_states(merged, layers)
    if isinstance(first, DynamicLayer):
        _merge_keys(merged, layers, pad_left)
    return merged


def _merge_states(merged: Any, layers: Sequence[Any]) -> None:
    for name in ("conv_states", "recurrent_states"):
        states = getattr(merged, name)
        for number in states:
            parts = [getattr(layer, name)[number] for layer in layers]
            states[number] = None if parts[0] is None else torch.cat(parts)


def _merge_keys(merged: Any, layers: Sequence[Any], pad_left: bool) -> None:
    first = layers[0]
    if first.is_initialized and first.keys is not None and first.keys.dim() > 1:
        merged.keys = _stack([layer.keys for layer in layers], pad_left)
        merged.values = _stack([layer.values for layer in layers], pad_left)
    if isinstance(first, DynamicSlidingWindowLayer):
        merged.cumulative_length = max(layer.cumulative_length for layer in layers)


def _stack(parts: Sequence[Tensor], pad_left: bool) -> Tensor:
    """Concatenate (rows, heads, time, width) tensors along rows, padding time with zeros."""
    length = max(part.shape[-2] for part in parts)
    padded = []
    for part in parts:
        missing = length - part.shape[-2]
        if missing:
            part = F.pad(part, (0, 0, missing, 0) if pad_left else (0, 0, 0, missing))
        padded.append(part)
    return torch.cat(padded)


def _unsupported(model: Any) -> ValueError:
    return ValueError(
        f"{type(model).__name__} does not keep its state in a transformers Cache, so branches cannot share its forward "
        "pass; guidance is not available for this architecture"
    )
