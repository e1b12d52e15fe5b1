"""What a guidance reads besides the branches: where the text is, and what was written so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..guidance.base import BranchGuidance, Step
from ..step.class_log_probs import ClassLogProbs
from ..step.likelihoods import BatchRows, Likelihoods


class StepInputs:
    """The :class:`~textguide.guidance.Step` of every token of a run.

    Args:
        guidance: the guidance of the run; None: plain decoding.
        class_log_probs: the classifier of a guidance that reads class log-probabilities.
        batch: knows which rows are still in the batch.
        rows: the number of rows of the run.
        horizon: the largest number of new tokens.
        copies: rows per prompt, next to each other.
        device: where logits are.
    """

    def __init__(
        self,
        guidance: BranchGuidance | None,
        class_log_probs: ClassLogProbs | None,
        batch: BatchRows,
        rows: int,
        horizon: int,
        copies: int,
        device: torch.device,
    ) -> None:
        self._batch = batch
        self._rows = rows
        self._horizon = horizon
        self._copies = copies
        self._class_log_probs = class_log_probs
        self._device = device
        self._likelihoods: Likelihoods | None = None
        if guidance is not None and guidance.reads_likelihoods:
            self._likelihoods = Likelihoods(1 + len(guidance.branches), rows, batch, device)

    def step(self, index: int, ids: Tensor) -> Step:
        """The step that writes token ``index`` after ``ids`` (rows, T)."""
        class_log_probs = None
        if self._class_log_probs is not None:
            if index:
                self._class_log_probs.append(ids[:, -1].tolist())
            class_log_probs = self._class_log_probs.of(self._batch.alive).to(self._device)
        likelihoods = None if self._likelihoods is None else self._likelihoods.of_batch()
        return Step.at(index, self._horizon, self._batch.alive, self._rows, self._copies, likelihoods, class_log_probs)

    def add(self, branches: Tensor | None, tokens: Tensor) -> None:
        """Add what was written, ``tokens`` (rows,), given the log-probabilities (n, B, V) of a guided step."""
        if self._likelihoods is not None and branches is not None:
            self._likelihoods.add(branches, tokens)

    def move(self, sources: Sequence[int], rewritten: Mapping[int, tuple[int, float]]) -> None:
        """Let row ``r`` continue the text of row ``sources[r]``; ``rewritten`` rows have another last token."""
        if self._likelihoods is not None:
            self._likelihoods.move(sources, rewritten)
        if self._class_log_probs is not None:
            self._class_log_probs.select(sources)
