"""Texts under a constraint that are proposed by what earlier texts learned: CARS (Parys et al., arXiv 2510.01902) and
ASAp (Park et al., arXiv 2405.21047).

Behind a prefix ``u`` a token is drawn in proportion to ``p(a|u) θ(ua)``, with ``θ`` the mass of
:class:`textguide.smc.lessons.Prefix`: 0 where nothing can follow, 1 where nothing is known. Let ``θ'(u)`` be the value
with which ``u`` itself was drawn, and ``S(u) = Σ p(a|u) θ(ua) 1(a may follow)`` what is known now. The product of
``S(u)/θ'(u)`` along a text, times ``θ'`` of the empty one, is ``p`` over the probability with which the text was drawn.
Every factor is at most 1, so that it can be a weight (ASAp) or the probability of going on (CARS), and neither depends
on what is learned in the meantime, by other rows or other threads: whatever ``θ`` was, a try ends in the member ``x``
with probability ``p(x)/θ'``. Where the constraint is only asked about tokens, the draw of :mod:`textguide.smc.awrs`
and its weight, whose expectation is the indicator, stand for the mask.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..constraints import Session, Vocabulary
from ..guidance import AWRS
from .constrained import LIMIT, NO_TOKEN, Constrained, _Row
from .lessons import Lessons, Prefix, merged
from .lookahead import Lookahead
from .population import Outcome
from .trie import TrieKnowledge

TRIES = "max_tries was reached"
HOPELESS = "nothing that the model writes within the limit of tokens satisfies the constraint"
AGAIN = "the draw fell on what is ruled out"


class Learning(Constrained):
    """Chooses tokens by what is known of prefixes, and learns from them; arguments as for :class:`Constrained`.

    Args:
        lessons: what is known.
        keys: of each population, what its tree depends on; equal ones share it.
    """

    def __init__(
        self,
        guidance: AWRS,
        session: Session,
        vocabulary: Vocabulary,
        rows: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        *,
        lessons: Lessons,
        keys: Sequence[Hashable],
        limit: int | None = None,
        lookahead: Lookahead | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(guidance, session, vocabulary, rows, generator, device, limit=limit, lookahead=lookahead,
                         prompts=prompts)  # fmt: skip
        self._foreseen: dict[int, Tensor] = {}  # log ψ of this step
        self._fresh = [row.ahead for row in self._rows]
        self._lessons = lessons
        self._roots = [lessons.root(keys[number // self.size]) for number in range(rows)]
        self._tries = [0] * rows
        self._exposure = [0.0] * (rows // self.size)
        self._told: dict[int, weakref.ref[TrieKnowledge]] = {}
        self._at: list[Prefix | None] = [None] * rows
        self._bound = [0.0] * rows  # log θ' of the place of each row
        for number in range(rows):
            self._begin(number)

    @property
    def repeats(self) -> bool:
        """Whether texts that fail begin again."""
        return self.guidance.sampler == "cars"

    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """Draw a token for every row that goes on; see the module."""
        going = [number for number, opened in enumerate(self.open) if opened]
        index = torch.tensor(going, device=scores.device)
        known, proposed = {}, scores.clone()
        for number in going:
            place = self._at[number]
            tokens, masses = self._lessons.bounds(place) if place is not None else ([], [])
            known[number] = dict(zip(tokens, masses, strict=True))
            if tokens:
                proposed[number, tokens] += torch.tensor(masses, device=scores.device).log().to(scores.dtype)
        shares = (proposed[index].double().logsumexp(-1) - scores[index].double().logsumexp(-1)).tolist()
        for number, share in zip(going, shares, strict=True):
            if share == -math.inf or math.isnan(share):
                self._die(number, NO_TOKEN)
                proposed[number] = scores[number]
        before = self.log_weights.clone()
        self._foreseen = {}
        chosen = super().choose(proposed, last)
        for number, share in zip(going, shares, strict=True):
            if not self._rows[number].open:
                continue
            gained = float(self.log_weights[number] - before[number]) + min(share, 0.0) - self._bound[number]
            self.log_weights[number] = before[number] + (0.0 if self.repeats else gained)
            mass = known[number].get(int(chosen[number]), 1.0)
            self._bound[number] = math.log(mass) if mass > 0 else 0.0
            if self.repeats and float(torch.rand((), generator=self._twin, dtype=torch.float64)) >= math.exp(
                min(gained, 0.0)
            ):
                self._die(number, AGAIN)
        for number in going:
            self._note(number, scores[number], int(chosen[number]), last)
        return chosen

    def advance(self, tokens: Tensor, last: bool) -> None:
        """Write the tokens (B,) behind the rows that go on."""
        going = self.open
        super().advance(tokens, last)
        for number, row in enumerate(self._rows):
            if not going[number]:
                continue
            place, token = self._at[number], int(tokens[number])
            self._at[number] = None if place is None or row.finished else place.children.get(token)
            if row.death == LIMIT and self._at[number] is not None:
                with self._lessons.lock:
                    self._at[number].close()  # type: ignore[union-attr]

    def resample(self) -> Tensor | None:
        """As for every population; texts that begin again have equal weights."""
        return None if self.repeats else super().resample()

    def again(self) -> list[int]:
        """Rows that begin once more with the prompt; they are open now."""
        if not self.repeats:
            return []
        failed = [number for number, row in enumerate(self._rows) if not row.finished]
        hopeful = [number for number in failed if self._roots[number].mass > 0]
        rows = [number for number in hopeful if self._tries[number] < self.guidance.max_tries]
        for number in hopeful:
            if number not in rows:
                self._rows[number].death = TRIES
        for number in rows:
            self._rows[number] = replace(self._rows[number], session=self._root.fork(), known=None, length=0, open=True,
                                         death=None, ahead=self._fresh[number], foreseen=0.0)  # fmt: skip
            self._begin(number)
        return rows

    def outcome(self) -> Outcome:
        """What came of the run."""
        outcome = super().outcome()
        if not self.repeats:
            return outcome
        accepted = outcome.finished.view(-1, self.size).sum(-1).double()
        exposure = torch.tensor(self._exposure, dtype=torch.float64).clamp_min(1e-300)
        estimate = (accepted / exposure).log().clamp(max=0.0)
        return replace(outcome, log_evidence=estimate, tries=list(self._tries))

    # -- parts -----------------------------------------------------------------------------------------------------

    def _begin(self, number: int) -> None:
        """Let a row stand in front of its first token."""
        root = self._at[number] = self._roots[number]
        if root.mass == 0:
            self._die(number, HOPELESS)
            return
        self._bound[number] = math.log(root.mass)
        self._tries[number] += 1
        self._exposure[number // self.size] += 1 / root.mass
        self.log_weights[number] = 0.0 if self.repeats else self._bound[number]

    def _note(self, number: int, scores: Tensor, token: int, last: bool) -> None:
        """Learn from one row's step, from ``scores`` (V,) of the model itself."""
        place, row = self._at[number], self._rows[number]
        if place is None:
            return
        mask = self._mask_of(row, last)
        if mask is None:
            trie, known = self._memory.trie, row.known
            assert known is not None
            with self._lessons.lock:
                place.rejected = merged([*place.rejected, *known.rejected])
                spans = place.rejected
            allowed = torch.ones(self.vocabulary.size, dtype=torch.bool)
            for low, high in spans:
                allowed[trie.order[low:high]] = False
        else:
            allowed = mask.cpu()
        ahead = self._foreseen.get(number)
        if ahead is not None:
            allowed = allowed & (ahead.cpu() > -math.inf)
        follows = row.open and token not in self.vocabulary.ends
        probs = scores.double().softmax(-1).cpu()
        self._lessons.learn(place, self._roots[number], probs, allowed, token if follows else None)

    def _foresee(self, scores: Tensor, last: bool) -> dict[int, Tensor]:
        found = super()._foresee(scores, last)
        self._foreseen = dict(found)
        return found

    def _following(self, row: _Row, scores: Tensor | None = None, more: int = 0) -> Tensor | None:
        """As for all constraints; where texts begin again, of what is foreseen only what it rules out, since the
        probability of going on needs a bound and no guess."""
        values = super()._following(row, scores, more)
        if values is None or not self.repeats:
            return values
        return torch.where(values > -math.inf, 0.0, values)

    def _expect(self, number: int, row: _Row) -> None:
        if not self.repeats:
            super()._expect(number, row)

    def _know(self, number: int) -> TrieKnowledge:
        known, place = super()._know(number), self._at[number]
        told = self._told.get(id(known))
        if place is not None and place.rejected and (told is None or told() is not known):
            # What the bound of this place rests on must stay known, however long ago it was asked.
            known.rejected.extend(place.rejected)
            self._told[id(known)] = weakref.ref(known)
        return known

    def _move(self, ancestors: list[int]) -> None:
        super()._move(ancestors)
        self._at = [self._at[a] for a in ancestors]
        self._bound = [self._bound[a] for a in ancestors]

    def _unshare(self) -> None:
        super()._unshare()
        self._at, self._bound, self._told = list(self._at), list(self._bound), {}
