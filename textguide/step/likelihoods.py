"""The log-probability of each row's text so far under every branch, for guidances that weight branches by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class BatchRows(Protocol):
    """The rows of a run that are still in its batch."""

    alive: list[int]

    def pick(self, values: Tensor) -> Tensor:
        """Select the rows of the batch from values for all rows."""

    def spread(self, values: Tensor) -> Tensor:
        """Expand values of the batch to all rows, with zeros for those that left."""


class Likelihoods:
    """Sums of the log-probabilities of written tokens, per row and branch.

    Args:
        branches: the number of branches, including the conditional one.
        rows: the number of rows of the run.
        passes: provides the rows that are still in the batch.
        device: the device of the sums. They are float64 if the device supports it, because small differences between
            sums over long texts matter.
    """

    def __init__(self, branches: int, rows: int, passes: BatchRows, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(rows, branches, dtype=dtype, device=device)
        self._passes = passes
        self._before = self.sums
        self._logp: Tensor | None = None
        self._alive: tuple[int, ...] = ()

    def of_batch(self) -> Tensor:
        """The sums of the rows in the batch, (n, B)."""
        return self._passes.pick(self.sums).T

    def add(self, logp: Tensor, tokens: Tensor) -> None:
        """Add the tokens (rows,) of a step, given the log-probabilities (n, B, V) of the branches."""
        chosen = self._passes.pick(tokens)[None, :, None].expand(len(logp), -1, 1)
        added = logp.gather(-1, chosen).squeeze(-1).T.to(self.sums.dtype)
        self._before = self.sums
        self._logp = logp
        self._alive = tuple(self._passes.alive)
        self.sums = self.sums + self._passes.spread(added)

    def move(self, sources: Sequence[int], rewritten: Mapping[int, tuple[int, float]]) -> None:
        """Let row ``r`` continue the text of row ``sources[r]``; ``rewritten`` rows have another last token."""
        # The sums of rewritten rows start again from those before the last token.
        moved = self.sums[torch.tensor(sources, device=self.sums.device)]
        for row, (token, _) in rewritten.items():
            assert self._logp is not None
            last = self._logp[:, self._alive.index(sources[row]), token].to(moved.dtype)
            moved[row] = self._before[sources[row]] + last
        self.sums = moved


def along(logp: Tensor, lengths: Sequence[int]) -> Tensor:
    """The same sums before every token of texts that are given as a whole and concatenated.

    Args:
        logp: log-probability of every token under every branch, (n, T).
        lengths: the number of tokens of each text.

    Returns:
        float64 (n, T); 0 before the first token of a text.
    """
    parts = logp.to(torch.float64).split(list(lengths), dim=1)
    return torch.cat([torch.cat([torch.zeros_like(one[:, :1]), one[:, :-1].cumsum(1)], dim=1) for one in parts], dim=1)
