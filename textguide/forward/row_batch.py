"""Rows that advance together: one model and one forward pass per step, with positions and a mask for each row.

Prompts are read at their own lengths if that is cheaper or necessary, and their caches are merged afterwards: a
one-token unconditional prompt costs next to nothing compared with a long conditional one. If padding would change a
model's answer (see :mod:`.probes`), only rows of one length share a cache, and each length has its own pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import caches
from .model_adapter import ModelAdapter
from .own_lengths import OwnLengthsCache

LEAST_PADDING = 512
"""The number of padded positions in a cache from which on rows keep their own lengths; one call of attention for each
length costs more than a little padding does."""


class Rows(ABC):
    """Rows of one model that advance together.

    An ``index`` is a LongTensor of row numbers, in any order; it may contain a row several times.
    """

    @abstractmethod
    def batches(self) -> Iterator[RowBatch]:
        """The batches that hold the rows, one per cache."""

    @abstractmethod
    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read new tokens ``ids`` (R, k), k ≥ 1, and return the logits of the last ``keep``, (R, keep, V)."""

    @abstractmethod
    def select(self, index: Tensor) -> None:
        """Keep the rows ``index``, in place."""

    @abstractmethod
    def split(self, index: Tensor) -> Rows:
        """Copy the rows ``index`` into new caches; these rows do not change."""

    @property
    def rows(self) -> int:
        """Number of rows R in all caches."""
        return sum(batch.rows for batch in self.batches())

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return next(self.batches()).next_position.device

    def crop(self, tokens: int) -> bool:
        """Remove the last ``tokens`` tokens of every row, in place.

        Returns:
            False if a cache cannot remove them; nothing changed then.
        """
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
        model: the adapter of their model.
        cache: the keys, values and states of all rows.
        length: number of positions in the cache, padding included.
        mask: attention mask, (R, length); None as long as no row has padding.
        next_position: position of the next token of each row, (R, 1).
        inputs: what an encoder-decoder needs at every step, with rows in the first dimension.
        call: called instead of the model after the prefill.
        fast: use this machine's faster matrix products, which do not reproduce the bits of plain decoding.
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
        """Number of tokens of the longest row; for an encoder-decoder that of its source."""
        if "encoder_outputs" in self.inputs:
            return int(self.inputs["encoder_outputs"].last_hidden_state.shape[1])
        return self.length if self.mask is None else int(self.mask.sum(-1).max())

    def batches(self) -> Iterator[RowBatch]:
        """Yield this batch."""
        yield self

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """See :meth:`Rows.forward`. If the model cannot read a chunk after a cache, tokens are read one by one."""
        new = ids.shape[1]
        if new > 1 and not self.model.reads_chunk_up_to(self.length + new):
            steps = [self.forward(ids[:, i : i + 1]) for i in range(new)]
            return torch.cat(steps[-keep:], dim=1)
        positions = self.next_position + torch.arange(new, device=self.device)
        self.advance(new)
        return self.model.read(
            ids,
            self.cache,
            mask=self.mask,
            positions=positions,
            keep=keep,
            inputs=self.inputs,
            fast=self.fast,
            call=self.call,
        )

    def select(self, index: Tensor) -> None:
        """See :meth:`Rows.select`. Columns that are padding in all rows are not removed."""
        if index.tolist() != list(range(self.rows)):
            caches.select_rows(self.cache, index)
            self._select_vectors(index)

    def split(self, index: Tensor) -> RowBatch:
        """See :meth:`Rows.split`."""
        rows = replace(self, cache=caches.copy_rows(self.cache, index), inputs=dict(self.inputs))
        rows._select_vectors(index)
        return rows

    def advance(self, tokens: int) -> None:
        """Add ``tokens`` to the length and the position of every row; a negative number removes tokens."""
        self.length += tokens
        self.next_position = self.next_position + tokens
        self.mask = None if self.mask is None else F.pad(self.mask, (0, tokens), value=1)

    def make_static(self, new_tokens: int) -> None:
        """Copy the cache into one of fixed shapes with room for ``new_tokens`` more positions.

        Raises:
            ValueError: the model has no such cache, or computes something else with it.
        """
        if isinstance(self.cache, OwnLengthsCache):
            caches.check_static(self.cache, self.model.base)
            self.cache, self.mask = self.cache.padded()
        self.cache = caches.to_static(self.cache, self.model.base, self.length + new_tokens)
        if not self.model.reads_static:
            raise ValueError(
                f"cache_implementation='static': {self.model.name} computes other logits with a cache of fixed shape, "
                "in transformers too; leave cache_implementation out"
            )

    def _select_vectors(self, index: Tensor) -> None:
        self.next_position = self.next_position[index]
        if self.mask is not None:
            self.mask = self.mask[index]
        self.inputs = {name: _select(value, index) for name, value in self.inputs.items()}


@dataclass
class BatchPerLength(Rows):
    """Rows of a model whose answer changes with padding: only rows of one length share a batch.

    Args:
        parts: the batches, one per length.
        row_numbers: for each batch, the numbers of its rows among all rows.
    """

    parts: list[RowBatch]
    row_numbers: list[Tensor]

    def batches(self) -> Iterator[RowBatch]:
        """Yield the batch of each length."""
        yield from self.parts

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """See :meth:`Rows.forward`. There is one pass per length."""
        row_numbers = [rows.to(ids.device) for rows in self.row_numbers]
        logits = [part.forward(ids[rows], keep) for part, rows in zip(self.parts, row_numbers, strict=True)]
        order = torch.cat(row_numbers).argsort()
        return torch.cat(logits)[order.to(logits[0].device)]

    def select(self, index: Tensor) -> None:
        """See :meth:`Rows.select`."""
        selection = self._selection(index)
        for part, rows, _ in selection:
            part.select(rows)
        self.parts = [part for part, _, _ in selection]
        self.row_numbers = [numbers for _, _, numbers in selection]

    def split(self, index: Tensor) -> BatchPerLength:
        """See :meth:`Rows.split`."""
        selection = self._selection(index)
        return BatchPerLength(
            [part.split(rows) for part, rows, _ in selection],
            [numbers for _, _, numbers in selection],
        )

    def _selection(self, index: Tensor) -> list[tuple[RowBatch, Tensor, Tensor]]:
        """For each batch with rows in ``index``: the batch, which of its rows they are, and their new numbers."""
        selection = []
        for part, numbers in zip(self.parts, self.row_numbers, strict=True):
            new, rows = (index[:, None] == numbers).nonzero(as_tuple=True)
            if len(rows):
                selection.append((part, rows, new))
        return selection


@dataclass
class SharedRows(Rows):
    """Readers of rows, several of which may share one row as long as they read the same tokens.

    Particles of one prompt, for example, share the row of the prompt. Selecting readers only changes ``row_of``; the
    cache is updated at the next pass, which runs one row for all readers that have read the same tokens.

    Args:
        inner: the rows.
        row_of: the row of each reader, (N,). ``forward``, ``select`` and ``split`` are about readers.
    """

    inner: Rows
    row_of: Tensor

    def batches(self) -> Iterator[RowBatch]:
        """Yield the batches of the rows."""
        yield from self.inner.batches()

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read ``ids`` (N, k) and return logits (N, keep, V)."""
        rows = torch.cat([self.row_of.to(ids.device)[:, None], ids], dim=1)
        distinct, row_of = torch.unique(rows, dim=0, return_inverse=True)
        self.inner.select(distinct[:, 0].to(self.row_of.device))
        self.row_of = row_of.to(self.row_of.device)
        return self.inner.forward(distinct[:, 1:], keep)[row_of]

    def select(self, index: Tensor) -> None:
        """Keep the readers ``index``, in place; rows without readers are removed at the next pass."""
        self.row_of = self.row_of[index]

    def split(self, index: Tensor) -> SharedRows:
        """See :meth:`Rows.split`."""
        rows, row_of = torch.unique(self.row_of[index], return_inverse=True)
        return SharedRows(self.inner.split(rows), row_of)


# -- merging -------------------------------------------------------------------------------------------------------


def merge(several: Sequence[Rows]) -> Rows:
    """Merge sets of rows into one, in order. They must not be used afterwards."""
    if len(several) == 1:
        return several[0]
    if any(isinstance(rows, SharedRows) for rows in several):
        return _merge_shared(several)
    parts = [part for rows in several for part in rows.batches()]
    lengths = [part.read_length for part in parts]
    if isinstance(several[0], BatchPerLength) or parts[0].model.needs_separate_passes(lengths):
        return _merge_per_length(parts, _row_numbers(several), lengths)
    return _merge_batches(parts)


def _merge_shared(several: Sequence[Rows]) -> SharedRows:
    device = several[0].device
    inner = []
    row_of = []
    start = 0
    for rows in several:
        if isinstance(rows, SharedRows):
            inner.append(rows.inner)
            row_of.append(rows.row_of.to(device) + start)
        else:
            inner.append(rows)
            row_of.append(torch.arange(rows.rows).to(device) + start)
        start += rows.rows
    return SharedRows(merge(inner), torch.cat(row_of))


def _row_numbers(several: Sequence[Rows]) -> list[Tensor]:
    """For every batch of ``several``, the numbers of its rows among all rows."""
    device = several[0].device
    numbers = []
    start = 0
    for rows in several:
        own = rows.row_numbers if isinstance(rows, BatchPerLength) else [torch.arange(rows.rows)]
        numbers += [one.to(device) + start for one in own]
        start += rows.rows
    return numbers


def _merge_per_length(
    parts: Sequence[RowBatch], row_numbers: Sequence[Tensor], lengths: Sequence[int]
) -> BatchPerLength:
    merged = BatchPerLength([], [])
    for length in sorted(set(lengths)):
        group = [number for number, own in enumerate(lengths) if own == length]
        merged.parts.append(_merge_batches([parts[number] for number in group]))
        merged.row_numbers.append(torch.cat([row_numbers[number] for number in group]))
    return merged


def _merge_batches(batches: Sequence[RowBatch]) -> RowBatch:
    first = batches[0]
    if len(batches) == 1:
        return first
    length = max(batch.length for batch in batches)
    mask: Tensor | None = None
    cache: Any
    if _keep_own_lengths(batches, length):
        cache = OwnLengthsCache(
            [batch.cache for batch in batches],
            [batch.mask for batch in batches],
            [batch.length for batch in batches],
        )
    else:
        cache = caches.merge([batch.cache for batch in batches])
        # A state has no positions that could be masked.
        stateful = caches.has_no_time_axis(cache)
        if not stateful and any(batch.mask is not None or batch.length != length for batch in batches):
            masks = [_as_mask(batch.mask, (batch.rows, batch.length), batch.device) for batch in batches]
            mask = torch.cat([F.pad(own, (length - own.shape[1], 0)) for own in masks])
    return replace(
        first,
        cache=cache,
        length=length,
        mask=mask,
        next_position=torch.cat([batch.next_position for batch in batches]),
        inputs=_merge_inputs(batches),
    )


def _keep_own_lengths(batches: Sequence[RowBatch], length: int) -> bool:
    """Whether the rows keep their own lengths instead of being padded to ``length``."""
    if any(isinstance(batch.cache, OwnLengthsCache) for batch in batches):
        return True
    padding = 0
    for batch in batches:
        tokens = batch.rows * batch.length
        if batch.mask is not None:
            if bool((batch.mask[:, 1:] < batch.mask[:, :-1]).any()):
                return False  # padding between the tokens of a row
            tokens = int(batch.mask.sum())
        padding += batch.rows * length - tokens
    return padding >= LEAST_PADDING and batches[0].model.keeps_own_lengths


def _merge_inputs(batches: Sequence[RowBatch]) -> dict[str, Any]:
    several = {name: [batch.inputs[name] for batch in batches] for name in batches[0].inputs}
    encoded = several.get("encoder_outputs")
    if encoded is None:
        return {name: _stack_right(values) for name, values in several.items()}
    states = [outputs.last_hidden_state for outputs in encoded]
    masks = []
    for mask, state in zip(several["attention_mask"], states, strict=True):
        masks.append(_as_mask(mask, state.shape[:2], state.device))
    outputs = type(encoded[0])(last_hidden_state=_stack_right(states))
    return {"encoder_outputs": outputs, "attention_mask": _stack_right(masks)}


def _select(value: Any, index: Tensor) -> Any:
    """The rows ``index`` of a tensor, or of every tensor in a model output."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value[index]
    return type(value)(**{name: part[index] for name, part in value.items() if isinstance(part, Tensor)})


def _as_mask(mask: Tensor | None, size: Sequence[int], device: torch.device) -> Tensor:
    return torch.ones(*size, dtype=torch.long, device=device) if mask is None else mask.long()


def _stack_right(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate (rows, time, …) tensors along rows, padding time on the right with zeros."""
    width = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        other_dimensions = (0, 0) * (part.dim() - 2)
        padded.append(F.pad(part, (*other_dimensions, 0, width - part.shape[1])))
    return torch.cat(padded)
