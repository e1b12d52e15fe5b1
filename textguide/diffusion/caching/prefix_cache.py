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
        laid = [(SELF, canvas), *branches]
        for name in dict(laid):
            refuse_without_cache(denoisers[name], "True")
            if denoisers[name].suffix_ids:
                raise ValueError("cache=True does not work behind a closing frame such as [SEP]; leave cache off")
        return {
            name: PrefixKeys(denoisers[name], canvas, {n: one for n, (whose, one) in enumerate(laid) if whose == name})
            for name in dict(laid)
        }


State = tuple[int, frozenset[int]]
"""Where the block begins that a row is filling, and the branches that are read of it."""


@dataclass
class _Group:
    """Rows whose keys and values in front of their block are kept."""

    slots: list[Slot]
    state: State
    past: Any = None


class PrefixKeys:
    """What :class:`PrefixCache` keeps in one run of one denoiser.

    Args:
        canvas: that of the conditional branch, which has the blocks.
        laid: the canvases of the branches that it reads, by their numbers.
    """

    def __init__(self, model: Denoiser, canvas: Canvas, laid: Mapping[int, Canvas]) -> None:
        self.model = model
        blocks = [block[target].tolist() for block, target in zip(canvas.block, canvas.target, strict=True)]
        # Where each block begins: the last of a block's positions in reverse order stays in the dictionary.
        self._starts = {
            (branch, row): dict(zip(blocks[row][::-1], target.nonzero()[:, 0].flip(0).tolist(), strict=True))
            for branch, one in laid.items() for row, target in enumerate(one.target)
        }  # fmt: skip
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
        starts: list[int] = []
        branches: dict[int, frozenset[int]] = {}
        for (branch, row), block in zip(reading.slots, reading.block.tolist(), strict=True):
            start = self._starts[branch, row][block]
            # A prompt may end inside of a block, whose beginning then sees what is filled behind it.
            start -= start % (self.model.block_size or 1)
            # What is said of a position is read in front of it where logits are shifted.
            starts.append(max(0, start - int(self.model.shifted)))
            branches[row] = branches.get(row, frozenset()) | {branch}
        if self.model.block_size is not None:
            # Kept values are exact wherever they were read, so that one pass does for all rows. Elsewhere a row is read
            # anew when its own block begins or its branches change, so that it is what it would be alone.
            return dict.fromkeys(reading.slots, (min(starts), frozenset()))
        return {slot: (start, branches[slot[1]]) for slot, start in zip(reading.slots, starts, strict=True)}


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
