"""The step that a guidance is told at every token: where the text stands, and what the guidance asks about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..guidance.base import BranchGuidance, Step
from .branch_passes import BranchPasses
from .likelihoods import Likelihoods
from .opinions import Opinions


class Steps:
    """The steps of one run.

    Args:
        guidance: what is told; None: nobody.
        opinions: the classifier whose opinions it asks for, if it does.
        passes: tells the rows of the batch from those that left it.
        rows: all rows of the run.
        horizon: the most tokens that are written.
        copies: rows of each prompt, side by side.
        device: where logits are.
    """

    def __init__(
        self, guidance: BranchGuidance | None, opinions: Opinions | None, passes: BranchPasses, rows: int, horizon: int,
        copies: int, device: torch.device,
    ) -> None:  # fmt: skip
        self._passes, self._rows, self._horizon, self._copies = passes, rows, horizon, copies
        self._opinions, self._device = opinions, device
        self._likelihoods: Likelihoods | None = None
        if guidance is not None and guidance.reads_likelihoods:
            self._likelihoods = Likelihoods(1 + len(guidance.branches), rows, passes, device)

    def at(self, index: int, ids: Tensor) -> Step:
        """The step that writes token ``index`` behind ``ids`` (rows, T)."""
        opinions = None
        if self._opinions is not None:
            if index:
                self._opinions.append(ids[:, -1].tolist())
            opinions = self._opinions.of(self._passes.alive).to(self._device)
        likelihoods = None if self._likelihoods is None else self._likelihoods.of_batch()
        return Step.at(
            index, self._horizon, self._passes.alive, self._rows, self._copies, likelihoods=likelihoods,
            opinions=opinions,
        )  # fmt: skip

    def add(self, cond: Tensor | None, extra: Tensor | None, tokens: Tensor) -> None:
        """Take in what was written, ``tokens`` (rows,), from the log-probabilities (B, V) and (n, B, V) of a step."""
        if self._likelihoods is not None and cond is not None and extra is not None:
            self._likelihoods.add(torch.cat([cond[None], extra]), tokens)

    def move(self, sources: Sequence[int], rewritten: Mapping[int, tuple[int, float]]) -> None:
        """Let row ``r`` go on from what row ``sources[r]`` has written; ``rewritten`` rows have another last token."""
        if self._likelihoods is not None:
            self._likelihoods.move(sources, rewritten)
        if self._opinions is not None:
            self._opinions.select(sources)
