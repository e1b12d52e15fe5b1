"""What every branch gave to the tokens that each row has written: for guidances that weigh branches by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .branch_passes import BranchPasses


class Likelihoods:
    """Sums of log-probabilities of the written tokens, a row and branch.

    Args:
        branches: their number, the conditional one included.
        rows: all rows of the run.
        passes: tells the rows of the batch from those that left it.
        device: where the sums are kept; in float64 where there is one, since sums over long texts are compared.
    """

    def __init__(self, branches: int, rows: int, passes: BranchPasses, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(rows, branches, dtype=dtype, device=device)
        self._passes = passes
        self._before = self.sums
        self._logp: Tensor | None = None
        self._alive: tuple[int, ...] = ()

    def of_batch(self) -> Tensor:
        """Those of the rows in the batch, (n, B)."""
        return self._passes.pick(self.sums).T

    def add(self, logp: Tensor, tokens: Tensor) -> None:
        """Take in the tokens (rows,) of a step, from the log-probabilities (n, B, V) of the branches."""
        chosen = self._passes.pick(tokens)[None, :, None].expand(len(logp), -1, 1)
        added = logp.gather(-1, chosen).squeeze(-1).T.to(self.sums.dtype)
        self._before, self._logp, self._alive = self.sums, logp, tuple(self._passes.alive)
        self.sums = self.sums + self._passes.spread(added)

    def move(self, sources: Sequence[int], rewritten: Mapping[int, tuple[int, float]]) -> None:
        """Let row ``r`` go on from what row ``sources[r]`` has written; ``rewritten`` rows have another last token."""
        moved = self.sums[torch.tensor(sources, device=self.sums.device)]
        for row, (token, _) in rewritten.items():
            assert self._logp is not None
            last = self._logp[:, self._alive.index(sources[row]), token].to(moved.dtype)
            moved[row] = self._before[sources[row]] + last
        self.sums = moved


def along(logp: Tensor, lengths: Sequence[int]) -> Tensor:
    """The same sums in front of every token of given texts that stand one behind the other.

    Args:
        logp: log-probability of every token under every branch, (n, T).
        lengths: tokens of each text.

    Returns:
        float64 (n, T); 0 in front of the first token of a text.
    """
    parts = logp.to(torch.float64).split(list(lengths), dim=1)
    return torch.cat([torch.cat([torch.zeros_like(one[:, :1]), one[:, :-1].cumsum(1)], dim=1) for one in parts], dim=1)
