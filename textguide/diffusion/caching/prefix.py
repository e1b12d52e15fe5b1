"""Keys and values of finished blocks, kept while the block behind them is filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guidance.base import SELF
from ..canvas import Canvas
from ..denoisers import Denoiser
from .base import Caching, Kept, Reading, Slot, refuse_without_cache


@dataclass(frozen=True)
class PrefixCache(Caching):
    """``cache=True``: what is in front of the current block.

    When a block begins, one pass reads the whole rows and keeps the keys and values in front of the block; its further
    steps read from the block on. Where attention is causal between blocks this is exact; where it is bidirectional the
    kept values are those of a canvas whose current block was still masked, which is an approximation.
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


class PrefixKeys:
    """What :class:`PrefixCache` keeps in one run."""

    def __init__(self, model: Denoiser, canvas: Canvas) -> None:
        self.model = model
        self._canvas = canvas
        self._kept: tuple[Any, int, list[Slot]] | None = None

    def read(self, reading: Reading) -> Tensor:
        ids, attention = reading.ids, reading.attention
        start = self._start(torch.tensor([row for branch, row in reading.slots if branch == 0]).to(ids.device), ids)
        if self._kept is None or self._kept[1:] != (start, reading.slots):
            logits, past = self.model(ids, attention, keep=True)
            _shorten(past, ids.shape[1] - start)
            self._kept = (past, start, reading.slots)
            return logits
        past = self._kept[0]
        tail, past = self.model(ids[:, start:], attention, past=past, keep=True)
        _shorten(past, ids.shape[1] - start)
        self._kept = (past, start, reading.slots)
        logits = tail.new_zeros(len(ids), ids.shape[1], tail.shape[-1])
        logits[:, start:] = tail
        return logits

    def _start(self, rows: Tensor, ids: Tensor) -> int:
        """Where the first block that is not finished begins, over all rows."""
        masked = self._canvas.target[rows] & (ids[: len(rows)] == self.model.mask_id)
        block = torch.where(masked, self._canvas.block[rows], 1 << 30).min()
        here = self._canvas.block[rows] == block
        start = int(here.any(0).nonzero()[0, 0])
        # A prompt may end inside of a block, whose beginning then sees what is filled behind it.
        start -= start % (self.model.block_size or 1)
        return max(0, start - 1) if self.model.shifted else start  # which says what stands at the block's first place


def _shorten(past: Any, tokens: int) -> None:
    """Take the last ``tokens`` off a cache; transformers reads a negative number so in every version."""
    if tokens:
        past.crop(-tokens)
