"""Rows that advance together: one model, one forward pass a step, each row with positions and a mask of its own.

Prompts are read at their own lengths where that is cheaper or needed, and their caches merged afterwards: a one-token
unconditional prompt costs next to nothing beside a long conditional one. Where padding would change a model's answer
(:mod:`.model_adapter` finds out), rows of one length share a cache, and each length has a pass of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import caches
from .model_adapter import ModelAdapter


class Rows(ABC):
    """Rows of one model that advance together; indices are LongTensors over rows, which may repeat or change places."""

    @abstractmethod
    def batches(self) -> Iterator[RowBatch]:
        """The batches that hold the rows, one a cache."""

    @abstractmethod
    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read new tokens ``ids`` (R, k), k ≥ 1, and return the logits of the last ``keep``, (R, keep, V)."""

    @abstractmethod
    def select(self, index: Tensor) -> None:
        """Keep the rows ``index``, in place."""

    @abstractmethod
    def split(self, index: Tensor) -> Rows:
        """The rows ``index`` in caches of their own; these ones stay as they are."""

    @property
    def rows(self) -> int:
        """How many rows of a cache there are, R."""
        return sum(batch.rows for batch in self.batches())

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return next(self.batches()).next_position.device

    def crop(self, tokens: int) -> bool:
        """Forget the last ``tokens`` tokens of every row, in place; False (and nothing changed) where it cannot."""
        if not all(caches.can_crop(batch.cache) for batch in self.batches()):
            return tokens == 0
        for batch in self.batches():
            caches.crop(batch.cache, tokens)
            batch.advance(-tokens)
        return True


@dataclass
class RowBatch(Rows):
    """Rows in one cache.

    Args:
        model: how their model is called.
        cache: the keys, values and states of all rows.
        length: positions in the cache, padding included.
        mask: attention mask (R, length), or None while no row has padding.
        next_position: position of the next token of each row, (R, 1).
        inputs: what an encoder-decoder needs at every step, with rows in the first dimension.
        call: replaces the model's own call after the prefill.
        fast: the rows need not reproduce the bits of plain decoding, and use this machine's faster products.
    """

    model: ModelAdapter
    cache: Any
    length: int
    mask: Tensor | None
    next_position: Tensor
    inputs: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., Any] | None = None
    fast: bool = False

    @property
    def rows(self) -> int:
        """Number of rows R in the cache."""
        return self.next_position.shape[0]

    @property
    def read_length(self) -> int:
        """Tokens of the longest row; of its source, where an encoder reads it."""
        if "encoder_outputs" in self.inputs:
            return int(self.inputs["encoder_outputs"].last_hidden_state.shape[1])
        return self.length if self.mask is None else int(self.mask.sum(-1).max())

    def batches(self) -> Iterator[RowBatch]:
        """This one alone."""
        yield self

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """As of any rows; models that cannot continue a cache with a chunk get its tokens one by one."""
        new = ids.shape[1]
        if new > 1 and not self.model.reads_at_once(self.length + new):
            steps = [self.forward(ids[:, i : i + 1]) for i in range(new)]
            return torch.cat(steps[-keep:], dim=1)
        positions = self.next_position + torch.arange(new, device=self.device)
        self.advance(new)
        return self.model.read(
            ids, self.cache, mask=self.mask, positions=positions, keep=keep, inputs=self.inputs, fast=self.fast,
            call=self.call,
        )  # fmt: skip

    def select(self, index: Tensor) -> None:
        """As of any rows; columns that are padding in all of them stay."""
        if index.tolist() != list(range(self.rows)):
            caches.select_rows(self.cache, index)
            self._select_vectors(index)

    def split(self, index: Tensor) -> RowBatch:
        """As of any rows."""
        twin = replace(self, cache=caches.copy_rows(self.cache, index), inputs=dict(self.inputs))
        twin._select_vectors(index)
        return twin

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` more, or fewer, in every row."""
        self.length += tokens
        self.next_position = self.next_position + tokens
        self.mask = None if self.mask is None else F.pad(self.mask, (0, tokens), value=1)

    def make_static(self, new_tokens: int) -> None:
        """Move the cache into fixed shapes with room for ``new_tokens`` more positions."""
        self.cache = caches.to_static(self.cache, self.model.base, self.length + new_tokens)

    def _select_vectors(self, index: Tensor) -> None:
        self.next_position = self.next_position[index]
        if self.mask is not None:
            self.mask = self.mask[index]
        self.inputs = {name: _select(value, index) for name, value in self.inputs.items()}


@dataclass
class BatchPerLength(Rows):
    """Rows whose model no padding may reach: those of one length share a batch.

    Args:
        parts: a batch a length.
        places: for every batch, which of all rows its rows are.
    """

    parts: list[RowBatch]
    places: list[Tensor]

    def batches(self) -> Iterator[RowBatch]:
        """A batch for every length."""
        yield from self.parts

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """As of any rows, in one pass a length."""
        places = [rows.to(ids.device) for rows in self.places]
        logits = [part.forward(ids[rows], keep) for part, rows in zip(self.parts, places, strict=True)]
        return torch.cat(logits)[torch.cat(places).argsort().to(logits[0].device)]

    def select(self, index: Tensor) -> None:
        """As of any rows."""
        kept = self._kept(index)
        for part, rows, _ in kept:
            part.select(rows)
        self.parts, self.places = [part for part, _, _ in kept], [places for _, _, places in kept]

    def split(self, index: Tensor) -> BatchPerLength:
        """As of any rows."""
        kept = self._kept(index)
        return BatchPerLength([part.split(rows) for part, rows, _ in kept], [places for _, _, places in kept])

    def _kept(self, index: Tensor) -> list[tuple[RowBatch, Tensor, Tensor]]:
        """The batches that some of the rows ``index`` stand in, which of their rows these are, and their new places."""
        found = [(index[:, None] == places).nonzero(as_tuple=True) for places in self.places]
        return [(part, rows, new) for part, (new, rows) in zip(self.parts, found, strict=True) if len(rows)]


@dataclass
class SharedRows(Rows):
    """Readers that share the rows in which the same was read, as particles of one prompt do.

    What a reader reads, where it goes on from another one and whether it stays changes ``row_of`` alone; the cache
    follows with the next pass, which runs one row for all readers that have read the same.

    Args:
        inner: the rows.
        row_of: the row of each reader, (N,). ``forward``, ``select`` and ``split`` speak of readers.
    """

    inner: Rows
    row_of: Tensor

    def batches(self) -> Iterator[RowBatch]:
        """Those of the rows."""
        yield from self.inner.batches()

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read ``ids`` (N, k) and return logits (N, keep, V)."""
        rows = torch.cat([self.row_of.to(ids.device)[:, None], ids], dim=1)
        distinct, row_of = torch.unique(rows, dim=0, return_inverse=True)
        self.inner.select(distinct[:, 0].to(self.row_of.device))
        self.row_of = row_of.to(self.row_of.device)
        return self.inner.forward(distinct[:, 1:], keep)[row_of]

    def select(self, index: Tensor) -> None:
        """Keep the readers ``index``, in place; rows without readers go with the next pass."""
        self.row_of = self.row_of[index]

    def split(self, index: Tensor) -> SharedRows:
        """As of any rows."""
        rows, row_of = torch.unique(self.row_of[index], return_inverse=True)
        return SharedRows(self.inner.split(rows), row_of)


def merge(several: Sequence[Rows]) -> Rows:
    """One set of rows with the rows of all, in order. The given ones must not be used afterwards."""
    if len(several) == 1:
        return several[0]
    device, starts = several[0].device, accumulate((rows.rows for rows in several), initial=0)
    if any(isinstance(rows, SharedRows) for rows in several):
        row_of = [rows.row_of if isinstance(rows, SharedRows) else torch.arange(rows.rows) for rows in several]
        inner = [rows.inner if isinstance(rows, SharedRows) else rows for rows in several]
        together = torch.cat([own.to(device) + start for own, start in zip(row_of, starts, strict=False)])
        return SharedRows(merge(inner), together)
    parts = [part for rows in several for part in rows.batches()]
    lengths = [part.read_length for part in parts]
    if not (isinstance(several[0], BatchPerLength) or parts[0].model.reads_apart(lengths)):
        return _merge(parts)
    places = []
    for rows, start in zip(several, starts, strict=False):
        own = rows.places if isinstance(rows, BatchPerLength) else [torch.arange(rows.rows)]
        places += [place.to(device) + start for place in own]
    groups = [[n for n, length in enumerate(lengths) if length == shared] for shared in sorted(set(lengths))]
    return BatchPerLength(
        [_merge([parts[n] for n in group]) for group in groups],
        [torch.cat([places[n] for n in group]) for group in groups],
    )


def _merge(batches: Sequence[RowBatch]) -> RowBatch:
    if len(batches) == 1:
        return batches[0]
    length = max(batch.length for batch in batches)
    mask: Tensor | None = None
    stateful = caches.has_no_time_axis(batches[0].cache)
    if not stateful and any(batch.mask is not None or batch.length != length for batch in batches):
        masks = [_mask(batch.mask, (batch.rows, batch.length), batch.device) for batch in batches]
        mask = torch.cat([F.pad(own, (length - own.shape[1], 0)) for own in masks])
    return replace(
        batches[0],
        cache=caches.merge([batch.cache for batch in batches]),
        length=length,
        mask=mask,
        next_position=torch.cat([batch.next_position for batch in batches]),
        inputs=_merge_inputs(batches),
    )


def _select(value: Any, index: Tensor) -> Any:
    if value is None or isinstance(value, Tensor):
        return None if value is None else value[index]
    return type(value)(**{k: v[index] for k, v in value.items() if isinstance(v, Tensor)})


def _merge_inputs(batches: Sequence[RowBatch]) -> dict[str, Any]:
    several = {name: [batch.inputs[name] for batch in batches] for name in batches[0].inputs}
    encoded = several.get("encoder_outputs")
    if encoded is None:
        return {name: _stack_right(values) for name, values in several.items()}
    states = [outputs.last_hidden_state for outputs in encoded]
    sources = zip(several["attention_mask"], states, strict=True)
    masks = [_mask(mask, state.shape[:2], state.device) for mask, state in sources]
    outputs = type(encoded[0])(last_hidden_state=_stack_right(states))
    return {"encoder_outputs": outputs, "attention_mask": _stack_right(masks)}


def _mask(mask: Tensor | None, size: Sequence[int], device: torch.device) -> Tensor:
    return torch.ones(*size, dtype=torch.long, device=device) if mask is None else mask.long()


def _stack_right(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate (rows, time, …) tensors along rows, padding time on the right with zeros."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * (part.dim() - 2) + (0, width - part.shape[1])) for part in parts])
