"""The rows of the branches that one model runs: read in one pass, continued, reordered and cropped.

Generation and the logits processors decode with :class:`BranchRows`, scoring reads with :func:`read_branch`, and all of
them check their inputs with :func:`textguide.engine.branch_inputs.check_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..forward import prefill, row_batch
from ..forward.chunking import ONE_PASS, Chunking
from ..forward.model_adapter import adapter
from ..forward.row_batch import Rows


def read_branch(
    model: Any,
    texts: Sequence[Sequence[int]],
    written: Tensor | None = None,
    *,
    keep: int = 1,
    fast: bool = True,
    sharing: bool = False,
    chunking: Chunking = ONE_PASS,
) -> tuple[Rows, Tensor]:
    """Read the prompts of a branch; return its rows and the last ``keep`` logits (R, keep, V).

    Args:
        model: the model that runs the branch, or a part of it.
        texts: token ids of every row; for an encoder-decoder, what its encoder reads.
        written: for an encoder-decoder, the tokens that its decoder starts with, (R, T).
        fast: if True, the pass may differ from plain decoding by rounding.
        sharing: store rows that read the same tokens once until they differ.
        chunking: how long prompts are cut.
    """
    known = adapter(model)
    if not known.is_encoder_decoder:
        return read_branches(model, [texts], keep=keep, fast=fast, sharing=sharing, chunking=chunking)
    assert written is not None
    outputs, mask = prefill.encode(model, texts, written.device)
    return prefill.read_encoded(model, written, outputs, mask, keep=keep)


def read_branches(
    model: Any,
    branches: Sequence[Sequence[Sequence[int]]],
    *,
    keep: int = 1,
    fast: bool = True,
    sharing: bool = False,
    chunking: Chunking = ONE_PASS,
) -> tuple[Rows, Tensor]:
    """Read the prompts of several branches of one decoder; arguments as for :func:`read_branch`.

    Returns:
        The rows of all branches, ordered by branch, and their last ``keep`` logits (R, keep, V).
    """
    return prefill.read_branches(model, branches, adapter(model).device, keep, fast, sharing, chunking)


class BranchRows:
    """Rows of one model, ordered by branch and then by sample.

    Args:
        rows: the rows, ``len(branches)`` times the samples.
        branches: numbers of the branches; 0 is the conditional one.
    """

    def __init__(self, rows: Rows, branches: list[int]) -> None:
        self.rows = rows
        self.branches = branches

    @staticmethod
    def join(several: Sequence[BranchRows]) -> BranchRows:
        """Merge several into one; they must not be used afterwards."""
        branches = [branch for one in several for branch in one.branches]
        return BranchRows(row_batch.merge([one.rows for one in several]), branches)

    def run_fast(self, fast: bool = True) -> None:
        """Set whether passes may differ from plain decoding by rounding."""
        for batch in self.rows.batches():
            batch.fast = fast

    def forward(self, tokens: Tensor, keep: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Read new ``tokens`` (B, k) of every sample; yield each branch with its last ``keep`` logits (B, keep, V)."""
        count = len(self.branches)
        logits = self.rows.forward(tokens.repeat(count, 1), keep).to(tokens.device)
        return zip(self.branches, logits.chunk(count), strict=True)

    def select(self, samples: Tensor, size: int) -> None:
        """Let every sample continue from what another one of the ``size`` samples has read, given as numbers (B,)."""
        first = torch.arange(len(self.branches), device=samples.device)[:, None] * size
        self.rows.select((first + samples).flatten().to(self.rows.device))

    def crop(self, columns: int) -> bool:
        """Remove the last ``columns`` tokens of every row; return False if the cache does not support that."""
        return self.rows.crop(columns)

    def split_off(self, samples: int) -> BranchRows:
        """Remove all branches but the first, which keeps its ``samples`` rows, and return them."""
        rows = torch.arange(samples * len(self.branches), device=self.rows.device)
        others = BranchRows(self.rows.split(rows[samples:]), self.branches[1:])
        self.rows.select(rows[:samples])
        self.branches = self.branches[:1]
        return others
