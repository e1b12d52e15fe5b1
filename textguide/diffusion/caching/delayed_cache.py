"""Keys and values inside of a block: kept some passes after a token was filled, and read again at intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...forward import caches
from ...guidance.base import SELF
from ...support.checks import one_of, whole_number
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import CachedReader, Caching, Reading, Slot, canvases_by_model, refuse_without_cache

READS = ("masked", "block")
LONG_AGO = 1 << 30


@dataclass(frozen=True)
class DelayedCache(Caching):
    """dKV-Cache-Decode (arXiv 2505.15781, section 3.3), or the dual cache of Fast-dLLM (arXiv 2505.22618, section 3.2).

    A pass reads some positions of a row, which attend to the kept keys and values of all others. The first pass of a
    block, and every ``refresh``-th one after it, reads the whole row. If attention is causal between blocks, it reads
    the block only: what comes before the block is kept exactly (as with ``cache=True``), and what comes after it is not
    attended to. With ``refresh=1`` every pass gives the result of a run without a cache. Otherwise this is an
    approximation, whose error :func:`textguide.diffusion.cache_agreement` measures.

    The rows of a batch are kept separately, each with its own intervals, and so are the branches of a guidance in every
    model that they run: prompts and branches may differ in length.

    Args:
        refresh: passes from one reading of the whole row to the next, within a block.
        delay: passes in which a token is still read after it was filled. The keys from the pass in which it was a mask
            are never kept; the paper reads it once more.
        reads: what is read in between: ``masked``, every position that is masked or was filled within the last
            ``delay`` passes (dKV-Cache); or ``block``, every position of the current block (Fast-dLLM), whatever
            ``delay`` is, which is exact for a model of blocks. Masks after the block are only read with ``masked``.

    Raises:
        ValueError: a field has a value that cannot work.

    Experimental: dKV-Cache treats the batch as one, and its code does not support guidance; separate rows, branches,
    and blocks that are causal are choices made here. Fast-dLLM v2 (arXiv 2509.26328) applies the dual cache to parts of
    a block that are filled one after the other; here these are smaller blocks.
    """

    refresh: int = 8
    delay: int = 1
    reads: str = "masked"

    name = "delayed"

    def __post_init__(self) -> None:
        whole_number("refresh", self.refresh, 1, "it counts passes")
        whole_number("delay", self.delay, 1, "it counts passes")
        one_of("reads", self.reads, READS)

    def start(
        self, denoisers: Mapping[str, Denoiser], canvas: Canvas, branches: Sequence[tuple[str, Canvas]]
    ) -> dict[str, CachedReader]:
        canvases = canvases_by_model((SELF, canvas), branches)
        return {name: DelayedKeys(self, denoisers[name], own) for name, own in canvases.items()}


@dataclass
class _Rows:
    """What is known of the rows of the last pass, S of them.

    Attributes:
        slots: branch and row of each.
        past: their keys and values.
        ids: the tokens at the last pass, (S, L).
        age: for how many passes each token has been there, (S, L).
        block: the block that was filled, (S,); −1 if the row was never read.
        first, stop: of a model of blocks, the range of the blocks that contain what is being filled, (S,) each; the
            branch of another prompt may have it in two blocks.
        turn: how many passes the block had before the last one, (S,).
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
        canvases: those of the branches that this denoiser reads, by number.

    Raises:
        ValueError: the model cannot read single positions with the kept keys of the others.
    """

    def __init__(self, settings: DelayedCache, model: Denoiser, canvases: Mapping[int, Canvas]) -> None:
        refuse_without_cache(model, settings.name)
        if not model.can_place:
            raise ValueError(
                f"cache={settings.name} reads single positions again, and the forward of "
                f"{type(model.model).__name__} takes no position_ids; use cache=True, or leave cache off"
            )
        self.settings = settings
        self.model = model
        self._length = max(one.ids.shape[1] for one in canvases.values())
        self._targets = {number: self._pad(one.target, False) for number, one in canvases.items()}
        self._rows: _Rows | None = None

    def read(self, reading: Reading) -> Tensor:
        width = reading.ids.shape[1]
        # All passes have one width, since the cache holds all positions in order.
        ids = self._pad(reading.ids, self.model.pad_id)
        attention = self._pad(reading.attention, False)
        reading = replace(reading, ids=ids, attention=attention, positions=self._pad(reading.positions, False))
        rows = self._select_rows(reading)
        self._rows = rows
        read = self._positions_to_read(rows, reading)
        if bool((read == attention).all()):
            logits, rows.past = self.model(ids, attention, keep=True)
            return logits[:, :width]
        # The positions to read come first in each row; rows with fewer of them are filled up with others.
        count = int(read.sum(-1).max())
        places = (~read).int().argsort(dim=-1, stable=True)[:, :count]
        real = read.gather(1, places)
        seen = torch.cat([attention & ~read, real], dim=1)
        found, rows.past = self.model(ids.gather(1, places), seen, past=rows.past, keep=True, places=places)
        caches.write_back(rows.past, places, real)
        logits = found.new_zeros(len(ids), self._length + 1, found.shape[-1])
        row, number = real.nonzero(as_tuple=True)
        logits[row, places[row, number] + int(self.model.shifted)] = found[row, number]
        if self.model.shifted:  # no position comes before the first one, whose own logits are its distribution
            logits[:, 0] = found[:, 0]
        return logits[:, :width]

    def _positions_to_read(self, rows: _Rows, reading: Reading) -> Tensor:
        """The positions that this pass reads, bool (S, L); updates ``rows``."""
        new = rows.block < 0
        rows.age = torch.where(reading.ids != rows.ids, 1, (rows.age + 1).clamp(max=LONG_AGO))
        rows.age[new] = LONG_AGO
        begins = reading.block != rows.block
        rows.turn = torch.where(begins, 0, rows.turn + 1)
        due = rows.turn % self.settings.refresh == 0
        only_masks = self.settings.reads == "masked"
        recent = rows.age <= (self.settings.delay if only_masks else rows.turn[:, None])
        read = reading.positions | recent
        if self.model.shifted:  # the distribution of a position is read at the position before it
            read |= reading.positions.roll(-1, dims=1)
        if self.model.block_size is None:
            if only_masks:
                targets = torch.stack([self._targets[branch][row] for branch, row in reading.slots])
                read |= targets & (reading.ids == self.model.mask_id)
            read |= due[:, None]
        else:
            read |= self._block_positions(rows, reading, begins, due) | new[:, None]
        rows.ids = reading.ids.clone()
        rows.block = reading.block.clone()
        return read & reading.attention

    def _block_positions(self, rows: _Rows, reading: Reading, begins: Tensor, due: Tensor) -> Tensor:
        """The positions of the current blocks that a model of blocks reads, bool (S, L); updates ``rows``."""
        size = self.model.block_size
        assert size is not None
        here = torch.arange(self._length, device=reading.ids.device)
        first = torch.where(reading.positions, here, self._length).amin(-1) // size * size
        stop = (torch.where(reading.positions, here, 0).amax(-1) // size + 1) * size
        before = rows.first
        rows.first = torch.where(begins, first, torch.minimum(rows.first, first))
        rows.stop = torch.where(begins, stop, torch.maximum(rows.stop, stop))
        inside = (here >= rows.first[:, None]) & (here < rows.stop[:, None])
        if self.settings.reads == "masked":
            inside = inside & due[:, None]
        # When a block begins, the one before it is read once more: its last tokens were filled after its last pass.
        finished = begins[:, None] & (here >= before[:, None]) & (here < rows.stop[:, None])
        return inside | finished

    def _select_rows(self, reading: Reading) -> _Rows:
        """What is known of these rows; nothing of a row that the last pass did not read."""
        old = self._rows
        slots = reading.slots
        if old is None:
            unknown = torch.full((len(slots),), -1, device=reading.ids.device)
            age = torch.zeros_like(reading.ids)
            return _Rows(slots, None, reading.ids, age, block=unknown, first=unknown, stop=unknown, turn=unknown)
        if old.slots == slots:
            return old
        number_of = {slot: number for number, slot in enumerate(old.slots)}
        index = torch.tensor([number_of.get(slot, 0) for slot in slots], device=reading.ids.device)
        known = torch.tensor([slot in number_of for slot in slots], device=reading.ids.device)
        caches.select_rows(old.past, index)
        return _Rows(
            slots=slots,
            past=old.past,
            ids=old.ids[index],
            age=old.age[index],
            block=old.block[index].masked_fill(~known, -1),
            first=old.first[index],
            stop=old.stop[index],
            turn=old.turn[index],
        )

    def _pad(self, rows: Tensor, value: Any) -> Tensor:
        return torch.nn.functional.pad(rows, (0, self._length - rows.shape[1]), value=value)
