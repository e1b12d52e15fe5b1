"""Forward passes that also read guesses, with the same interface: the logits of one position per step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...forward import caches
from ...guidance.base import BranchGuidance, Step
from ...step.guided_step import guided_step
from ..branch_passes import BranchPasses, StepLogits, step_logits
from .drafts import Drafter, Guess
from .value import Speculation, SpeculationReport


@dataclass
class _Ahead:
    """The guesses that one pass read after the newest token.

    Args:
        guesses: the guesses of every row with their kinds, the same number for each.
        tokens: the guesses, (B, k).
        logits: the logits of all k + 1 positions.
        used: how many of the logits were returned to the loop.
    """

    guesses: list[list[Guess]]
    tokens: Tensor
    logits: list[StepLogits]
    used: int = 1


class SpeculativePasses(BranchPasses):
    """Passes of one run that read guesses together with the newest token of every row.

    If the newest tokens of all rows are the guessed ones, a step returns logits that are already computed. Otherwise
    every branch drops the remaining guesses, and a new pass reads the token that was written instead. All rows of a
    batch advance together, up to the first guess that is wrong in any of them. Before branches are left out and before
    rows leave or move, the guesses that were not written are dropped.

    Args:
        speculation: the settings.
        guidance: combines the branches, to find out which token they prefer.
        horizon: the largest number of tokens that the run writes.
        *run: the arguments of :class:`BranchPasses`.

    Raises:
        ValueError: a model cannot drop tokens that it has read.
    """

    def __init__(self, speculation: Speculation, guidance: BranchGuidance | None, horizon: int, *run: Any) -> None:
        super().__init__(*run)
        for part in self.parts.values():
            if not caches.record_past(caches.new_cache(part)):
                raise ValueError(
                    f"speculation={speculation.draft!r} reads guesses that have to be forgotten where they were wrong, "
                    f"and {type(part).__name__} keeps a state that cannot go back; leave speculation out"
                )
        self.guidance = guidance
        self.horizon = horizon
        self._drafter = Drafter(speculation)
        self._ahead: _Ahead | None = None
        self._steps = 0
        self._runs = 0
        self._drafted = 0
        self._accepted = 0

    def prefill(self, ids: Tensor, model_kwargs: dict[str, Any], new_tokens: int = 1) -> StepLogits:
        """Read every branch's prompt; see :meth:`BranchPasses.prefill`."""
        logits = super().prefill(ids, model_kwargs, new_tokens)
        for group in self.running.values():
            group.run_fast()  # passes over several tokens differ from plain decoding by rounding anyway
            for batch in group.rows.batches():
                caches.record_past(batch.cache)
        return logits

    def step(self, ids: Tensor, new: int, with_branches: bool = True) -> StepLogits:
        """The logits after the newest token of every row; see :meth:`BranchPasses.step`."""
        self._steps += 1
        self.is_read = True
        if with_branches and self.resting:
            self._go_back(ids)
            self._runs += 1
            return super().step(ids, new)
        if not with_branches and not self.resting:
            self.rest()
        self.read = new
        ahead = self._ahead
        if ahead is not None and ahead.used <= ahead.tokens.shape[1]:
            column = ahead.used - 1
            right = (self.pick(ids[:, -1]) == ahead.tokens[:, column]).tolist()
            if all(right):
                ahead.used += 1
                self.is_read = False
                self._accepted += len(right)
                return ahead.logits[column + 1]
        self._go_back(ids)
        self._runs += 1
        guesses = self._guess(ids, min(self.horizon - new - 1, self._drafter.speculation.tokens))
        if not guesses or not guesses[0]:
            logits = super().step(ids, new, with_branches)
            self._observe(ids, torch.empty(len(self.alive), 0, dtype=torch.long), [logits], new)
            return logits
        drafted = torch.tensor([[token for token, _ in row] for row in guesses], device=ids.device)
        read = self._read(ids, drafted)
        self._observe(ids, drafted, read, new)
        self._ahead = _Ahead(guesses, drafted, read)
        self._drafted += drafted.numel()
        return read[0]

    def rest(self) -> None:
        """Leave the extra branches out; see :meth:`BranchPasses.rest`."""
        self._go_back()
        super().rest()

    def reindex(self, sources: Mapping[int, int]) -> None:
        """Let rows continue other rows; see :meth:`BranchPasses.reindex`."""
        self._go_back()
        super().reindex(sources)

    def report(self) -> SpeculationReport:
        """The report on the run so far."""
        return SpeculationReport(self._steps, self._runs, self._drafted, self._accepted)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _guess(self, ids: Tensor, most: int) -> list[list[Guess]]:
        """Guesses for every row in the batch, the same number for each: that of the row with the fewest."""
        if most < 1:
            return []
        texts = ids.tolist()
        rows = [self._drafter.draft(row, texts[row], most) for row in self.alive]
        length = min(len(row) for row in rows)
        return [row[:length] for row in rows]

    def _read(self, ids: Tensor, drafted: Tensor) -> list[StepLogits]:
        """Read the newest tokens and the guesses in one pass; return the logits at every position."""
        tokens = torch.cat([self.pick(ids[:, -1:]), drafted], dim=1)
        logits = self._forward(self.running, tokens, keep=tokens.shape[1])
        return [step_logits(logits, position) for position in range(tokens.shape[1])]

    def _observe(self, ids: Tensor, drafted: Tensor, read: list[StepLogits], new: int) -> None:
        """Let the drafter learn the token that guidance prefers after every token that was read, right or wrong."""
        if self._drafter.speculation.draft == "prompt-lookup":
            return
        preferred = torch.stack([self._preferred(logits, new + n) for n, logits in enumerate(read)], dim=1).tolist()
        texts = ids.tolist()
        for row, sample in enumerate(self.alive):
            self._drafter.observe(sample, texts[sample], drafted[row].tolist(), preferred[row])

    def _preferred(self, logits: StepLogits, index: int) -> Tensor:
        """The most likely token of every row, (B,)."""
        if self.guidance is None or logits.extra is None:
            return logits.cond.argmax(-1)
        # Guesses may be wrong, so they need not know the likelihoods and classes of the text.
        zeros = torch.zeros(1 + len(logits.extra), len(logits.cond), device=logits.cond.device)
        step = Step.at(min(index, self.horizon - 1), self.horizon, likelihoods=zeros, class_log_probs=zeros)
        return guided_step(logits.cond, logits.extra, self.guidance, step, measure=False, greedy=True).scores.argmax(-1)

    def _go_back(self, ids: Tensor | None = None) -> None:
        """Drop the guesses that were not written. If ``ids`` are passed, learn from the first of them."""
        ahead = self._ahead
        self._ahead = None
        if ahead is None:
            return
        # Logits number n (from 0) follow guess n; the token after it was written, but not read yet.
        right = ahead.used - 1
        for row, guesses in enumerate(ahead.guesses):
            if ids is not None and right < len(guesses):
                hit = int(ids[self.alive[row], -1]) == guesses[right][0]
                self._drafter.judge(guesses[: right + 1], right + hit)
            else:
                self._drafter.judge(guesses[:right], right)
        surplus = ahead.tokens.shape[1] - right
        if not all(group.crop(surplus) for group in self.running.values()):
            raise RuntimeError("this cache cannot drop tokens")
