"""Texts under a constraint whose proposal learns from earlier texts: CARS (Parys et al., arXiv 2510.01902) and ASAp
(Park et al., arXiv 2405.21047).

After a prefix ``u`` a token is drawn in proportion to ``p(a|u) θ(ua)``, where ``θ`` is the mass of
:class:`textguide.smc.lessons.Prefix`: 0 if nothing can follow, 1 if nothing is known. Let ``θ'(u)`` be the value with
which ``u`` itself was drawn, and ``S(u) = Σ p(a|u) θ(ua) 1(a is allowed)`` the present value. The product of
``S(u)/θ'(u)`` along a text, times ``θ'`` of the empty text, is ``p`` over the probability of drawing the text.

Every factor is at most 1, so it can be a weight (ASAp) or the probability of continuing (CARS). Neither depends on what
other rows or threads learn in the meantime: whatever ``θ`` was, a try ends in the member ``x`` with probability
``p(x)/θ'``. If the constraint has no mask, the draw of :mod:`textguide.smc.awrs` and its weight, whose expectation is
the indicator, replace the mask.
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
    """Chooses tokens by what is known about prefixes, and learns from them; other arguments as for
    :class:`Constrained`.

    Args:
        lessons: the knowledge about prefixes.
        keys: for each population everything that its tree depends on; populations with equal keys share one tree.
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
        super().__init__(
            guidance, session, vocabulary, rows, generator, device, limit=limit, lookahead=lookahead, prompts=prompts
        )
        self._log_psi: dict[int, Tensor] = {}  # of this step, by row
        self._first_ahead = [row.ahead for row in self._rows]
        self._lessons = lessons
        self._roots = [lessons.root(keys[number // self.size]) for number in range(rows)]
        self._tries = [0] * rows
        self._exposure = [0.0] * (rows // self.size)  # for each population the sum of 1/θ' over its tries
        self._informed: dict[int, weakref.ref[TrieKnowledge]] = {}
        self._prefixes: list[Prefix | None] = [None] * rows
        self._bound = [0.0] * rows  # log θ' of the prefix of each row
        for number in range(rows):
            self._begin(number)

    @property
    def repeats(self) -> bool:
        """Whether texts that fail are restarted."""
        return self.guidance.sampler == "cars"

    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """Draw a token for every open row; see the module."""
        rows = [number for number, is_open in enumerate(self.open) if is_open]
        masses = {number: self._known_masses(number) for number in rows}
        proposed, log_shares = self._propose(scores, masses)
        before = self.log_weights.clone()
        self._log_psi = {}
        tokens = super().choose(proposed, last)
        for number, log_share in log_shares.items():
            if not self._rows[number].open:
                continue
            gain = float(self.log_weights[number] - before[number]) + min(log_share, 0.0) - self._bound[number]
            self.log_weights[number] = before[number] + (0.0 if self.repeats else gain)
            mass = masses[number].get(int(tokens[number]), 1.0)
            self._bound[number] = math.log(mass) if mass > 0 else 0.0
            if self.repeats and self._uniform() >= math.exp(min(gain, 0.0)):
                self._die(number, AGAIN)
        for number in rows:
            self._note(number, scores[number], int(tokens[number]), last)
        return tokens

    def _known_masses(self, number: int) -> dict[int, float]:
        """θ by token, for the tokens after a row's prefix about which something is known."""
        prefix = self._prefixes[number]
        return {} if prefix is None else self._lessons.bounds(prefix)

    def _propose(self, scores: Tensor, masses: dict[int, dict[int, float]]) -> tuple[Tensor, dict[int, float]]:
        """Multiply the scores of open rows by θ; rows without any mass left are given up.

        Returns:
            The new scores (B, V), and for each row the log of the mass that θ leaves.
        """
        rows = torch.tensor(list(masses), device=scores.device)
        proposed = scores.clone()
        for number, known in masses.items():
            if known:
                theta = torch.tensor(list(known.values()), device=scores.device)
                proposed[number, list(known)] += theta.log().to(scores.dtype)
        log_shares = (proposed[rows].double().logsumexp(-1) - scores[rows].double().logsumexp(-1)).tolist()
        for number, log_share in zip(masses, log_shares, strict=True):
            if log_share == -math.inf or math.isnan(log_share):
                self._die(number, NO_TOKEN)
                proposed[number] = scores[number]
        return proposed, dict(zip(masses, log_shares, strict=True))

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._twin, dtype=torch.float64))

    def advance(self, tokens: Tensor, last: bool) -> None:
        """Append the tokens (B,) to the open rows."""
        was_open = self.open
        super().advance(tokens, last)
        for number, row in enumerate(self._rows):
            if not was_open[number]:
                continue
            before = self._prefixes[number]
            prefix = None if before is None or row.finished else before.children.get(int(tokens[number]))
            self._prefixes[number] = prefix
            if row.death == LIMIT and prefix is not None:
                with self._lessons.lock:
                    prefix.close()

    def resample(self) -> Tensor | None:
        """As :meth:`Weighed.resample`; never for texts that are restarted, because their weights are equal."""
        return None if self.repeats else super().resample()

    def again(self) -> list[int]:
        """Restart rows that failed and may still succeed; returns them."""
        if not self.repeats:
            return []
        failed = [number for number, row in enumerate(self._rows) if not row.finished]
        hopeful = [number for number in failed if self._roots[number].mass > 0]
        rows = [number for number in hopeful if self._tries[number] < self.guidance.max_tries]
        for number in hopeful:
            if number not in rows:
                self._rows[number].death = TRIES
        for number in rows:
            self._rows[number] = replace(
                self._rows[number],
                session=self._root.fork(),
                known=None,
                length=0,
                open=True,
                death=None,
                ahead=self._first_ahead[number],
                log_psi=0.0,
            )
            self._begin(number)
        return rows

    def outcome(self) -> Outcome:
        """The outcome of the run; restarted texts estimate the evidence by their rate of success."""
        outcome = super().outcome()
        if not self.repeats:
            return outcome
        accepted = outcome.finished.view(-1, self.size).sum(-1).double()
        exposure = torch.tensor(self._exposure, dtype=torch.float64).clamp_min(1e-300)
        estimate = (accepted / exposure).log().clamp(max=0.0)
        return replace(outcome, log_evidence=estimate, tries=list(self._tries))

    # -- details ---------------------------------------------------------------------------------------------------

    def _begin(self, number: int) -> None:
        """Set a row to the start of its text."""
        root = self._roots[number]
        self._prefixes[number] = root
        if root.mass == 0:
            self._die(number, HOPELESS)
            return
        self._bound[number] = math.log(root.mass)
        self._tries[number] += 1
        self._exposure[number // self.size] += 1 / root.mass
        self.log_weights[number] = 0.0 if self.repeats else self._bound[number]

    def _note(self, number: int, scores: Tensor, token: int, last: bool) -> None:
        """Learn from one step of a row.

        Args:
            number: the row.
            scores: those of the model, (V,).
            token: the token that was drawn.
            last: whether it is the last one within the limit.
        """
        prefix = self._prefixes[number]
        row = self._rows[number]
        if prefix is None:
            return
        mask = self._mask_of(row, last)
        if mask is None:
            trie = self._memory.trie
            assert row.known is not None
            with self._lessons.lock:
                prefix.rejected = merged([*prefix.rejected, *row.known.rejected])
                spans = prefix.rejected
            allowed = torch.ones(self.vocabulary.size, dtype=torch.bool)
            for low, high in spans:
                allowed[trie.order[low:high]] = False
        else:
            allowed = mask.cpu()
        log_psi = self._log_psi.get(number)
        if log_psi is not None:
            allowed = allowed & (log_psi.cpu() > -math.inf)
        follows = row.open and token not in self.vocabulary.ends
        probs = scores.double().softmax(-1).cpu()
        self._lessons.learn(prefix, self._roots[number], probs, allowed, token if follows else None)

    def _look_ahead(self, scores: Tensor, last: bool) -> dict[int, Tensor]:
        log_psi = super()._look_ahead(scores, last)
        self._log_psi = dict(log_psi)
        return log_psi

    def _following(self, row: _Row, scores: Tensor | None = None, more: int = 0) -> Tensor | None:
        """As :meth:`Constrained._following`; for texts that are restarted only the tokens that it rules out.

        The probability of continuing needs an upper bound, and the other values are guesses.
        """
        values = super()._following(row, scores, more)
        if values is None or not self.repeats:
            return values
        return torch.where(values > -math.inf, 0.0, values)

    def _add_potential(self, number: int, row: _Row) -> None:
        if not self.repeats:
            super()._add_potential(number, row)

    def _know(self, number: int) -> TrieKnowledge:
        known = super()._know(number)
        prefix = self._prefixes[number]
        informed = self._informed.get(id(known))
        if prefix is not None and prefix.rejected and (informed is None or informed() is not known):
            # The bound of this prefix relies on these rejections, so they must be known, however long ago they were.
            known.rejected.extend(prefix.rejected)
            self._informed[id(known)] = weakref.ref(known)
        return known

    def _move(self, ancestors: list[int]) -> None:
        super()._move(ancestors)
        self._prefixes = [self._prefixes[ancestor] for ancestor in ancestors]
        self._bound = [self._bound[ancestor] for ancestor in ancestors]

    def _unshare(self) -> None:
        super()._unshare()
        self._prefixes = list(self._prefixes)
        self._bound = list(self._bound)
        self._informed = {}
