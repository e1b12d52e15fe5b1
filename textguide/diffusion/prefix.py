"""Keys and values of finished blocks, kept while the block behind them is filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance.base import SELF
from .canvas import Canvas
from .denoisers import Denoiser


class Prefix:
    """Reads rows whose prompt and finished blocks were read before.

    When a block begins, one pass reads the whole rows and keeps the keys and values in front of the block; its further
    steps read from the block on. Where attention is causal between blocks this is exact; where it is bidirectional the
    kept values are those of a canvas whose current block was still masked, which is an approximation.

    Raises:
        ValueError: the model takes no cache, or what is asked for leaves nothing to keep.
    """

    def __init__(self, model: Denoiser, canvas: Canvas, branches: Sequence[tuple[str, Canvas]]) -> None:
        if not model.can_cache:
            raise ValueError(
                f"cache=True needs a forward that takes past_key_values, and {type(model.model).__name__} has none; "
                "leave cache off"
            )
        for name, laid in branches:
            if name != SELF:
                raise ValueError(f"cache=True keeps the keys of one model, and a branch runs {name!r}; leave cache off")
            if not torch.equal(laid.target, canvas.target):
                raise ValueError(
                    "cache=True needs all branches at the same positions; give every branch as many tokens as the "
                    "prompt has, such as by leaving negative_prompt out, or leave cache off"
                )
        starts = {int(row.nonzero()[0, 0]) for row in canvas.target}
        if len(starts) > 1:
            raise ValueError(
                "cache=True needs prompts of one length in a batch, so that the blocks line up; group them by length"
            )
        if model.suffix_ids:
            raise ValueError("cache=True does not work behind a closing frame such as [SEP]; leave cache off")
        self.model = model
        self._canvas = canvas
        self._kept: tuple[Any, int, tuple[int, ...]] | None = None

    def read(self, ids: Tensor, attention: Tensor, halves: tuple[Tensor, ...]) -> Tensor:
        """Logits (B, L, V) of both halves; positions in front of the current block are zeros."""
        start = self._start(halves[0], ids)
        key = (len(halves), *(int(row) for half in halves for row in half))
        if self._kept is None or self._kept[1] != start or self._kept[2] != key:
            logits, past = self.model(ids, attention, keep=True)
            _shorten(past, ids.shape[1] - start)
            self._kept = (past, start, key)
            return logits
        past = self._kept[0]
        tail, past = self.model(ids[:, start:], attention, past=past, keep=True)
        _shorten(past, ids.shape[1] - start)
        self._kept = (past, start, key)
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
        return start - start % (self.model.block_size or 1)


def _shorten(past: Any, tokens: int) -> None:
    """Take the last ``tokens`` off a cache; transformers reads a negative number so in every version."""
    if tokens:
        past.crop(-tokens)
