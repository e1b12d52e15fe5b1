"""Keys and values inside of a block: kept once a token has been filled for some passes, read anew at intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...forward import caches
from ...guidance.base import SELF
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import Caching, Kept, Reading, Slot, refuse_without_cache

READS = ("masked", "block")
LONG_AGO = 1 << 30


@dataclass(frozen=True)
class DelayedCache(Caching):
    """dKV-Cache-Decode (arXiv 2505.15781, section 3.3), or the dual cache of Fast-dLLM (arXiv 2505.22618, section 3.2).

    A pass reads some positions of a row, which see the kept keys and values of all others. Every ``refresh``-th pass of
    a block, and its first, reads the whole row; where attention is causal between blocks, the block alone, since what
    is in front of it is kept exactly (as with ``cache=True``) and what is behind it is not seen. With ``refresh=1``
    every pass gives what it gives without a cache. Otherwise this is an approximation, whose error
    :func:`textguide.diffusion.cache_agreement` measures.

    Rows of a batch are kept one by one, each with its own intervals, and so are the branches of a guidance, in every
    model that they run: prompts and branches may differ in length.

    Args:
        refresh: passes from one whole reading to the next, within a block.
        delay: passes in which a token is still read after it was filled. The keys of the pass in which it was a mask
            are never kept; the paper reads it once more.
        reads: what is read in between: ``masked``, every position that is masked or was filled within ``delay``
            passes (dKV-Cache); or ``block``, every position of the current block (Fast-dLLM), whatever ``delay`` says,
            which is exact for a model of blocks. Masks behind the block are read under ``masked`` alone.

    Raises:
        ValueError: a field has a value that cannot work.

    Experimental: dKV-Cache reads the batch as one, and its code takes no guidance; each row by itself, branches, and
    blocks that are causal are choices made here. Fast-dLLM v2 (arXiv 2509.26328) applies the dual cache to parts of a
    block that are filled one after the other, which a model of blocks takes as smaller blocks.
    """

    refresh: int = 8
    delay: int = 1
    reads: str = "masked"

    name = "delayed"

    def __post_init__(self) -> None:
        for name in ("refresh", "delay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of 1 or more, in passes")
        if self.reads not in READS:
            raise ValueError(f"reads={self.reads!r} is unknown; use one of {', '.join(READS)}")

    def start(
        self, denoisers: Mapping[str, Denoiser], canvas: Canvas, branches: Sequence[tuple[str, Canvas]]
    ) -> dict[str, Kept]:
        laid = [(SELF, canvas), *branches]
        return {
            name: DelayedKeys(self, denoisers[name], {n: one for n, (whose, one) in enumerate(laid) if whose == name})
            for name in dict(laid)
        }


@dataclass
class _Rows:
    """What is known of the rows that were read last, S in number.

    Attributes:
        ids: the tokens that were seen last, (S, L).
        age: for how many passes they have been there, (S, L).
        block: which block was filled, (S,); −1 where the row was never read.
        first, stop: for a model of blocks, where those begin and end in which what is filled now stands, (S,) each;
            a branch with another prompt may have them in two.
        turn: how many passes of that block there were before the last one, (S,).
    """

    slots: list[Slot]
    past: Any
    ids: Tensor
    age: Tensor
    block: Tensor
    first: Tensor
    stop: Tensor
    turn: Tensor


class DelayedKeys:
    """What :class:`DelayedCache` keeps in one run of one denoiser.

    Args:
        laid: the canvases of the branches that it reads, by their numbers.

    Raises:
        ValueError: the model cannot read positions again behind kept ones.
    """

    def __init__(self, settings: DelayedCache, model: Denoiser, laid: Mapping[int, Canvas]) -> None:
        refuse_without_cache(model, settings.name)
        if not model.can_place:
            raise ValueError(
                f"cache={settings.name} reads positions again where they stand, and the forward of "
                f"{type(model.model).__name__} takes no position_ids; use cache=True, or leave cache off"
            )
        self.settings, self.model = settings, model
        self._length = max(one.ids.shape[1] for one in laid.values())
        self._targets = {number: self._padded(one.target, False) for number, one in laid.items()}
        self._rows: _Rows | None = None

    def read(self, reading: Reading) -> Tensor:
        width = reading.ids.shape[1]
        ids = self._padded(reading.ids, self.model.pad_id)
        attention, asked = self._padded(reading.attention, False), self._padded(reading.asked, False)
        reading = replace(reading, ids=ids, attention=attention, asked=asked)
        rows = self._rows = self._picked(reading)
        wanted = self._wanted(rows, reading)
        if bool((wanted == attention).all()):
            logits, rows.past = self.model(ids, attention, keep=True)
            return logits[:, :width]
        count = int(wanted.sum(-1).max())
        places = (~wanted).int().argsort(dim=-1, stable=True)[:, :count]
        real = wanted.gather(1, places)
        seen = torch.cat([attention & ~wanted, real], dim=1)
        found, rows.past = self.model(ids.gather(1, places), seen, past=rows.past, keep=True, places=places)
        caches.write_back(rows.past, places, real)
        logits = found.new_zeros(len(ids), self._length + 1, found.shape[-1])
        row, number = real.nonzero(as_tuple=True)
        logits[row, places[row, number] + int(self.model.shifted)] = found[row, number]
        if self.model.shifted:  # nothing stands in front of the first position, which speaks for itself
            logits[:, 0] = found[:, 0]
        return logits[:, :width]

    def _wanted(self, rows: _Rows, reading: Reading) -> Tensor:
        """The positions that this pass reads, bool (S, L); notes what it sees."""
        new = rows.block < 0
        rows.age = torch.where(reading.ids != rows.ids, 1, (rows.age + 1).clamp(max=LONG_AGO))
        rows.age[new] = LONG_AGO
        begins = reading.block != rows.block
        rows.turn = torch.where(begins, 0, rows.turn + 1)
        due = rows.turn % self.settings.refresh == 0
        in_masks = self.settings.reads == "masked"
        recent = rows.age <= (self.settings.delay if in_masks else rows.turn[:, None])
        wanted = reading.asked | recent
        if self.model.shifted:  # what is said of a position is read in front of it
            wanted |= reading.asked.roll(-1, dims=1)
        size, here = self.model.block_size, torch.arange(self._length, device=wanted.device)
        if size is None:
            if in_masks:
                targets = torch.stack([self._targets[branch][row] for branch, row in reading.slots])
                wanted |= targets & (reading.ids == self.model.mask_id)
            wanted |= due[:, None]
        else:
            first = torch.where(reading.asked, here, self._length).amin(-1) // size * size
            stop = (torch.where(reading.asked, here, 0).amax(-1) // size + 1) * size
            before = rows.first
            rows.first = torch.where(begins, first, torch.minimum(rows.first, first))
            rows.stop = torch.where(begins, stop, torch.maximum(rows.stop, stop))
            inside = (here >= rows.first[:, None]) & (here < rows.stop[:, None])
            wanted |= inside if not in_masks else inside & due[:, None]
            left = begins[:, None] & (here >= before[:, None]) & (here < rows.stop[:, None])  # filled to the end since
            wanted |= left | new[:, None]
        rows.ids, rows.block = reading.ids.clone(), reading.block.clone()
        return wanted & reading.attention

    def _picked(self, reading: Reading) -> _Rows:
        """What is known of these rows; of one that was not read last, nothing."""
        old, slots = self._rows, reading.slots
        if old is None:
            number = torch.full((len(slots),), -1, device=reading.ids.device)
            return _Rows(slots, None, reading.ids, torch.zeros_like(reading.ids), *[number] * 4)
        if old.slots == slots:
            return old
        known = {slot: n for n, slot in enumerate(old.slots)}
        index = torch.tensor([known.get(slot, 0) for slot in slots], device=reading.ids.device)
        there = torch.tensor([slot in known for slot in slots], device=reading.ids.device)
        caches.select_rows(old.past, index)
        block = old.block[index].masked_fill(~there, -1)
        kept = (one[index] for one in (old.first, old.stop, old.turn))
        return _Rows(slots, old.past, old.ids[index], old.age[index], block, *kept)

    def _padded(self, rows: Tensor, value: Any) -> Tensor:
        return torch.nn.functional.pad(rows, (0, self._length - rows.shape[1]), value=value)
