"""Rows that advance together: one model, one cache, one forward pass a step.

A lane holds rows of any branches of one model side by side. Each row keeps its own positions and attention mask, so
that rows of unlike length share a pass. Prompts are read at their own lengths and their caches merged afterwards,
which is why a one-token unconditional prompt costs next to nothing beside a long conditional one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import caches, small_matmul

_LOOKED_AT = ("encoder_hidden_states", "encoder_attention_mask")


@dataclass
class Lane:
    """Rows of one model in one cache.

    Args:
        model: a transformers model.
        cache: the keys, values and states of all rows.
        length: positions in the cache, padding included.
        mask: attention mask (R, length), or None while no row has padding.
        next_position: position of the next token of each row, (R, 1).
        inputs: what an encoder-decoder needs at every step, with rows in the first dimension.
        call: replaces the model's own call after the prefill.
        guided: the lane belongs to a guided run, which need not reproduce the bits of plain decoding.
    """

    model: Any
    cache: Any
    length: int
    mask: Tensor | None
    next_position: Tensor
    inputs: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., Any] | None = None
    guided: bool = False

    @property
    def rows(self) -> int:
        """Number of rows R in the cache."""
        return self.next_position.shape[0]

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read ``ids`` (R, k), one or more new tokens a row, and return the logits of the last ``keep`` (R, keep, V).

        Recurrent states take several tokens one by one, since not every model continues a state with a chunk.
        """
        if ids.shape[1] > 1 and caches.has_recurrent_state(self.model):
            steps = [Lane.forward(self, ids[:, i : i + 1]) for i in range(ids.shape[1])]
            return torch.cat(steps[-keep:], dim=1)
        new = ids.shape[1]
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, new), value=1)
        offsets = torch.arange(new, device=self.next_position.device)
        positions = self.next_position + offsets
        outputs = _call(self, ids, positions, keep, first=False)
        self.next_position = self.next_position + new
        self.length += new
        return outputs.logits[:, -keep:]

    def select(self, index: Tensor) -> None:
        """Keep the rows ``index``, in place; columns that are padding in all of them stay."""
        caches.select_rows(self.cache, index)
        self._select_vectors(index)

    def split(self, index: Tensor) -> Lane:
        """A new lane with the rows ``index``; this one stays as it is."""
        twin = Lane(
            self.model,
            caches.copy_rows(self.cache, index),
            self.length,
            self.mask,
            self.next_position,
            dict(self.inputs),
            self.call,
            self.guided,
        )
        twin._select_vectors(index)
        return twin

    def crop(self, tokens: int) -> bool:
        """Forget the last ``tokens`` tokens of every row, in place; False (and nothing changed) where it cannot."""
        if tokens == 0:
            return True
        if not caches.crop(self.cache, tokens):
            return False
        self.length -= tokens
        self.next_position = self.next_position - tokens
        if self.mask is not None:
            self.mask = self.mask[:, :-tokens]
        return True

    def make_static(self, length: int) -> None:
        """Move the cache into fixed shapes of ``length`` positions."""
        self.cache = caches.to_static(self.cache, self.model, length)

    def _select_vectors(self, index: Tensor) -> None:
        self.next_position = self.next_position[index]
        if self.mask is not None:
            self.mask = self.mask[index]
        self.inputs = {name: _select(value, index) for name, value in self.inputs.items()}


@dataclass
class SharedLane(Lane):
    """A lane whose readers share the rows in which the same was read, as particles of one prompt do.

    What a reader reads, where it goes on from another one and whether it stays changes ``owners`` alone; the cache
    follows with the next pass, which runs one row for all readers that have read the same.

    Args:
        owners: the row of each reader, (N,). ``forward``, ``select`` and ``split`` speak of readers.
    """

    owners: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read ``ids`` (N, k) and return logits (N, keep, V)."""
        rows = torch.cat([self.owners.to(ids.device)[:, None], ids], dim=1)
        distinct, owners = torch.unique(rows, dim=0, return_inverse=True)
        sources = distinct[:, 0].to(self.owners.device)
        if not torch.equal(sources, torch.arange(self.rows, device=sources.device)):
            super().select(sources)
        self.owners = owners.to(self.owners.device)
        return super().forward(distinct[:, 1:], keep)[owners]

    def select(self, index: Tensor) -> None:
        """Keep the readers ``index``, in place; rows without readers go with the next pass."""
        self.owners = self.owners[index]

    def split(self, index: Tensor) -> SharedLane:
        """A new lane with the readers ``index``; this one stays as it is."""
        rows, owners = torch.unique(self.owners[index], return_inverse=True)
        return share(super().split(rows), owners)


def share(lane: Lane, owners: Tensor) -> SharedLane:
    """``lane`` for readers that go on from its rows ``owners`` (N,). It must not be used by itself afterwards."""
    return SharedLane(**values_of(lane), owners=owners.to(lane.next_position.device))


def values_of(lane: Lane) -> dict[str, Any]:
    """The fields of ``lane``, for a lane of another kind that takes its place."""
    return {f.name: getattr(lane, f.name) for f in fields(Lane)}


def merge(lanes: Sequence[Lane]) -> Lane:
    """One lane with the rows of all, in order. The given lanes must not be used afterwards."""
    if len(lanes) == 1:
        return lanes[0]
    if any(isinstance(lane, SharedLane) for lane in lanes):
        before, owners = 0, []
        for lane in lanes:
            own = lane.owners if isinstance(lane, SharedLane) else torch.arange(lane.rows)
            owners.append(own.to(lanes[0].next_position.device) + before)
            before += lane.rows
        return share(_merge(lanes), torch.cat(owners))
    return _merge(lanes)


def _merge(lanes: Sequence[Lane]) -> Lane:
    length = max(lane.length for lane in lanes)
    mask: Tensor | None = None
    recurrent_only = _has_no_time_axis(lanes[0])
    if not recurrent_only and any(lane.mask is not None or lane.length != length for lane in lanes):
        mask = torch.cat([F.pad(_mask(lane), (length - lane.length, 0)) for lane in lanes])
    return Lane(
        model=lanes[0].model,
        cache=caches.merge([lane.cache for lane in lanes]),
        length=length,
        mask=mask,
        next_position=torch.cat([lane.next_position for lane in lanes]),
        inputs=_merge_inputs(lanes),
        call=lanes[0].call,
        guided=lanes[0].guided,
    )


def prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    device: Any,
    keep: int = 1,
    guided: bool = False,
    sharing: bool = False,
) -> tuple[Lane, Tensor]:
    """Read decoder-only ``prompts``, each at its own length, and return the lane and the last ``keep`` logits.

    Equal prompts are read once; with ``sharing`` they stay one row until they go on differently. Rows of unlike length
    are padded on the left, except for recurrent models, which read one length at a time.

    Returns:
        The lane with ``len(prompts)`` rows in order, and logits (R, keep, V).
    """
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    place = {prompt: i for i, prompt in enumerate(unique)}
    if caches.has_recurrent_state(model):
        lengths = sorted({len(prompt) for prompt in unique})
        groups = [[prompt for prompt in unique if len(prompt) == length] for length in lengths]
    else:
        groups = [unique]
    lanes, logits = [], []
    for group in groups:
        ids, mask = pad_left(group, device)
        lane, last = prefill_padded(model, ids, mask, keep=keep, guided=guided)
        lanes.append(lane)
        logits.append(last)
    order = {prompt: i for i, prompt in enumerate(prompt for group in groups for prompt in group)}
    index = [order[unique[place[tuple(prompt)]]] for prompt in prompts]
    lane, last = merge(lanes), torch.cat(logits)
    picked = torch.tensor(index, device=device)
    if sharing:
        return share(lane, picked), last[picked]
    if index != list(range(lane.rows)):
        lane.select(picked)
        last = last[picked]
    return lane, last


def prefill_padded(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    *,
    keep: int = 1,
    positions: Tensor | None = None,
    cache: Any = None,
    extra: dict[str, Any] | None = None,
    guided: bool = False,
) -> tuple[Lane, Tensor]:
    """Read left-padded ids (R, L) in one pass.

    Args:
        mask: (R, L) with 0 on padding; None: no padding.
        positions: (R, L); default: counted from the mask.
        cache: the cache to fill; default: a new one that grows.
        extra: further inputs of the model's first pass, such as pixel values.
        guided: see :class:`Lane`.
    """
    if positions is None:
        positions = position_ids(mask) if mask is not None else torch.arange(ids.shape[1], device=ids.device)[None]
    if positions.dim() == 3:  # time, height and width of image patches: text goes on behind the largest
        next_position = positions[-3:].amax(dim=(0, 2))[:, None] + 1
    else:
        next_position = (positions[:, -1:] + 1).expand(ids.shape[0], 1)
    cache = cache if cache is not None else caches.new_cache(model)
    if extra and extra.get("encoder_hidden_states") is not None:
        cache = caches.with_cross_attention(cache, model)
    lane = Lane(model, cache, ids.shape[1], mask, next_position, guided=guided)
    # What decoders with cross-attention look at goes with every step; other extras with the first.
    lane.inputs = {name: extra[name] for name in _LOOKED_AT if extra and extra.get(name) is not None}
    outputs = _call(lane, ids, positions, keep, first=True, extra=extra)
    return lane, outputs.logits[:, -keep:]


def repeat(lane: Lane, logits: Tensor, owners: Sequence[int]) -> tuple[Lane, Tensor]:
    """The rows ``owners`` of ``lane``, which must not be used afterwards, as a lane; the logits likewise."""
    if list(owners) == list(range(lane.rows)):
        return lane, logits
    index = torch.tensor(list(owners), device=lane.next_position.device)
    lane.select(index)
    return lane, logits[index.to(logits.device)]


def prefill_encoder_decoder(
    model: Any,
    decoder_ids: Tensor,
    encoder_outputs: Any,
    encoder_mask: Tensor | None,
    *,
    decoder_mask: Tensor | None = None,
    keep: int = 1,
    cache: Any = None,
) -> tuple[Lane, Tensor]:
    """Read decoder ids (R, L) against encoded sources."""
    inputs = {"encoder_outputs": encoder_outputs, "attention_mask": encoder_mask}
    position = torch.full((decoder_ids.shape[0], 1), decoder_ids.shape[1], device=decoder_ids.device)
    cache = cache if cache is not None else caches.new_cache(model)
    lane = Lane(model, cache, decoder_ids.shape[1], decoder_mask, position, inputs)
    outputs = _call(lane, decoder_ids, None, keep, first=True)
    return lane, outputs.logits[:, -keep:]


def encode(model: Any, sources: Sequence[Sequence[int]], device: Any) -> tuple[Any, Tensor]:
    """Run the encoder on ``sources``, padded on the right: its outputs and their attention mask (R, S)."""
    length = max(len(source) for source in sources)
    ids = torch.tensor([[*source, *([0] * (length - len(source)))] for source in sources], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sources], device=device)
    return model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True), mask


def pad_left(prompts: Sequence[Sequence[int]], device: Any, pad: int = 0) -> tuple[Tensor, Tensor | None]:
    """Prompts as ids (R, L) with padding on the left, and their mask (None where nothing was padded)."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    if all(len(p) == length for p in prompts):
        return ids, None
    return ids, torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)


def position_ids(mask: Tensor) -> Tensor:
    """Positions (R, L) that count the unmasked tokens; 0 on padding."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


def _call(
    lane: Lane,
    ids: Tensor,
    positions: Tensor | None,
    keep: int,
    first: bool,
    extra: dict[str, Any] | None = None,
) -> Any:
    model = lane.model
    arguments: dict[str, Any] = {caches.cache_argument(model): lane.cache, "use_cache": True, **(extra or {})}
    arguments.update(lane.inputs)
    if model.config.is_encoder_decoder:
        if lane.mask is not None:
            arguments["decoder_attention_mask"] = lane.mask
    else:
        arguments["attention_mask"] = lane.mask
        if positions is not None and caches.accepts(model, "position_ids"):
            arguments["position_ids"] = positions
    if caches.accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = keep
    prepared = model.prepare_inputs_for_generation(ids, is_first_iteration=first, **arguments)
    if first or lane.call is None:
        with small_matmul.enabled(model) if lane.guided else nullcontext():
            return model(**prepared, return_dict=True)
    return lane.call(**prepared, return_dict=True)


def _has_no_time_axis(lane: Lane) -> bool:
    layers = getattr(lane.cache, "layers", None)
    return layers is not None and all(lane.cache.is_linear)


def _mask(lane: Lane) -> Tensor:
    if lane.mask is not None:
        return lane.mask.long()
    return torch.ones(lane.rows, lane.length, dtype=torch.long, device=lane.next_position.device)


def _select(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index]
    if value is None:
        return None
    return type(value)(**{k: v[index] for k, v in value.items() if isinstance(v, Tensor)})


def _merge_inputs(lanes: Sequence[Lane]) -> dict[str, Any]:
    if not lanes[0].inputs:
        return {}
    if "encoder_outputs" not in lanes[0].inputs:
        return {name: _stack_right([lane.inputs[name] for lane in lanes]) for name in lanes[0].inputs}
    states = [lane.inputs["encoder_outputs"].last_hidden_state for lane in lanes]
    masks = []
    for lane, state in zip(lanes, states, strict=True):
        mask = lane.inputs["attention_mask"]
        if mask is None:
            mask = torch.ones(state.shape[:2], dtype=torch.long, device=state.device)
        masks.append(mask.long())
    outputs = type(lanes[0].inputs["encoder_outputs"])(last_hidden_state=_stack_right(states))
    return {"encoder_outputs": outputs, "attention_mask": _stack_right(masks)}


def _stack_right(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate (rows, time, …) tensors along rows, padding time on the right with zeros."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * (part.dim() - 2) + (0, width - part.shape[1])) for part in parts])
