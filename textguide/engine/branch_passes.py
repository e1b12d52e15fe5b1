"""The forward passes of one decoding run, in which the rows of all branches are read together.

The rows of the conditional branch are read at every step, and those of the extra branches in the same pass. A step may
leave the extra branches out; when they return, they read everything that was written in the meantime in one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from ..forward import prefill
from ..forward.chunking import ONE_PASS, Chunking
from ..forward.model_adapter import adapter
from ..forward.row_batch import Rows
from ..guidance.base import SELF, Branch
from ..guidance.views import View
from .branch_rows import BranchRows, read_branch, read_branches
from .model_views import ModelPart, model_parts

COND = 0
WHOLE: ModelPart = (SELF, None)


@dataclass
class StepLogits:
    """Next-token logits of one step for the samples that are in the batch, in their order.

    Args:
        cond: the conditional branch, (B, V).
        extra: the extra branches, (n, B, V); None if the step left them out.
    """

    cond: Tensor
    extra: Tensor | None


def step_logits(logits: Mapping[int, Tensor], position: int = -1) -> StepLogits:
    """The logits at one position, from those of each branch at all positions of a pass, (B, k, V)."""
    extra = []
    for branch in sorted(logits):
        if branch != COND:
            extra.append(logits[branch][:, position])
    return StepLogits(logits[COND][:, position], torch.stack(extra) if extra else None)


class Source(Protocol):
    """The input of a branch if it is more than token ids, such as an image."""

    shares: bool
    """Whether its rows can be part of the pass of the decoded model."""

    def prefill(self, model: Any, size: int) -> tuple[Rows, Tensor]:
        """Read it for ``size`` rows with the branch's model; the rows and the next-token logits (size, V)."""


class BranchPasses:
    """Runs the branches of one batch of samples.

    Args:
        model: the model that is decoded.
        models: further models, by the names that branches use.
        branches: the extra branches.
        prompts: for each extra branch, the token ids of every row, or a :class:`Source`.
        copies: number of adjacent rows per prompt. Each prompt is read once, and its rows share memory as long as they
            read the same tokens.
        fast: if True, runs without branches may differ from plain decoding by rounding, as runs with branches do.
        view: the part of ``model`` that the conditional pass runs; None: all of it.
        chunking: how long prompts are cut when they are read.
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
        chunking: Chunking = ONE_PASS,
    ) -> None:
        self.copies = copies
        self.chunking = chunking
        self.fast = fast or bool(branches) or copies > 1
        self.own: ModelPart = (SELF, view)
        self.parts = model_parts(model, models, branches, view)
        self.branches = branches
        self.prompts = prompts
        self.running: dict[ModelPart, BranchRows] = {}
        self.resting: dict[ModelPart, BranchRows] = {}
        # How many generated tokens the running and the resting rows have read.
        self.read = 0
        self.rested = 0
        self.alive: list[int] = []  # the samples in the batch
        # Whether a pass was run for the newest step; if not, an earlier one had read its tokens in advance.
        self.is_read = True
        self._rows: Tensor | None = None  # the same as a tensor; None as long as no sample has left

    # -- prefill ---------------------------------------------------------------------------------------------------

    def prefill(self, ids: Tensor, model_kwargs: dict[str, Any], new_tokens: int = 1) -> StepLogits:
        """Read every branch's prompt, each at its own length, and return the first next-token logits.

        Args:
            ids: the conditional prompt as transformers' ``generate`` passes it, (B, L), padded on the left.
            model_kwargs: its attention mask, positions, cache and encoder outputs.
            new_tokens: the largest number of tokens that will be written.

        Raises:
            ValueError: a model does not support several branches, has another vocabulary, or cannot continue a text for
                ``new_tokens`` tokens.
        """
        self._samples = torch.arange(ids.shape[0], device=ids.device)
        self.alive = list(range(ids.shape[0]))
        self._check(ids, model_kwargs, new_tokens)
        groups: dict[ModelPart, list[BranchRows]] = {}
        logits: dict[int, Tensor] = {}
        for name, rows, last in self._read_prompts(ids, model_kwargs):
            groups.setdefault(name, []).append(rows)
            for branch_number, branch_logits in zip(rows.branches, last.chunk(len(rows.branches)), strict=True):
                logits[branch_number] = branch_logits.to(ids.device)
        size = logits[COND].shape[-1]
        for number, branch in enumerate(self.branches, start=1):
            own = logits[number].shape[-1]
            if own != size:
                raise ValueError(
                    f"model {branch.model or 'of the branch'!r} has {own} tokens in its vocabulary and the decoded "
                    f"model {size}; their next-token distributions cannot be combined: use models that share a "
                    "tokenizer"
                )
        for name, several in groups.items():
            several.sort(key=lambda one: one.branches[0])  # the conditional branch comes first
            self.running[name] = BranchRows.join(several)
            self.running[name].run_fast(self.fast)
        return step_logits({number: last[:, None] for number, last in logits.items()})

    def _check(self, ids: Tensor, model_kwargs: dict[str, Any], new_tokens: int) -> None:
        """Refuse what a model cannot read or continue."""
        model = self.parts[self.own]
        if ids.shape[0] > 1:
            adapter(model).check_state()  # rows leave the batch when their texts end
        if self.branches:
            mask = model_kwargs.get("attention_mask")
            lengths = [ids.shape[1]] if mask is None or mask.shape[-1] != ids.shape[1] else mask.sum(-1).tolist()
            adapter(model).check_lengths(lengths, new_tokens)
        elif adapter(model).reads_again:
            adapter(model).check_lengths([ids.shape[1]], new_tokens)
        for branch, prompts in zip(self.branches, self.prompts, strict=True):
            part = self.parts[branch.model_part]
            if isinstance(prompts, Sequence) and not adapter(part).is_encoder_decoder:
                adapter(part).check_lengths([len(prompt) for prompt in prompts], new_tokens)

    def _read_prompts(
        self, ids: Tensor, model_kwargs: dict[str, Any]
    ) -> Iterator[tuple[ModelPart, BranchRows, Tensor]]:
        """Read all branches; yield the model part whose pass the rows join, the rows, and their logits (rows, V).

        Branches of one model part are read together if they only read token ids. Branches of different parts share
        nothing: layers that are changed or left out compute other keys and values for the same tokens.
        """
        model = self.parts[self.own]
        guided = bool(self.branches)
        together: dict[ModelPart, dict[int, Sequence[Sequence[int]]]] = {}
        cond = prefill.as_token_ids(model, ids, model_kwargs) if guided else None
        if cond is not None:
            together[self.own] = {COND: cond}
        else:
            rows, last = prefill.read_prepared(
                model,
                ids,
                model_kwargs,
                copies=self.copies,
                fresh=guided,
                fast=self.fast,
                chunking=self.chunking,
            )
            yield self.own, BranchRows(rows, [COND]), last
        for number, (branch, prompts) in enumerate(zip(self.branches, self.prompts, strict=True), start=1):
            part = self.parts[branch.model_part]
            if not isinstance(prompts, Sequence):
                rows, last = prompts.prefill(part, len(self.alive))
                name = branch.model_part if prompts.shares else (f"{branch.model} {number}", branch.view)
                yield name, BranchRows(rows, [number]), last
            elif adapter(part).is_encoder_decoder:
                rows, logits = read_branch(part, prompts, ids)
                yield branch.model_part, BranchRows(rows, [number]), logits[:, -1]
            else:
                together.setdefault(branch.model_part, {})[number] = prompts
        for name, branches in together.items():
            texts = list(branches.values())
            rows, logits = read_branches(self.parts[name], texts, sharing=self.copies > 1, chunking=self.chunking)
            yield name, BranchRows(rows, list(branches)), logits[:, -1]

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
        if not isinstance(batches[0].cache, StaticCache):  # without branches, it is the static cache that generate made
            batches[0].make_static(new_tokens)

    def replace_call(self, call: Any) -> None:
        """Call ``call`` instead of the decoded model from the next step on; None: the model itself."""
        for batch in self.running[self.own].rows.batches() if self.own == WHOLE else ():
            batch.call = call

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self, ids: Tensor, new: int, with_branches: bool = True) -> StepLogits:
        """Read the newest token of every row.

        Args:
            ids: all ids so far, (rows at the start, T); the last ``new`` columns were generated.
            new: number of generated tokens.
            with_branches: run the extra branches; if they were left out before, they first read the tokens they missed.
        """
        if with_branches and self.resting:
            return self._resume(ids, new)
        if not with_branches and not self.resting:
            self.rest()
        self.read = new
        return step_logits(self._forward(self.running, self.pick(ids[:, -1:])))

    def rest(self) -> None:
        """Leave the extra branches out of the passes from now on."""
        self.rested = self.read
        for name, group in list(self.running.items()):
            if COND not in group.branches:
                self.resting[name] = self.running.pop(name)
            elif len(group.branches) > 1:  # the conditional branch comes first
                self.resting[name] = group.split_off(len(self.alive))

    def _resume(self, ids: Tensor, new: int) -> StepLogits:
        """The step at which the extra branches return: they read the tokens they missed in one chunk."""
        self.read = new
        cond = self._forward(self.running, self.pick(ids[:, -1:]))[COND][:, -1]
        missed = self._forward(self.resting, self.pick(ids[:, self.rested - new :]))
        extra = torch.stack([missed[branch][:, -1] for branch in sorted(missed)])
        for name, group in self.resting.items():
            self.running[name] = BranchRows.join([self.running[name], group] if name in self.running else [group])
        self.resting = {}
        return StepLogits(cond, extra)

    def _forward(self, groups: Mapping[ModelPart, BranchRows], tokens: Tensor, keep: int = 1) -> dict[int, Tensor]:
        """Let ``groups`` read new ``tokens`` (B, k); return the last ``keep`` logits of each branch, (B, keep, V)."""
        logits: dict[int, Tensor] = {}
        for group in groups.values():
            logits.update(group.forward(tokens, keep))
        return logits

    # -- rows leave and move ---------------------------------------------------------------------------------------

    def pick(self, values: Tensor) -> Tensor:
        """Select the rows of the batch from values for all samples, (B, …)."""
        return values if self._rows is None else values[self._rows]

    def spread(self, values: Tensor) -> Tensor:
        """Expand values of the batch (B, …) to all samples, with zeros for those that left."""
        if self._rows is None:
            return values
        return values.new_zeros(len(self._samples), *values.shape[1:]).index_copy(0, self._rows, values)

    def drop(self, samples: Sequence[int]) -> None:
        """Let finished ``samples`` leave the batch."""
        self.reindex({sample: sample for sample in self.alive if sample not in set(samples)})

    def reindex(self, sources: Mapping[int, int]) -> None:
        """Let every sample in ``sources`` continue from what its source has read; all other samples leave.

        Rows are copied, and nothing is read again. A sample that left before can return as a copy of another one.
        """
        size = len(self.alive)
        rows = torch.tensor([self.alive.index(sources[sample]) for sample in sorted(sources)])
        self.alive = sorted(sources)
        self._rows = self._samples[self.alive] if len(self.alive) < len(self._samples) else None
        for groups in (self.running, self.resting):
            if not self.alive:
                groups.clear()
            for group in groups.values():
                group.select(rows, size)
