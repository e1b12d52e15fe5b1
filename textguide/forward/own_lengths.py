"""Rows of different lengths in one forward pass, without padding.

A padded cache stores and reads every row at the length of the longest one: the last token as the other branch of a
4,096-token prompt then costs as much as a second prompt. Here the rows of one length form a group with keys and values
of its own. The model sees one batch: its cache returns a placeholder of the padded shape (filled with NaN through a
stride of 0, so that it takes no memory, and arithmetic on it is noticed), which carries the keys of each group. On a
GPU, where every call of attention costs time, rows of similar length form a group and are padded within it. The
attention function that is registered with transformers under ``textguide-sdpa`` and ``textguide-eager`` calls the
model's own one for each group. Masks are transformers' own, too: a mask is a recipe that each group evaluates for its
own columns, so that windows, chunks and soft caps need no code here.

Models that compute with keys or masks outside of their attention function raise an error or return NaN. Which classes
support this is among the facts about architectures (:attr:`.ModelAdapter.keeps_own_lengths`).
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .growing_cache import Buffer, GrowingLayer, GrowingWindowLayer

try:
    from transformers.cache_utils import DummyLayer
except ImportError:  # transformers 5.19, with which vLLM is tested

    class DummyLayer:  # type: ignore[no-redef]
        """No cache has such a layer."""


PREFIX = "textguide-"
GROUPS_ON_GPU = 3
"""The number of groups on a GPU, where a layer's time grows with the number of its calls."""
IMPLEMENTATIONS = ("sdpa", "eager")
"""The attention implementations that can be called once per group."""
_FULL_ATTENTION = (DynamicLayer, GrowingLayer)
_SLIDING_WINDOW = (DynamicSlidingWindowLayer, GrowingWindowLayer)


class OwnLengthsError(TypeError):
    """A model computes something that needs padded rows."""


# -- the cache -----------------------------------------------------------------------------------------------------


class RowGroups:
    """Which rows have which length.

    Args:
        rows: the row numbers of each group.
        missing: how many tokens shorter each group is than the padded shape that the model sees. This stays the same
            when all rows read or forget a token.
        padding: for each group, how many tokens shorter each of its rows is than the group, (R_g,); None: no row is.
    """

    def __init__(
        self, rows: Sequence[Tensor], missing: Sequence[int], padding: Sequence[Tensor | None] | None = None
    ) -> None:
        self.set(rows, missing, padding)

    def set(
        self, rows: Sequence[Tensor], missing: Sequence[int], padding: Sequence[Tensor | None] | None = None
    ) -> None:
        """Replace the groups, in place: a cache and its layers share this object."""
        self.rows = list(rows)
        self.missing = list(missing)
        self.padding = [None] * len(self.rows) if padding is None else list(padding)
        # A slice selects rows without copying them.
        self.picks: list[slice | Tensor] = []
        starts = []
        adjacent = True
        for own in self.rows:
            numbers = own.tolist()
            start = numbers[0]
            is_range = numbers == list(range(start, start + len(numbers)))
            self.picks.append(slice(start, start + len(numbers)) if is_range else own)
            starts.append(start)
            adjacent = adjacent and is_range
        in_order = adjacent and starts == sorted(starts)
        self._order = None if in_order else torch.cat(self.rows).argsort()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all groups in order, from those of each group."""
        joined = torch.cat(list(parts))
        return joined if self._order is None else joined[self._order]

    def selection(self, index: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """For each group with rows in ``index``: its number, which of its rows they are, and their new row numbers."""
        selected = []
        for number, own in enumerate(self.rows):
            new, rows = (index[:, None] == own).nonzero(as_tuple=True)
            if len(rows):
                selected.append((number, rows, new))
        return selected


class OwnLengthsLayer(CacheLayerMixin):
    """The keys and values of one attention layer, in groups.

    Args:
        groups: those of the cache that it is part of. A reference to the cache would be a cycle, which keeps the keys
            in memory until Python looks for cycles.
        keys: the keys of each group, (R_g, H, T_g, D).
        values: the values of each group.
        seen: number of tokens that the longest rows have read.
        window: number of positions that the layer attends to; None: all.
    """

    def __init__(
        self,
        groups: RowGroups,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        seen: int,
        window: int | None,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.own_keys = [Buffer(states) for states in keys]
        self.own_values = [Buffer(states) for states in values]
        self.is_sliding = window is not None
        self.sliding_window = window
        self.record_past = False
        self.seen = seen
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values, (R, H, k, D); return placeholders that carry those of each group."""
        new = key_states.shape[-2]
        length = self.get_mask_sizes(new)[0]
        self.seen += new
        keys = _placeholder(key_states, length, self.groups, self._append(self.own_keys, key_states))
        values = _placeholder(value_states, length, self.groups, self._append(self.own_values, value_states))
        return keys, values

    def _append(self, buffers: Sequence[Buffer], new: Tensor) -> list[Tensor]:
        states = []
        for buffer, pick in zip(buffers, self.groups.picks, strict=True):
            full = buffer.append(new[pick])
            if self.sliding_window is not None:
                full = full[:, :, -(self.sliding_window - 1 + new.shape[-2]) :]
                if not self.record_past:
                    buffer.keep_last(self.sliding_window - 1)
            states.append(full)
        return states

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` positions of every row."""
        self.seen += tokens_to_remove
        for buffer in (*self.own_keys, *self.own_values):
            buffer.remove_last(-tokens_to_remove)
            if self.sliding_window is not None:
                buffer.keep_last(self.sliding_window - 1)

    @property
    def can_crop(self) -> bool:
        """Whether it holds the positions before the last ones."""
        return self.sliding_window is None or self.record_past

    def select(self, selection: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        """Keep the rows of :meth:`RowGroups.selection`."""
        self.own_keys = [_select(self.own_keys[group], rows) for group, rows, _ in selection]
        self.own_values = [_select(self.own_values[group], rows) for group, rows, _ in selection]

    def copy_with(self, groups: RowGroups) -> OwnLengthsLayer:
        """A copy of the layer for another cache, which has these ``groups``."""
        copied = copy.copy(self)
        copied.groups = groups
        copied.own_keys = [Buffer(buffer.states.clone()) for buffer in self.own_keys]
        copied.own_values = [Buffer(buffer.states.clone()) for buffer in self.own_values]
        return copied

    # What transformers' mask functions need to know, as of padded rows.

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of columns of a mask, and the position of the first."""
        kept = self.seen if self.sliding_window is None else min(self.seen, self.sliding_window - 1)
        return kept + query_length, self.seen - kept

    def get_seq_length(self) -> int:
        """Number of tokens of the longest rows."""
        return self.seen

    def get_max_length(self) -> int:
        """The window; -1: no limit."""
        return -1 if self.sliding_window is None else self.sliding_window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: it starts with keys and values."""


class OwnLengthsCache(Cache):
    """A cache in which rows keep their own lengths.

    Args:
        caches: the caches whose rows it holds, in order. They must not be used afterwards.
        masks: for each cache its attention mask, (R, T), padded on the left; None: its rows have no padding.
        lengths: for each cache the number of tokens of its longest row.

    Raises:
        ValueError: a layer holds more than keys, values and states, or a mask is not that of left padding.
    """

    def __init__(self, caches: Sequence[Cache], masks: Sequence[Tensor | None], lengths: Sequence[int]) -> None:
        parts = []
        for cache, mask, length in zip(caches, masks, lengths, strict=True):
            parts.append(_Part.of(cache, mask, length))
        longest = max(lengths)
        merged = _merged_groups(parts)
        self.groups = RowGroups(
            [group.rows for group in merged], [longest - group.length for group in merged], [g.padding for g in merged]
        )
        layers = []
        for number in range(len(caches[0].layers)):
            own = [cache.layers[number] for cache in caches]
            layers.append(self._merge_layer(number, own, parts, merged, longest))
        super().__init__(layers=layers)

    def _merge_layer(
        self, number: int, layers: Sequence[Any], parts: Sequence[_Part], merged: Sequence[_Group], longest: int
    ) -> Any:
        first = layers[0]
        if isinstance(first, DummyLayer):  # it uses the keys of another layer, or has none
            return first
        if isinstance(first, LinearAttentionCacheLayerMixin) and not isinstance(first, DynamicLayer):
            return _merge_states(layers)
        if isinstance(first, OwnLengthsLayer) or type(first) in (*_FULL_ATTENTION, *_SLIDING_WINDOW):
            keys = [states for part in parts for states in part.states(number, "keys")]
            values = [states for part in parts for states in part.states(number, "values")]
            merged_keys = [group.join(keys) for group in merged]
            merged_values = [group.join(values) for group in merged]
            window = getattr(first, "sliding_window", None)
            layer = OwnLengthsLayer(self.groups, merged_keys, merged_values, longest, window)
            layer.record_past = any(getattr(one, "record_past", False) for one in layers)
            return layer
        raise ValueError(f"has cache layers that hold more than keys and values ({type(first).__name__})")

    def select(self, index: Tensor) -> None:
        """Keep the rows ``index``, in place, in any order; it may contain a row several times."""
        selection = self.groups.selection(index)
        for layer in self.layers:
            if isinstance(layer, OwnLengthsLayer):
                layer.select(selection)
            else:
                layer.reorder_cache(index)
        missing = []
        padding = []
        for group, rows, _ in selection:
            missing.append(self.groups.missing[group])
            own = self.groups.padding[group]
            padding.append(None if own is None else own[rows])
        self.groups.set([new for _, _, new in selection], missing, padding)

    def copy(self, index: Tensor) -> OwnLengthsCache:
        """A new cache with the rows ``index``; this one does not change."""
        copied = copy.copy(self)
        groups = RowGroups(self.groups.rows, self.groups.missing, self.groups.padding)
        copied.groups = groups
        copied.layers = []
        for layer in self.layers:
            copied.layers.append(layer.copy_with(groups) if isinstance(layer, OwnLengthsLayer) else _copy_states(layer))
        copied.select(index)
        return copied

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` positions of every row, in place."""
        for layer in self.layers:
            layer.crop(tokens_to_remove)

    @property
    def can_crop(self) -> bool:
        """Whether every layer holds the positions before the last ones."""
        return all(isinstance(layer, DummyLayer) or getattr(layer, "can_crop", False) for layer in self.layers)

    def padded(self) -> tuple[DynamicCache, Tensor | None]:
        """The same rows padded on the left with zeros, and their mask (R, T).

        Raises:
            ValueError: a layer has a window or a state.
        """
        cache = DynamicCache()
        length = 0
        for number, layer in enumerate(self.layers):
            if not isinstance(layer, OwnLengthsLayer) or layer.sliding_window is not None:
                raise ValueError(f"cache layers of type {type(layer).__name__} cannot be padded")
            length = layer.seen
            keys = self.groups.join([_pad_left(buffer.states, length) for buffer in layer.own_keys])
            values = self.groups.join([_pad_left(buffer.states, length) for buffer in layer.own_values])
            cache.update(keys, values, number)
        masks = []
        for rows, missing, padding in zip(self.groups.rows, self.groups.missing, self.groups.padding, strict=True):
            padded = rows.new_full(rows.shape, missing) if padding is None else padding + missing
            masks.append(_mask_of_padding(padded, length))
        mask = self.groups.join(masks)
        return cache, None if bool(mask.all()) else mask


class _Part:
    """One of several caches that are merged: its rows by length."""

    def __init__(
        self, cache: Cache, rows: Sequence[Tensor], lengths: Sequence[int], padding: Sequence[Tensor | None] = ()
    ) -> None:
        """The row numbers of each group, their numbers of tokens, and padding as for :class:`RowGroups`."""
        self.cache = cache
        self.rows = list(rows)
        self.lengths = list(lengths)
        self.padding = list(padding) or [None] * len(self.rows)
        self.count = sum(len(own) for own in rows)

    @staticmethod
    def of(cache: Cache, mask: Tensor | None, length: int) -> _Part:
        if isinstance(cache, OwnLengthsCache):
            lengths_of_groups = [length - missing for missing in cache.groups.missing]
            return _Part(cache, cache.groups.rows, lengths_of_groups, cache.groups.padding)
        keys = next((layer.keys for layer in cache.layers if isinstance(layer, DynamicLayer)), None)
        if keys is None:
            raise ValueError("keeps a state of fixed size, which needs no padding")
        if mask is None:
            return _Part(cache, [torch.arange(len(keys), device=keys.device)], [length])
        if bool((mask[:, 1:] < mask[:, :-1]).any()):
            raise ValueError("rows with padding between their tokens do not have lengths of their own")
        lengths = mask.sum(-1)
        distinct = sorted(set(lengths.tolist()))
        return _Part(cache, [(lengths == own).nonzero()[:, 0] for own in distinct], distinct)

    def states(self, layer: int, name: str) -> list[Tensor]:
        """The keys or values of each group, without padding."""
        if isinstance(self.cache, OwnLengthsCache):
            return [buffer.states for buffer in getattr(self.cache.layers[layer], f"own_{name}")]
        states = getattr(self.cache.layers[layer], name)
        if len(self.rows) == 1 and self.lengths[0] >= states.shape[-2]:
            return [states]
        # Compact copies: views would keep the padding in memory.
        own = []
        for rows, length in zip(self.rows, self.lengths, strict=True):
            kept = min(length, states.shape[-2])
            own.append(states[rows, :, states.shape[-2] - kept :].contiguous())
        return own


class _Group:
    """A group of a merged cache: the groups of the parts that it consists of.

    Args:
        members: their numbers among the groups of all parts.
        rows: for each of them, the numbers of its rows among all rows.
        lengths: for each of them, its number of tokens.
        padding: for each of them, see :class:`RowGroups`.
    """

    def __init__(
        self,
        members: Sequence[int],
        rows: Sequence[Tensor],
        lengths: Sequence[int],
        padding: Sequence[Tensor | None],
    ) -> None:
        self.members = members
        self.length = max(lengths)
        every = torch.cat(list(rows))
        # Neighbours in the batch are selected by a slice.
        self._order = every.argsort() if len(members) > 1 else None
        self.rows = every if self._order is None else every[self._order]
        missing = []
        for own, length, inner in zip(rows, lengths, padding, strict=True):
            more = own.new_full(own.shape, self.length - length)
            missing.append(more if inner is None else more + inner)
        padded = torch.cat(missing)
        padded = padded if self._order is None else padded[self._order]
        self.padding = padded if bool(padded.any()) else None

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """The keys or values of its rows, from those of the groups of all parts."""
        own = [states[member] for member in self.members]
        if self._order is None:
            return own[0]
        length = max(one.shape[-2] for one in own)
        return torch.cat([_pad_left(one, length) for one in own])[self._order]


def _merged_groups(parts: Sequence[_Part]) -> list[_Group]:
    rows = []
    lengths = []
    padding = []
    start = 0
    for part in parts:
        rows += [own + start for own in part.rows]
        lengths += part.lengths
        padding += part.padding
        start += part.count
    most = most_groups(rows[0].device)
    groups = []
    for members in _similar([len(own) for own in rows], lengths, most):
        groups.append(
            _Group(
                members,
                [rows[member] for member in members],
                [lengths[member] for member in members],
                [padding[member] for member in members],
            )
        )
    return groups


def most_groups(device: torch.device) -> int | None:
    """The largest number of groups of rows on ``device``; None: one for every length."""
    return GROUPS_ON_GPU if device.type == "cuda" else None


def _similar(counts: Sequence[int], lengths: Sequence[int], most: int | None) -> list[list[int]]:
    """Put groups of ``counts`` rows and of ``lengths`` together so that ``most`` remain, with the least padding."""
    if most is None or len(lengths) <= most:
        return [[number] for number in range(len(lengths))]
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    # For every number of groups: the least padding of the first groups in this order, and where the last one starts.
    best: list[list[tuple[int, int]]] = [[(0, 0)] + [(sys.maxsize, 0)] * len(order)]
    for _ in range(most):
        row = [(0, 0)]
        for end in range(1, len(order) + 1):
            longest = lengths[order[end - 1]]
            options = []
            padding = 0
            for start in range(end - 1, -1, -1):
                padding += counts[order[start]] * (longest - lengths[order[start]])
                options.append((best[-1][start][0] + padding, start))
            row.append(min(options))
        best.append(row)
    groups = []
    end = len(order)
    for used in range(most, 0, -1):
        start = best[used][end][1]
        if start < end:
            groups.append(order[start:end])
        end = start
    return groups[::-1]


def _merge_states(layers: Sequence[Any]) -> Any:
    merged = _copy_states(layers[0])
    for name in ("conv_states", "recurrent_states"):
        states = getattr(merged, name)
        for number in states:
            parts = [getattr(layer, name)[number] for layer in layers]
            states[number] = None if parts[0] is None else torch.cat(parts)
    return merged


def _copy_states(layer: Any) -> Any:
    copied = copy.copy(layer)
    if isinstance(copied, LinearAttentionCacheLayerMixin):
        copied.conv_states = dict(copied.conv_states)
        copied.recurrent_states = dict(copied.recurrent_states)
    return copied


def _select(buffer: Buffer, rows: Tensor) -> Buffer:
    if rows.tolist() == list(range(buffer.states.shape[0])):
        return buffer
    return Buffer(buffer.states[rows])


def _pad_left(states: Tensor, length: int) -> Tensor:
    return F.pad(states, (0, 0, length - states.shape[-2], 0))


def _mask_of_padding(padding: Tensor, length: int) -> Tensor:
    """The attention mask (R, length) of rows with ``padding`` (R,) positions of padding on the left."""
    return (torch.arange(length, device=padding.device) >= padding[:, None]).long()


# -- what the model sees -------------------------------------------------------------------------------------------


def _placeholder(new: Tensor, length: int, groups: RowGroups, states: list[Tensor]) -> Tensor:
    """A tensor of the padded shape (R, H, length, D) that carries the keys or values of each group."""
    nan = torch.full((), float("nan"), dtype=new.dtype, device=new.device)
    placeholder = nan.expand(*new.shape[:2], length, new.shape[3])
    placeholder.groups = groups  # type: ignore[attr-defined]
    placeholder.states = states  # type: ignore[attr-defined]
    return placeholder


class _MaskRecipe:
    """How to make a mask: the function of transformers, and its arguments as of padded rows."""

    def __init__(self, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self.make = make
        self.arguments = arguments
        self.made: dict[tuple[int, int], Any] = {}

    def of_group(self, groups: RowGroups, number: int, columns: int) -> Any:
        """The mask of a group over its last ``columns`` positions. It is made once for all layers with that number."""
        if (number, columns) not in self.made:
            missing = groups.missing[number]
            self.made[number, columns] = self._make(groups.rows[number], missing, groups.padding[number], columns)
        return self.made[number, columns]

    def _make(self, rows: Tensor, missing: int, padding: Tensor | None, columns: int) -> Any:
        arguments = dict(self.arguments)
        of_batch = arguments["mask_function"]
        arguments["batch_size"] = len(rows)
        # The group's own positions, on which masks of chunks depend.
        arguments["q_offset"] = arguments.get("q_offset", 0) - missing
        arguments["kv_offset"] = arguments.get("kv_offset", 0) + arguments["kv_length"] - columns - missing
        arguments["kv_length"] = columns
        if padding is None:
            arguments["mask_function"] = lambda row, head, query, key: of_batch(rows[row], head, query, key)
            return self.make(**arguments)
        arguments["attention_mask"] = _mask_of_padding(padding, arguments["kv_offset"] + columns).bool()
        arguments["mask_function"] = lambda row, head, query, key: of_batch(
            rows[row], head, query - padding[row], key - padding[row]
        )
        return self.make(**arguments)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention, called once per group."""
    inner = _model_attention(module)
    if not isinstance(attention_mask, _MaskRecipe) and not hasattr(key, "groups"):
        # Another thread decodes with the same model, or this module does not use the cache.
        outputs: tuple[Tensor, Tensor | None] = inner(module, query, key, value, attention_mask, **kwargs)
        return outputs
    if not hasattr(key, "groups") or not hasattr(value, "groups"):
        raise OwnLengthsError("changes keys or values between its cache and its attention function")
    groups: RowGroups = key.groups
    if attention_mask is not None and not isinstance(attention_mask, _MaskRecipe):
        raise OwnLengthsError("makes or changes masks itself")
    parts = []
    for number, pick in enumerate(groups.picks):
        own_keys = key.states[number]  # type: ignore[attr-defined]
        own_values = value.states[number]  # type: ignore[attr-defined]
        mask = None
        if attention_mask is None and groups.padding[number] is not None:
            raise OwnLengthsError("attends without a mask")
        if attention_mask is not None:
            mask = attention_mask.of_group(groups, number, own_keys.shape[-2])
        parts.append(inner(module, query[pick], own_keys, own_values, mask, **kwargs)[0])
    return groups.join(parts), None


def _model_attention(module: Any) -> Callable[..., Any]:
    name = module.config._attn_implementation.removeprefix(PREFIX)
    function = ALL_ATTENTION_FUNCTIONS._global_mapping.get(name)
    if function is not None:
        found: Callable[..., Any] = function
        return found
    # transformers does not register "eager": each modeling file has its own function.
    for parent in type(module).__mro__:
        own = vars(sys.modules[parent.__module__]).get("eager_attention_forward")
        if own is not None:
            eager: Callable[..., Any] = own
            return eager
    raise AttributeError(f"{type(module).__name__} has no eager_attention_forward")


def _mask(make: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return _MaskRecipe(make, arguments) if _pass.has_own_lengths else make(**arguments)


class _CurrentPass(threading.local):
    has_own_lengths = False


_pass = _CurrentPass()
_lock = threading.Lock()
# How many passes with own lengths are running with a configuration, by its id.
_running: dict[int, int] = {}


@contextmanager
def reading_own_lengths(configurations: Sequence[Any]) -> Iterator[None]:
    """Within this context, this thread's passes of a model read an :class:`OwnLengthsCache`.

    Args:
        configurations: those of the model's modules, see :func:`attention_configurations`.
    """
    # Others belong to parts that do not read the cache, such as an image encoder.
    configurations = [one for one in configurations if is_supported(one)]
    with _lock:
        for configuration in configurations:
            running = _running.get(id(configuration), 0)
            _running[id(configuration)] = running + 1
            if running == 0:
                configuration._attn_implementation_internal = PREFIX + configuration._attn_implementation
    _pass.has_own_lengths = True
    try:
        yield
    finally:
        _pass.has_own_lengths = False
        with _lock:
            for configuration in configurations:
                _running[id(configuration)] -= 1
                if _running[id(configuration)] == 0:
                    del _running[id(configuration)]
                    own = configuration._attn_implementation.removeprefix(PREFIX)
                    configuration._attn_implementation_internal = own


def attention_configurations(model: Any) -> list[Any]:
    """The configurations of a model's modules, each once."""
    by_id = {}
    for module in model.modules():
        configuration = getattr(module, "config", None)
        if hasattr(configuration, "_attn_implementation"):
            by_id[id(configuration)] = configuration
    return list(by_id.values())


def is_supported(configuration: Any) -> bool:
    """Whether the attention implementation of a configuration can be called once per group."""
    return (configuration._attn_implementation or "").removeprefix(PREFIX) in IMPLEMENTATIONS


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(PREFIX + _name, _attention)
    AttentionMaskInterface.register(
        PREFIX + _name, lambda _make=ALL_MASK_ATTENTION_FUNCTIONS[_name], **arguments: _mask(_make, arguments)
    )
