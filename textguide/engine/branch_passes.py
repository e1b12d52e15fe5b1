"""The forward passes of one decoding run: the rows of every branch, read side by side.

Rows of the conditional branch are read at every step, those of the extra branches beside them in the same pass. A
step may leave the extra branches out; when they come back, they read in one chunk what was written meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from ..forward import prefill
from ..forward.model_adapter import adapter
from ..forward.model_views import ModelPart, model_parts
from ..forward.row_batch import Rows
from ..guidance.base import SELF, Branch
from ..guidance.views import View
from .branch_rows import BranchRows, read_branch

COND = 0
WHOLE: ModelPart = (SELF, None)


@dataclass
class StepLogits:
    """Next-token logits of one step for the samples that are in the batch, in their order.

    Args:
        cond: the conditional branch, (B, V).
        extra: the extra branches, (n, B, V); None where the step left them out.
    """

    cond: Tensor
    extra: Tensor | None


def step_logits(found: Mapping[int, Tensor], position: int = -1) -> StepLogits:
    """Those behind one position of what was read, (B, k, V) a branch."""
    extra = [found[branch][:, position] for branch in sorted(found) if branch != COND]
    return StepLogits(found[COND][:, position], torch.stack(extra) if extra else None)


class Source(Protocol):
    """What a branch reads where token ids alone do not say it, such as an image."""

    shares: bool
    """Whether its rows can ride in the pass of the model that is decoded."""

    def prefill(self, model: Any, size: int) -> tuple[Rows, Tensor]:
        """Read it for ``size`` rows with the branch's model; the rows and the next-token logits (size, V)."""


class BranchPasses:
    """Runs the branches of one batch of samples.

    Args:
        model: the model that is decoded.
        models: further models by the name that branches use.
        branches: the extra branches.
        prompts: for each extra branch, the token ids of every row, or a :class:`Source`.
        copies: every so many rows that follow each other have one prompt, which is then read once; rows stay one for
            as long as they read the same.
        fast: rows of runs without branches need not reproduce the bits of plain decoding either.
        view: what the conditional pass runs of ``model``.
    """

    def __init__(
        self,
        model: Any,
        branches: Sequence[Branch],
        prompts: Sequence[Sequence[Sequence[int]] | Source],
        models: Mapping[str, Any] | None = None,
        copies: int = 1,
        fast: bool = False,
        view: View | None = None,
    ) -> None:
        self.copies = copies
        self.fast = fast or bool(branches) or copies > 1
        self.own: ModelPart = (SELF, view)
        self.parts = model_parts(model, models, branches, view)
        self.branches = branches
        self.prompts = prompts
        self.running: dict[ModelPart, BranchRows] = {}
        self.resting: dict[ModelPart, BranchRows] = {}
        self.read = self.rested = 0  # how many generated tokens the running and the resting rows have read
        self.alive: list[int] = []  # the samples in the batch
        self._rows: Tensor | None = None  # the same, where some have left

    # -- prefill ---------------------------------------------------------------------------------------------------

    def prefill(self, ids: Tensor, model_kwargs: dict[str, Any], new_tokens: int = 1) -> StepLogits:
        """Read every branch's prompt, each at its own length, and return the first next-token logits.

        Args:
            ids: the conditional prompt as transformers' ``generate`` hands it over, (B, L), padded on the left.
            model_kwargs: what goes with it: attention mask, positions, cache, encoder outputs.
            new_tokens: the most tokens that will be written.

        Raises:
            ValueError: a model cannot be read by several branches, has another vocabulary, or cannot go on that far.
        """
        model = self.parts[self.own]
        self._samples = torch.arange(ids.shape[0], device=ids.device)
        self.alive = list(range(ids.shape[0]))
        guided = bool(self.branches)
        if guided:
            mask = model_kwargs.get("attention_mask")
            lengths = [ids.shape[1]] if mask is None or mask.shape[-1] != ids.shape[1] else mask.sum(-1).tolist()
            adapter(model).check_lengths(lengths, new_tokens)
        rows, logits = prefill.read_prepared(model, ids, model_kwargs, copies=self.copies, fresh=guided, fast=self.fast)
        groups = {self.own: [BranchRows(rows, [COND])]}
        extra = []
        for number, (branch, prompts) in enumerate(zip(self.branches, self.prompts, strict=True), start=1):
            name, rows, last = self._read_extra(number, branch, prompts, ids, new_tokens)
            if last.shape[-1] != logits.shape[-1]:
                raise ValueError(
                    f"model {branch.model or 'of the branch'!r} has {last.shape[-1]} tokens in its vocabulary and the "
                    f"decoded model {logits.shape[-1]}; their next-token distributions cannot be combined: use models "
                    "that share a tokenizer"
                )
            groups.setdefault(name, []).append(BranchRows(rows, [number]))
            extra.append(last.to(ids.device))
        self.running = {name: BranchRows.join(several) for name, several in groups.items()}
        for group in self.running.values():
            group.run_fast(self.fast)
        return StepLogits(logits, torch.stack(extra) if extra else None)

    def _read_extra(
        self, number: int, branch: Branch, prompts: Sequence[Sequence[int]] | Source, ids: Tensor, new_tokens: int
    ) -> tuple[ModelPart, Rows, Tensor]:
        """Read one extra branch: the model part whose pass its rows join, the rows, and their logits (B, V)."""
        part = self.parts[branch.model_part]
        if not isinstance(prompts, Sequence):
            rows, last = prompts.prefill(part, len(self.alive))
            name = branch.model_part if prompts.shares else (f"{branch.model} {number}", branch.view)
            return name, rows, last
        if not adapter(part).is_encoder_decoder:
            adapter(part).check_lengths([len(prompt) for prompt in prompts], new_tokens)
        rows, logits = read_branch(part, prompts, ids, sharing=self.copies > 1)
        return branch.model_part, rows, logits[:, -1]

    def make_static(self, new_tokens: int) -> None:
        """Give the decoded model's rows a cache of fixed shape with room for ``new_tokens`` more positions.

        Raises:
            ValueError: the rows cannot share one.
        """
        batches = list(self.running[self.own].rows.batches())
        if len(batches) > 1:
            raise ValueError(
                f"cache_implementation='static' keeps all rows in one cache, and {batches[0].model.name} needs one for "
                "every length; leave cache_implementation out"
            )
        if not isinstance(batches[0].cache, StaticCache):  # without branches, the one that generate made
            batches[0].make_static(new_tokens)

    def replace_call(self, call: Any) -> None:
        """Use ``call`` in place of the decoded model's own from the next step on (None: its own)."""
        for batch in self.running[self.own].rows.batches() if self.own == WHOLE else ():
            batch.call = call

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self, ids: Tensor, new: int, with_branches: bool = True) -> StepLogits:
        """Read the newest token of every row.

        Args:
            ids: all ids so far, (rows at the start, T); the last ``new`` columns were generated.
            new: number of generated tokens.
            with_branches: run the extra branches; if they were left out before, they first read what they missed.
        """
        if with_branches and self.resting:
            return self._resume(ids, new)
        if not with_branches and not self.resting:
            self.rest()
        self.read = new
        return step_logits(self._forward(self.running, self.pick(ids[:, -1:])))

    def rest(self) -> None:
        """Leave the extra branches out from the next pass on."""
        self.rested = self.read
        for name, group in list(self.running.items()):
            if COND not in group.branches:
                self.resting[name] = self.running.pop(name)
            elif len(group.branches) > 1:  # the conditional branch comes first
                self.resting[name] = group.split_off(len(self.alive))

    def _resume(self, ids: Tensor, new: int) -> StepLogits:
        """The step in which the extra branches return: they read what they missed in one chunk."""
        self.read = new
        cond = self._forward(self.running, self.pick(ids[:, -1:]))[COND][:, -1]
        found = self._forward(self.resting, self.pick(ids[:, self.rested - new :]))
        extra = torch.stack([found[branch][:, -1] for branch in sorted(found)])
        for name, group in self.resting.items():
            self.running[name] = BranchRows.join([self.running[name], group] if name in self.running else [group])
        self.resting = {}
        return StepLogits(cond, extra)

    def _forward(self, groups: Mapping[ModelPart, BranchRows], tokens: Tensor, keep: int = 1) -> dict[int, Tensor]:
        """Let ``groups`` read new ``tokens`` (B, k): the last ``keep`` logits of each branch, (B, keep, V)."""
        return dict(found for group in groups.values() for found in group.forward(tokens, keep))

    # -- rows leave and move ---------------------------------------------------------------------------------------

    def pick(self, values: Tensor) -> Tensor:
        """Of values for all samples those of the batch, (B, …)."""
        return values if self._rows is None else values[self._rows]

    def spread(self, values: Tensor) -> Tensor:
        """Values of the batch (B, …) for all samples, with zeros for those that left."""
        if self._rows is None:
            return values
        return values.new_zeros(len(self._samples), *values.shape[1:]).index_copy(0, self._rows, values)

    def drop(self, samples: Sequence[int]) -> None:
        """Let finished ``samples`` leave the batch."""
        self.reindex({sample: sample for sample in self.alive if sample not in set(samples)})

    def reindex(self, sources: Mapping[int, int]) -> None:
        """Let every sample of ``sources`` go on from what the sample that it names has read; all others leave.

        Rows are copied, nothing is read again. A sample that left before may come back in the place of a copy.
        """
        size = len(self.alive)
        places = torch.tensor([self.alive.index(sources[sample]) for sample in sorted(sources)])
        self.alive = sorted(sources)
        self._rows = self._samples[self.alive] if len(self.alive) < len(self._samples) else None
        for groups in (self.running, self.resting):
            if not self.alive:
                groups.clear()
            for group in groups.values():
                group.select(places, size)
