"""A batch of texts under a constraint: tokens with their weights, resampling, and what came of each text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..constraints import Session, UnsatisfiableError, Vocabulary
from ..guidance import AWRS
from . import awrs
from .lookahead import Ahead, Lookahead
from .population import Outcome, Weighed, twin
from .trie import Memory, TrieKnowledge

NO_TOKEN = "no token is allowed"
CAP = "max_rejects was reached"
LENGTH = "no text that may follow ends within the limit of tokens"
LIMIT = "the limit of tokens was reached before the text was complete"
ENDLESS = "the end token has no probability where the limit of tokens forces it (top_k or top_p may have cut it off)"
CRITIC = "the critic ruled the text out"
HOPELESS = -50.0
"""Log ψ below which a mask rules a token out."""
STOPPED = "a stopping criterion ended the text before it was complete"


@dataclass
class _Row:
    """One particle."""

    session: Session
    known: TrieKnowledge | None = None  # what was known where its last token was drawn
    length: int = 0
    open: bool = True
    finished: bool = False
    death: str | None = None
    potential: float = 0.0
    ahead: Ahead | None = None  # what is foreseen behind the text
    foreseen: float = 0.0  # its log ψ, which the weight holds

    def copy(self) -> _Row:
        return replace(self, session=self.session.fork())


class Constrained(Weighed):
    """Chooses tokens for the rows of one batch and keeps their weights.

    Args:
        guidance: what to do.
        session: the constraint in front of the first token.
        vocabulary: of the model.
        rows: number of rows, populations times particles.
        generator: randomness; None: torch's global generator. First candidates are drawn from it exactly as plain
            decoding draws its tokens; all other numbers of a step come from a twin that is seeded from its state, so
            that a step can be drawn again.
        device: of the scores.
        corrects: see :class:`Weighed`.
        limit: most tokens of a text; None: not known, and nothing is foreseen.
        lookahead: what is foreseen.
        prompts: token ids in front of each row, for what is foreseen.

    Raises:
        ValueError: nothing satisfies the constraint.
    """

    def __init__(
        self,
        guidance: AWRS,
        session: Session,
        vocabulary: Vocabulary,
        rows: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        corrects: bool = False,
        *,
        limit: int | None = None,
        lookahead: Lookahead | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(rows, guidance.particles, guidance.ess_threshold, guidance.resampling, generator, corrects)
        self.guidance, self.vocabulary = guidance, vocabulary
        self._generator = generator
        self._memory = Memory(vocabulary, max(64, 4 * rows))
        self._masks: dict[bytes, Tensor | None] = {}
        self._ends = torch.zeros(vocabulary.size, dtype=torch.bool)
        self._ends[sorted(vocabulary.ends)] = True
        self._device = torch.device(device)
        self._root = session
        self._calls = session.calls
        if not session.is_prefix(session.text):
            raise UnsatisfiableError(
                f"constraint={guidance.constraint!r} matches no text at all, so nothing is written"
            )
        self._limit, self._foresees = limit, lookahead is not None and limit is not None
        self._rows = [_Row(session.fork()) for _ in range(rows)]
        if lookahead is not None and limit is not None:
            for number, row in enumerate(self._rows):
                row.ahead = lookahead.begin(() if prompts is None else prompts[number])

    @property
    def weighs(self) -> bool:
        """Whether texts get weights."""
        return self.guidance.weighs

    @property
    def chooses(self) -> bool:
        """Whether it picks the tokens."""
        return self.weighs

    @property
    def open(self) -> list[bool]:
        """Rows that go on."""
        return [row.open for row in self._rows]

    @property
    def deaths(self) -> list[str | None]:
        """Why each row was given up, None for those that were not."""
        return [row.death for row in self._rows]

    # -- one step --------------------------------------------------------------------------------------------------

    def mask(self, scores: Tensor) -> Tensor:
        """``scores`` (B, V) with −inf where a token may not follow; rows where none may are given up."""
        masked = scores.clone()
        for number, row in enumerate(self._rows):
            if not row.open:
                continue
            allowed = self._mask_of(row)
            if allowed is None:
                known = self._memory.about(row.session, row.known)
                known.everything()
                row.known = known
                allowed = self._masks[row.session.text] = known.mask().to(self._device)
            possible = scores[number] != -math.inf
            ahead = self._following(row, scores[number], more=1)  # at the limit no end token is asked for here
            in_time = allowed if ahead is None else allowed & (ahead > HOPELESS)
            if bool((possible & in_time).any()):
                allowed = in_time
            if bool(possible[allowed].any()):
                masked[number].masked_fill_(~allowed, -math.inf)
            else:
                self._die(number, NO_TOKEN)
        return masked

    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """Draw a token for every row that goes on, with its weight.

        Args:
            scores: processed scores (B, V); their softmax is the distribution.
            last: the limit allows no token behind this one, so that texts have to end.

        Returns:
            Tokens (B,); what stands at rows that do not go on means nothing.
        """
        ahead = self._foresee(scores, last) if self._foresees else {}
        scores = self._twist(scores, ahead)
        masks = {number: self._mask_of(row, last) for number, row in enumerate(self._rows) if row.open}
        masked = scores
        exact = [number for number, mask in masks.items() if mask is not None]
        if exact:
            rows = torch.tensor(exact, device=scores.device)
            allowed = torch.stack([masks[number] for number in exact])  # type: ignore[misc]
            kept = scores[rows].float().masked_fill(~allowed, -math.inf)
            log_z = (kept.logsumexp(-1) - scores[rows].float().logsumexp(-1)).tolist()
            for number, value in zip(list(exact), log_z, strict=True):
                if value == -math.inf or math.isnan(value):
                    possible = bool(masks[number].any())  # type: ignore[union-attr]
                    reason = LENGTH if number in ahead and possible else NO_TOKEN
                    self._die(number, reason if not (last and self.vocabulary.ends) else ENDLESS if possible else LIMIT)
                else:
                    self.log_weights[number] += min(value, 0.0)
            alive = torch.tensor([self._rows[number].open for number in exact], device=scores.device)
            masked = scores.index_copy(0, rows[alive], kept[alive].to(scores.dtype))
        probs = torch.softmax(masked, dim=-1)
        asked = [number for number, mask in masks.items() if mask is None]
        uniforms = awrs.Uniforms(twin(self._generator)) if asked else None
        tokens = torch.multinomial(probs, num_samples=1, generator=self._generator).squeeze(1)
        if uniforms is not None:
            tokens = self._ask(asked, scores, probs, tokens, uniforms)
        for number, values in ahead.items():
            if self._rows[number].open:
                self._rows[number].foreseen = float(values[tokens[number]])
        return tokens

    def advance(self, tokens: Tensor, last: bool) -> None:
        """Write the tokens (B,) behind the rows that go on."""
        for number, (row, token) in enumerate(zip(self._rows, tokens.tolist(), strict=True)):
            if not row.open:
                continue
            row.length += 1
            if token in self.vocabulary.ends:
                self.log_weights[number] -= row.foreseen  # behind the end ψ is 1
                row.foreseen = 0.0
                row.open, row.finished = False, True
                continue
            row.session.advance(token)
            if row.ahead is not None:
                row.ahead = row.ahead.after(token)
                self._expect(number, row)
            if self.guidance.critic is not None:
                self._criticise(number, row)
            if last and row.open:
                self._close(number, LIMIT)

    def stop(self, going: Sequence[float]) -> None:
        """Close the rows that a stopping criterion ended, those where ``going`` (B,) is 0."""
        for number, flag in enumerate(going):
            if self._rows[number].open and not flag:
                self._close(number, STOPPED)

    def outcome(self) -> Outcome:
        """What came of the run."""
        return self._outcome(
            [row.finished for row in self._rows],
            [row.length for row in self._rows],
            self.deaths,
            self._root.calls - self._calls,
        )

    def _unshare(self) -> None:
        self._rows = [replace(row.copy(), known=None) for row in self._rows]
        self._memory = Memory(self.vocabulary, max(64, 4 * len(self._rows)))
        self._masks = {}

    def _move(self, ancestors: list[int]) -> None:
        self._rows = [self._rows[a] if a == i else self._rows[a].copy() for i, a in enumerate(ancestors)]

    # -- looking ahead ---------------------------------------------------------------------------------------------

    def _following(self, row: _Row, scores: Tensor | None = None, more: int = 0) -> Tensor | None:
        """Log ψ of what each token makes of the text, (V,), where ``more`` tokens may follow than the limit leaves."""
        if row.ahead is None or self._limit is None:
            return None
        values = row.ahead.following(self._limit - row.length - 1 + more, scores)
        return None if values is None else values.to(self._device)

    def _foresee(self, scores: Tensor, last: bool) -> dict[int, Tensor]:
        """The same for the rows of which it is known, at a step of :meth:`choose`; at the last one ψ is 1. Takes ψ of
        the texts so far out of the weights."""
        found = {}
        for number, row in enumerate(self._rows):
            if not row.open:
                continue
            self.log_weights[number] -= row.foreseen
            row.foreseen = 0.0
            values = None if last else self._following(row, scores[number])
            if values is not None:
                found[number] = values
        return found

    def _twist(self, scores: Tensor, ahead: dict[int, Tensor]) -> Tensor:
        """Scores times ψ, and what that makes of their sum in the weights."""
        if not ahead:
            return scores
        rows = torch.tensor(list(ahead), device=scores.device)
        plain = scores[rows].float()
        twisted = plain + torch.stack(list(ahead.values()))
        gains = (twisted.logsumexp(-1) - plain.logsumexp(-1)).tolist()
        for number, gain in zip(list(ahead), gains, strict=True):
            if gain == -math.inf or math.isnan(gain):
                self._die(number, LENGTH)
                del ahead[number]
            else:
                self.log_weights[number] += gain
        alive = torch.tensor([self._rows[number].open for number in rows.tolist()], device=scores.device)
        return scores.index_copy(0, rows[alive], twisted[alive].to(scores.dtype))

    def _expect(self, number: int, row: _Row) -> None:
        """Put ψ of the text into the weight, where it was not known before the text was written."""
        if row.foreseen == 0.0 and self.weighs and self._limit is not None and row.ahead is not None:
            row.foreseen = row.ahead.potential(self._limit - row.length)
            self.log_weights[number] += row.foreseen

    # -- parts -----------------------------------------------------------------------------------------------------

    def _ask(self, rows: list[int], scores: Tensor, probs: Tensor, tokens: Tensor, uniforms: awrs.Uniforms) -> Tensor:
        """Tokens and weights of the rows whose mask nobody knows, from questions."""
        trie = self._memory.trie
        index = torch.tensor(rows, device=scores.device)
        distribution = torch.log_softmax(scores[index].float(), dim=-1).cpu()[:, trie.order]
        shares = probs[index].float().cpu()[:, trie.order]
        firsts = trie.rank[tokens[index].cpu()].tolist()
        tokens = tokens.clone()
        for place, number in enumerate(rows):
            row = self._rows[number]
            row.known = self._know(number)
            done = awrs.draw(
                distribution[place],
                row.known,
                estimator=self.guidance.estimator,
                accepts=self.guidance.accepts,
                max_rejects=self.guidance.max_rejects,
                first=firsts[place],
                probs=shares[place],
                uniforms=uniforms,
            )
            if done.token < 0:
                self._die(number, NO_TOKEN if done.exhausted else CAP)
            else:
                self.log_weights[number] += min(done.log_weight, 0.0)
                tokens[number] = int(trie.order[done.token])
        return tokens

    def _know(self, number: int) -> TrieKnowledge:
        """What is known behind the text of a row."""
        row = self._rows[number]
        return self._memory.about(row.session, row.known)

    def _mask_of(self, row: _Row, last: bool = False) -> Tensor | None:
        """The tokens that may follow (V,), where the constraint knows them; at the last step the end tokens."""
        text = row.session.text
        if text not in self._masks:
            if len(self._masks) > 4 * len(self._rows):
                self._masks.clear()
            mask = row.session.mask()
            self._masks[text] = None if mask is None else mask.to(self._device)
        mask = self._masks[text]
        if not last or not self.vocabulary.ends:
            return mask
        complete = self._is_complete(row)
        return (self._ends if complete else torch.zeros_like(self._ends)).to(self._device)

    def _is_complete(self, row: _Row) -> bool:
        return self._memory.about(row.session, row.known).is_complete()

    def _criticise(self, number: int, row: _Row) -> None:
        assert self.guidance.critic is not None
        text = self.vocabulary_text(row.session.text)
        value = float(self.guidance.critic(text))
        if math.isnan(value) or value == math.inf:
            raise ValueError(f"critic gave {value} for {text!r}; it must give a log potential, finite or -inf")
        if value == -math.inf:
            self._die(number, CRITIC)
            return
        self.log_weights[number] += value - row.potential
        row.potential = value

    @staticmethod
    def vocabulary_text(text: bytes) -> str:
        """What a critic reads: the characters so far, with a mark in place of one that is not complete."""
        return text.decode("utf-8", errors="replace")

    def _close(self, number: int, reason: str) -> None:
        row = self._rows[number]
        if self._is_complete(row):
            self.log_weights[number] -= row.foreseen
            row.foreseen = 0.0
            row.open, row.finished = False, True
        else:
            self._die(number, reason)

    def _die(self, number: int, reason: str) -> None:
        self._rows[number].open = False
        self._rows[number].death = reason
        if self.weighs:
            self.log_weights[number] = -math.inf
