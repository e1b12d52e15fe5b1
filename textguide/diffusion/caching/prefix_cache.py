"""Keys and values of finished blocks, kept while the next block is filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...forward import caches
from ...guidance.base import SELF
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import CachedReader, Caching, Reading, Slot, canvases_by_model, refuse_without_cache


@dataclass(frozen=True)
class PrefixCache(Caching):
    """``cache=True``: keep everything before the current block.

    When a block begins, one pass reads the whole rows and keeps the keys and values before the block; the other steps
    of the block read from its first position on. This is exact if attention is causal between blocks. If attention is
    bidirectional it is an approximation, since the kept values are those of a canvas whose current block was still
    masked. A row gives the same result in a batch as alone, so rows that are at different blocks are read in separate
    passes.
    """

    name = "prefix"

    def __str__(self) -> str:
        return "True"

    def start(
        self, denoisers: Mapping[str, Denoiser], canvas: Canvas, branches: Sequence[tuple[str, Canvas]]
    ) -> dict[str, CachedReader]:
        canvases = canvases_by_model((SELF, canvas), branches)
        for name in canvases:
            refuse_without_cache(denoisers[name], "True")
            if denoisers[name].suffix_ids:
                raise ValueError("cache=True does not work with a closing token such as [SEP]; leave cache off")
        return {name: PrefixKeys(denoisers[name], canvas, own) for name, own in canvases.items()}


State = tuple[int, frozenset[int]]
"""The first position of the block that a row is filling, and the branches of the row that are read."""


@dataclass
class _Group:
    """Rows in one state, with the keys and values before their block; ``past`` is None before their first pass."""

    slots: list[Slot]
    state: State
    past: Any = None


class PrefixKeys:
    """What :class:`PrefixCache` keeps in one run of one denoiser.

    Args:
        canvas: that of the conditional branch, which knows the blocks.
        canvases: those of the branches that this denoiser reads, by number.
    """

    def __init__(self, model: Denoiser, canvas: Canvas, canvases: Mapping[int, Canvas]) -> None:
        self.model = model
        self._starts = _block_starts(canvas, canvases)
        self._groups: list[_Group] = []

    def read(self, reading: Reading) -> Tensor:
        states = self._states(reading)
        groups = self._known_groups(states)
        index_of = {slot: number for number, slot in enumerate(reading.slots)}
        logits: Tensor | None = None
        for group in groups:
            index = torch.tensor([index_of[slot] for slot in group.slots], device=reading.ids.device)
            ids = reading.ids[index]
            attention = reading.attention[index]
            start = group.state[0]
            begin = 0 if group.past is None else start
            found, group.past = self.model(ids[:, begin:], attention, past=group.past, keep=True)
            _drop_last(group.past, ids.shape[1] - start)
            if logits is None:
                logits = found.new_zeros(*reading.ids.shape, found.shape[-1])
            logits[index, begin:] = found
        self._groups = _merge_by_state(groups, states)
        assert logits is not None
        return logits

    def _known_groups(self, states: Mapping[Slot, State]) -> list[_Group]:
        """The rows of this pass in groups: those whose keys are still valid, and a new group for each state of the
        others."""
        groups = []
        for group in self._groups:
            narrowed = _narrow(group, states)
            if narrowed.slots:
                groups.append(narrowed)
        if self.model.block_size is not None and sum(len(group.slots) for group in groups) < len(states):
            # One pass over all whole rows costs less than two, and leaves exact values as they are.
            groups = []
        known = {slot for group in groups for slot in group.slots}
        for state in dict.fromkeys(states.values()):
            new = [slot for slot in states if states[slot] == state and slot not in known]
            if new:
                groups.append(_Group(new, state))
        return groups

    def _states(self, reading: Reading) -> dict[Slot, State]:
        starts: list[int] = []
        branches: dict[int, frozenset[int]] = {}
        for (branch, row), block in zip(reading.slots, reading.block.tolist(), strict=True):
            start = self._starts[branch, row][block]
            # A prompt may end inside of a block. The beginning of that block attends to what is filled after it.
            start -= start % (self.model.block_size or 1)
            # With shifted logits, the distribution of a position is read at the position before it.
            starts.append(max(0, start - int(self.model.shifted)))
            branches[row] = branches.get(row, frozenset()) | {branch}
        if self.model.block_size is not None:
            # Kept values are exact wherever they were read, so one pass is enough for all rows.
            return dict.fromkeys(reading.slots, (min(starts), frozenset()))
        # Otherwise a row is read again when its own block begins or its branches change, as if it were alone.
        return {slot: (start, branches[slot[1]]) for slot, start in zip(reading.slots, starts, strict=True)}


def _block_starts(canvas: Canvas, canvases: Mapping[int, Canvas]) -> dict[Slot, dict[int, int]]:
    """For each branch and row, the first position of each block."""
    blocks = [block[target].tolist() for block, target in zip(canvas.block, canvas.target, strict=True)]
    starts: dict[Slot, dict[int, int]] = {}
    for branch, own in canvases.items():
        for row, target in enumerate(own.target):
            first: dict[int, int] = {}
            for block, position in zip(blocks[row], target.nonzero()[:, 0].tolist(), strict=True):
                first.setdefault(block, position)
            starts[branch, row] = first
    return starts


def _narrow(group: _Group, states: Mapping[Slot, State]) -> _Group:
    """The group without the rows that are not read now, or that are in another state."""
    left = [number for number, slot in enumerate(group.slots) if states.get(slot) == group.state]
    if 0 < len(left) < len(group.slots):
        caches.select_rows(group.past, torch.tensor(left))
    return _Group([group.slots[number] for number in left], group.state, group.past)


def _merge_by_state(groups: Sequence[_Group], states: Mapping[Slot, State]) -> list[_Group]:
    """One group per state."""
    merged = []
    for state in dict.fromkeys(states.values()):
        same = [one for one in groups if one.state == state]
        if len(same) == 1:
            merged.append(same[0])
        else:
            slots = [slot for group in same for slot in group.slots]
            merged.append(_Group(slots, state, caches.merge([group.past for group in same])))
    return merged


def _drop_last(past: Any, tokens: int) -> None:
    """Remove the last ``tokens`` from a cache. Every version of transformers reads a negative number this way."""
    if tokens:
        past.crop(-tokens)
