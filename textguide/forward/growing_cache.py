"""Cache layers that grow in place: new keys and values are written into spare room instead of copying the whole cache.

transformers appends with ``torch.cat``, which copies every key at every step. The layers here keep a larger buffer, and
the model sees the used part of it as a view: the same numbers, so the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache

SPARE = 256
"""The most positions of spare room that a buffer is made with; a short text gets less."""


class Buffer:
    """A tensor (R, H, T, D) with spare room along T, of which the positions from ``first`` to ``last`` are used."""

    def __init__(self, states: Tensor) -> None:
        self.room = states
        self.first = 0
        self.last = states.shape[-2]
        self.states = states
        """The used part, a view of the room."""

    def holds(self, states: Tensor) -> bool:
        """Whether ``states`` is the used part, or a beginning of it after its end was cropped.

        It is neither after rows were selected, or if a layer got the keys of another one.
        """
        # A tensor of inference mode cannot be written to outside of it.
        if states.is_inference() != torch.is_inference_mode_enabled():
            return False
        own = self.states
        if states is own:
            return True
        is_beginning = (
            states.data_ptr() == own.data_ptr()
            and states.stride() == own.stride()
            and states.shape[:2] == own.shape[:2]
            and states.shape[-2] <= own.shape[-2]
            and states.shape[-1] == own.shape[-1]
        )
        if is_beginning:
            self.last = self.first + states.shape[-2]
        return is_beginning

    def append(self, new: Tensor) -> Tensor:
        """Append ``new`` (R, H, k, D), and return all states."""
        last = self.last + new.shape[-2]
        if last > self.room.shape[-2]:
            self._move(new.shape[-2])
            last = self.last + new.shape[-2]
        self.room[:, :, self.last : last] = new
        self.last = last
        return self._view()

    def keep_last(self, positions: int) -> Tensor:
        """Forget all but the last ``positions``, and return those."""
        self.first = max(self.first, self.last - positions)
        return self._view()

    def remove_last(self, positions: int) -> None:
        """Remove the last ``positions``."""
        self.last -= positions
        self._view()

    def _view(self) -> Tensor:
        self.states = self.room[:, :, self.first : self.last]
        return self.states

    def _move(self, new: int) -> None:
        """Move the states to a larger buffer, without those that were forgotten."""
        states = self.room[:, :, self.first : self.last]
        used = states.shape[-2]
        room = states.new_empty(*states.shape[:2], used + new + min(SPARE, max(16, used)), states.shape[3])
        room[:, :, :used] = states
        self.room = room
        self.first = 0
        self.last = used


class GrowingLayer(DynamicLayer):
    """A :class:`DynamicLayer` that grows in place."""

    _buffers: tuple[Buffer, Buffer] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values, (R, H, k, D), and return all of them."""
        buffers = own_buffers(self, key_states, value_states)
        if buffers is None:
            return super().update(key_states, value_states, *args, **kwargs)
        keys, values = buffers
        self.keys = keys.append(key_states)
        self.values = values.append(value_states)
        return self.keys, self.values


class GrowingWindowLayer(DynamicSlidingWindowLayer):
    """A :class:`DynamicSlidingWindowLayer` that grows in place."""

    _buffers: tuple[Buffer, Buffer] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values, (R, H, k, D), keep those that a window still needs, and return all of them."""
        # A layer that records its past keeps more than the window, and transformers keeps everything for a window of 1.
        by_concatenation = self.record_past or self.sliding_window == 1
        buffers = None if by_concatenation else own_buffers(self, key_states, value_states)
        if buffers is None:
            return super().update(key_states, value_states, *args, **kwargs)
        keys, values = buffers
        self.cumulative_length += key_states.shape[-2]
        all_keys = keys.append(key_states)
        all_values = values.append(value_states)
        self.keys = keys.keep_last(self.sliding_window - 1)
        self.values = values.keep_last(self.sliding_window - 1)
        return all_keys, all_values


def own_buffers(layer: Any, key_states: Tensor, value_states: Tensor) -> tuple[Buffer, Buffer] | None:
    """The buffers of a layer's keys and values; None if the layer has to concatenate this time.

    They are made anew if something replaced the layer's keys: selected rows, an offloaded cache, another cache's layer.
    """
    if not layer.is_initialized or layer.get_seq_length() == 0 or layer.keys.dim() != 4:
        return None
    if torch.is_grad_enabled() and (key_states.requires_grad or layer.keys.requires_grad):
        return None  # writing in place would change what the backward pass needs
    buffers: tuple[Buffer, Buffer] | None = layer._buffers
    if buffers is not None and buffers[0].holds(layer.keys) and buffers[1].holds(layer.values):
        return buffers
    layer._buffers = (Buffer(layer.keys), Buffer(layer.values))
    made: tuple[Buffer, Buffer] = layer._buffers
    return made


def grow_in_place(cache: Any) -> Any:
    """Let the layers of ``cache`` grow in place, and return it. Caches of other kinds do not change."""
    if isinstance(cache, EncoderDecoderCache):
        grow_in_place(cache.self_attention_cache)
        return cache
    # A cache that is offloaded moves its keys between devices at every step.
    if not isinstance(cache, Cache) or cache.offloading:
        return cache
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = GrowingLayer
        elif type(layer) is DynamicSlidingWindowLayer:
            layer.__class__ = GrowingWindowLayer
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


def forget_buffers(layer: Any) -> None:
    """Let a copy of a layer have room of its own: two layers must not write into one buffer."""
    if isinstance(layer, (GrowingLayer, GrowingWindowLayer)):
        layer._buffers = None
