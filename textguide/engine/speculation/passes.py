"""Forward passes that read guesses too, behind the same interface: the law of one position a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...forward import caches
from ...guidance.algebra import log_softmax
from ...guidance.base import BranchGuidance, Step
from ..branch_passes import Law, Passes, Source
from .drafts import Drafter, Guess
from .value import Speculation, SpeculationReport


@dataclass
class _Ahead:
    """What one pass read beyond the newest token.

    Args:
        guesses: of every row, with their kinds, equally many.
        tokens: the guesses (B, k).
        laws: of every position, k + 1.
        given: laws that were handed out.
    """

    guesses: list[list[Guess]]
    tokens: Tensor
    laws: list[Law]
    given: int = 1


class SpeculativePasses(Passes):
    """Passes of one run that read guesses beside the newest token of every row.

    A step whose newest tokens are the guessed ones in all rows takes the law that is at hand. Otherwise the guesses
    from there on are forgotten by every branch, and a new pass reads the token that was written in their place. Rows
    of a batch go as far as all of them were guessed right. Sleeping, leaving and moving rows first go back to what was
    written.

    Args:
        speculation: what to guess.
        guidance: says what the branches prefer together, for guesses.
        horizon: most tokens that the run writes.

    Raises:
        ValueError: a model cannot forget what it read.
    """

    def __init__(
        self,
        model: Any,
        branches: Sequence[Any],
        prompts: Sequence[Sequence[Sequence[int]] | Source],
        models: Mapping[str, Any] | None = None,
        copies: int = 1,
        *,
        speculation: Speculation,
        guidance: BranchGuidance | None,
        horizon: int,
    ) -> None:
        super().__init__(model, branches, prompts, models, copies)
        for owner in self.owners.values():
            if not caches.can_crop(caches.new_cache(owner)):
                raise ValueError(
                    f"speculation={speculation.draft!r} reads guesses that have to be forgotten where they were wrong, "
                    f"and {type(owner).__name__} keeps a recurrent state or a sliding window, which cannot go back; "
                    "leave speculation out"
                )
        self.guidance, self.horizon = guidance, horizon
        self._drafter = Drafter(speculation)
        self._ahead: _Ahead | None = None
        self._steps = self._runs = self._drafted = self._accepted = 0

    def prefill(self, ids: Tensor, model_kwargs: dict[str, Any]) -> Law:
        """Read every branch's prompt; see :meth:`Passes.prefill`."""
        law = super().prefill(ids, model_kwargs)
        for group in self.running.values():
            group.lane.guided = True  # several tokens a pass do not keep the bits of plain decoding anyway
        return law

    def step(self, ids: Tensor, new: int, waking: Sequence[int] = (), measure: bool = False) -> Law:
        """The law behind the newest token of every row that is alive; see :meth:`Passes.step`."""
        self._steps += 1
        ahead = self._ahead
        if ahead is not None and not waking and ahead.given <= ahead.tokens.shape[1]:
            column = ahead.given - 1
            right = (ids[self._rows(ids), -1] == ahead.tokens[:, column]).tolist()
            if all(right):
                ahead.given += 1
                self._accepted += len(right)
                return ahead.laws[column + 1]
        self._go_back(ids)
        self._runs += 1
        guesses = [] if waking else self._guess(ids, min(self.horizon - new - 1, self._drafter.speculation.tokens))
        if not guesses or not guesses[0]:
            law = super().step(ids, new, waking, measure)
            if not waking:
                self._observe(ids, torch.empty(len(self.alive), 0, dtype=torch.long), [law], new)
            return law
        drafted = torch.tensor([[token for token, _ in row] for row in guesses], device=ids.device)
        laws = self._read(ids, drafted)
        self._observe(ids, drafted, laws, new)
        self._ahead = _Ahead(guesses, drafted, laws)
        self._drafted += drafted.numel()
        return laws[0]

    def sleep(self, samples: Sequence[int]) -> None:
        """Take extra branches out of the pass; see :meth:`Passes.sleep`."""
        self._go_back()
        super().sleep(samples)

    def drop(self, samples: Sequence[int]) -> None:
        """Let finished rows leave; see :meth:`Passes.drop`."""
        self._go_back()
        super().drop(samples)

    def reindex(self, sources: Mapping[int, int]) -> None:
        """Let rows go on from others; see :meth:`Passes.reindex`."""
        self._go_back()
        super().reindex(sources)

    def report(self) -> SpeculationReport:
        """What speculation did so far."""
        return SpeculationReport(self._steps, self._runs, self._drafted, self._accepted)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _rows(self, ids: Tensor) -> Tensor:
        return torch.tensor(self.alive, device=ids.device)

    def _guess(self, ids: Tensor, most: int) -> list[list[Guess]]:
        """Guesses for every row that is alive, equally many: those that every row has."""
        if most < 1:
            return []
        texts = ids.tolist()
        rows = [self._drafter.draft(row, texts[row], most) for row in self.alive]
        length = min(len(row) for row in rows)
        return [row[:length] for row in rows]

    def _read(self, ids: Tensor, drafted: Tensor) -> list[Law]:
        """One pass over the newest tokens and the guesses: the law of every position."""
        place = {sample: row for row, sample in enumerate(self.alive)}
        slots: list[tuple[int, int]] = []
        logits = []
        for group in self.running.values():
            rows = torch.tensor([place[sample] for _, sample in group.slots], device=ids.device)
            newest = ids[group.samples.to(ids.device), -1:]
            out = group.lane.forward(torch.cat([newest, drafted[rows]], dim=1), keep=drafted.shape[1] + 1)
            group.read += drafted.shape[1] + 1
            logits.append(out.to(ids.device))
            slots += group.slots
        plan = self._planned(slots, ids.device)
        together = torch.cat(logits)
        return [plan.law(together[:, position], []) for position in range(together.shape[1])]

    def _observe(self, ids: Tensor, drafted: Tensor, laws: list[Law], new: int) -> None:
        """Let the drafter learn what the guided law prefers behind every token that was read, right or wrong."""
        if self._drafter.speculation.draft == "prompt-lookup":
            return
        preferred = torch.stack([self._preferred(law, new + n) for n, law in enumerate(laws)], dim=1).tolist()
        texts = ids.tolist()
        for row, sample in enumerate(self.alive):
            self._drafter.observe(sample, texts[sample], drafted[row].tolist(), preferred[row])

    def _preferred(self, law: Law, index: int) -> Tensor:
        """The most likely token of every row, (B,)."""
        if self.guidance is None or law.extra is None or law.awake is not None:
            return law.cond.argmax(-1)
        logp = log_softmax(torch.cat([law.cond[None], law.extra]))
        return self.guidance.combine(logp, Step.at(min(index, self.horizon - 1), self.horizon)).argmax(-1)

    def _go_back(self, ids: Tensor | None = None) -> None:
        """Forget the guesses that were not written, and learn from the first of them where ``ids`` are given."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return
        # Law number n (from 0) is the one behind guess n; the token that follows it was written, but not read yet.
        right = ahead.given - 1
        for row, guesses in enumerate(ahead.guesses):
            if ids is not None and right < len(guesses):
                hit = int(ids[self.alive[row], -1]) == guesses[right][0]
                self._drafter.judge(guesses[: right + 1], right + hit)
            else:
                self._drafter.judge(guesses[:right], right)
        surplus = ahead.tokens.shape[1] - right
        for group in self.running.values():
            group.forget(surplus)
