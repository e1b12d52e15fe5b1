"""Keys and values of finished blocks, kept while the block behind them is filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...forward import caches
from ...guidance.base import SELF
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import Caching, Kept, Reading, Slot, refuse_without_cache


@dataclass(frozen=True)
class PrefixCache(Caching):
    """``cache=True``: what is in front of the current block.

    When a block begins, one pass reads the whole rows and keeps the keys and values in front of the block; its further
    steps read from the block on. Where attention is causal between blocks this is exact; where it is bidirectional the
    kept values are those of a canvas whose current block was still masked, which is an approximation: the same for a
    row in a batch as for the row alone, so that rows which are at different blocks are read in passes of their own.
    """

    name = "prefix"

    def __str__(self) -> str:
        return "True"

    def start(
        self, denoisers: Mapping[str, Denoiser], canvas: Canvas, branches: Sequence[tuple[str, Canvas]]
    ) -> dict[str, Kept]:
        model = denoisers[SELF]
        refuse_without_cache(model, "True")
        for name, laid in branches:
            if name != SELF:
                raise ValueError(
                    f"cache=True keeps the keys of one model, and a branch runs {name!r}; use cache='delayed', or "
                    "leave cache off"
                )
            if not torch.equal(laid.target, canvas.target):
                raise ValueError(
                    "cache=True needs all branches at the same positions; give every branch as many tokens as the "
                    "prompt has, such as by leaving negative_prompt out, use cache='delayed', or leave cache off"
                )
        starts = {int(row.nonzero()[0, 0]) for row in canvas.target}
        if len(starts) > 1:
            raise ValueError(
                "cache=True needs prompts of one length in a batch, so that the blocks line up; group them by length, "
                "or use cache='delayed'"
            )
        if model.suffix_ids:
            raise ValueError("cache=True does not work behind a closing frame such as [SEP]; leave cache off")
        return {SELF: PrefixKeys(model, canvas)}


State = tuple[int, frozenset[int]]
"""Where the block begins that a row is filling, and the branches that are read of it."""


@dataclass
class _Group:
    """Rows whose keys and values in front of their block are kept."""

    slots: list[Slot]
    state: State
    past: Any = None


class PrefixKeys:
    """What :class:`PrefixCache` keeps in one run."""

    def __init__(self, model: Denoiser, canvas: Canvas) -> None:
        self.model = model
        self._canvas = canvas
        self._groups: list[_Group] = []

    def read(self, reading: Reading) -> Tensor:
        states = self._states(reading)
        groups = [group for group in map(partial(_narrowed, states=states), self._groups) if group.slots]
        if self.model.block_size is not None and sum(len(group.slots) for group in groups) < len(states):
            groups = []  # one pass over whole rows for all, which leaves the kept values as they are
        known = {slot for group in groups for slot in group.slots}
        every = list(dict.fromkeys(states.values()))
        for state in every:
            new = [slot for slot in states if states[slot] == state and slot not in known]
            groups += [_Group(new, state)] if new else []
        place = {slot: number for number, slot in enumerate(reading.slots)}
        logits: Tensor | None = None
        for group in groups:
            index = torch.tensor([place[slot] for slot in group.slots], device=reading.ids.device)
            ids, attention = reading.ids[index], reading.attention[index]
            start = group.state[0]
            begin = 0 if group.past is None else start
            found, group.past = self.model(ids[:, begin:], attention, past=group.past, keep=True)
            _shorten(group.past, ids.shape[1] - start)
            if logits is None:
                logits = found.new_zeros(*reading.ids.shape, found.shape[-1])
            logits[index, begin:] = found
        self._groups = [_joined([one for one in groups if one.state == state]) for state in every]
        assert logits is not None
        return logits

    def _states(self, reading: Reading) -> dict[Slot, State]:
        rows = torch.tensor([row for _, row in reading.slots], device=reading.ids.device)
        start = (self._canvas.block[rows] == reading.block[:, None]).int().argmax(-1)
        # A prompt may end inside of a block, whose beginning then sees what is filled behind it.
        start -= start % (self.model.block_size or 1)
        if self.model.shifted:  # what is said of a position is read in front of it
            start = (start - 1).clamp(min=0)
        branches: dict[int, frozenset[int]] = {}
        if self.model.block_size is not None:
            # Kept values are exact wherever they were read, so that one pass does for all rows. Elsewhere a row is read
            # anew when its own block begins or its branches change, so that it is what it would be alone.
            start = start.amin().expand(len(rows))
        else:
            for branch, row in reading.slots:
                branches[row] = branches.get(row, frozenset()) | {branch}
        firsts = zip(reading.slots, start.tolist(), strict=True)
        return {slot: (first, branches.get(slot[1], frozenset())) for slot, first in firsts}


def _narrowed(group: _Group, states: Mapping[Slot, State]) -> _Group:
    """The group without the rows that are not read now, or are in another state."""
    left = [number for number, slot in enumerate(group.slots) if states.get(slot) == group.state]
    if 0 < len(left) < len(group.slots):
        caches.select_rows(group.past, torch.tensor(left))
    return _Group([group.slots[number] for number in left], group.state, group.past)


def _joined(groups: Sequence[_Group]) -> _Group:
    """One group of rows in one state."""
    if len(groups) == 1:
        return groups[0]
    slots = [slot for group in groups for slot in group.slots]
    return _Group(slots, groups[0].state, caches.merge([group.past for group in groups]))


def _shorten(past: Any, tokens: int) -> None:
    """Take the last ``tokens`` off a cache; transformers reads a negative number so in every version."""
    if tokens:
        past.crop(-tokens)
