"""A batch of texts under a constraint: tokens and their weights, resampling, and the outcome of each text."""

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
"""Log ψ at and below which :meth:`Constrained.mask` rules a token out."""
STOPPED = "a stopping criterion ended the text before it was complete"


@dataclass
class _Row:
    """One particle.

    Args:
        session: the constraint after its text.
        known: knowledge about the text before its last token.
        length: number of tokens.
        open: whether the text continues.
        finished: whether it ended as a member of the constraint.
        death: why it was given up.
        potential: the critic's value of the text, which the weight contains.
        ahead: the lookahead after its text.
        log_psi: log ψ of its text, which the weight contains.
    """

    session: Session
    known: TrieKnowledge | None = None
    length: int = 0
    open: bool = True
    finished: bool = False
    death: str | None = None
    potential: float = 0.0
    ahead: Ahead | None = None
    log_psi: float = 0.0

    def copy(self) -> _Row:
        return replace(self, session=self.session.fork())


class Constrained(Weighed):
    """Chooses tokens for the rows of one batch and keeps their weights.

    Args:
        guidance: the constraint and its settings.
        session: the constraint before the first token.
        vocabulary: the model's vocabulary.
        rows: number of rows, populations times particles.
        generator: randomness; None: torch's global generator. First candidates are drawn from it exactly as plain
            decoding draws its tokens. All other random numbers of a step come from a twin that is seeded from its
            state, so that a step can be repeated.
        device: the device of the scores.
        corrects: see :class:`Weighed`.
        limit: largest number of tokens of a text; None: not known, and the lookahead is not used.
        lookahead: estimates whether texts can still become members.
        prompts: token ids before each row, for the lookahead.

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
        self.guidance = guidance
        self.vocabulary = vocabulary
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
                f"constraint={guidance.constraint!r} matches no text at all, so nothing can be generated"
            )
        self._limit = limit
        self._looks_ahead = lookahead is not None and limit is not None
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
        """For each row whether its text continues."""
        return [row.open for row in self._rows]

    @property
    def deaths(self) -> list[str | None]:
        """Why each row was given up; None for the others."""
        return [row.death for row in self._rows]

    # -- one step --------------------------------------------------------------------------------------------------

    def mask(self, scores: Tensor) -> Tensor:
        """``scores`` (B, V) with −inf for tokens that are not allowed; rows without an allowed token are given up."""
        masked = scores.clone()
        for number, row in enumerate(self._rows):
            if not row.open:
                continue
            allowed = self._mask_of(row)
            if allowed is None:
                known = self._memory.about(row.session, row.known)
                known.find_all()
                row.known = known
                allowed = self._masks[row.session.text] = known.mask().to(self._device)
            possible = scores[number] != -math.inf
            # One token more than the limit leaves: unlike `choose`, this does not force an end token at the limit.
            ahead = self._following(row, scores[number], more=1)
            in_time = allowed if ahead is None else allowed & (ahead > HOPELESS)
            if bool((possible & in_time).any()):
                allowed = in_time
            if bool(possible[allowed].any()):
                masked[number].masked_fill_(~allowed, -math.inf)
            else:
                self._die(number, NO_TOKEN)
        return masked

    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """Draw a token for every open row, with its weight.

        Args:
            scores: processed scores (B, V); their softmax is the distribution.
            last: the limit allows no token after this one, so texts have to end.

        Returns:
            Tokens (B,); the values of rows that are not open have no meaning.
        """
        log_psi = self._look_ahead(scores, last) if self._looks_ahead else {}
        scores = self._twist(scores, log_psi)
        masks = {number: self._mask_of(row, last) for number, row in enumerate(self._rows) if row.open}
        known = {number: mask for number, mask in masks.items() if mask is not None}
        unknown = [number for number, mask in masks.items() if mask is None]
        masked = self._apply_masks(scores, known, log_psi, last) if known else scores
        probs = torch.softmax(masked, dim=-1)
        # The twin is seeded before the generator moves, so that the step can be repeated from its state.
        uniforms = awrs.Uniforms(twin(self._generator)) if unknown else None
        tokens = torch.multinomial(probs, num_samples=1, generator=self._generator).squeeze(1)
        if uniforms is not None:
            tokens = self._draw(unknown, scores, probs, tokens, uniforms)
        for number, values in log_psi.items():
            if self._rows[number].open:
                self._rows[number].log_psi = float(values[tokens[number]])
        return tokens

    def _apply_masks(self, scores: Tensor, masks: dict[int, Tensor], log_psi: dict[int, Tensor], last: bool) -> Tensor:
        """Scores (B, V) with −inf for the tokens that the masks of some rows rule out.

        Multiplies the weights of these rows by the mass that is left; rows without any are given up.
        """
        rows = torch.tensor(list(masks), device=scores.device)
        masked = scores[rows].float().masked_fill(~torch.stack(list(masks.values())), -math.inf)
        log_mass = (masked.logsumexp(-1) - scores[rows].float().logsumexp(-1)).tolist()
        for (number, mask), value in zip(masks.items(), log_mass, strict=True):
            if value == -math.inf or math.isnan(value):
                self._die(number, self._reason(bool(mask.any()), number in log_psi, last))
            else:
                self.log_weights[number] += min(value, 0.0)
        alive = torch.tensor([self._rows[number].open for number in masks], device=scores.device)
        return scores.index_copy(0, rows[alive], masked[alive].to(scores.dtype))

    def _reason(self, is_allowed: bool, is_twisted: bool, last: bool) -> str:
        """Why no token has any mass; ``is_allowed``: the constraint allows some."""
        if last and self.vocabulary.ends:
            return ENDLESS if is_allowed else LIMIT
        return LENGTH if is_twisted and is_allowed else NO_TOKEN

    def advance(self, tokens: Tensor, last: bool) -> None:
        """Append the tokens (B,) to the open rows."""
        for number, (row, token) in enumerate(zip(self._rows, tokens.tolist(), strict=True)):
            if not row.open:
                continue
            row.length += 1
            if token in self.vocabulary.ends:
                self.log_weights[number] -= row.log_psi  # ψ of a finished text is 1
                row.log_psi = 0.0
                row.open = False
                row.finished = True
                continue
            row.session.advance(token)
            if row.ahead is not None:
                row.ahead = row.ahead.after(token)
                self._add_potential(number, row)
            if self.guidance.critic is not None:
                self._add_critic(number, row)
            if last and row.open:
                self._close(number, LIMIT)

    def stop(self, going: Sequence[float]) -> None:
        """Close the rows that a stopping criterion ended: those for which ``going`` (B,) is 0."""
        for number, flag in enumerate(going):
            if self._rows[number].open and not flag:
                self._close(number, STOPPED)

    def outcome(self) -> Outcome:
        """The outcome of the run."""
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
        rows = []
        for number, ancestor in enumerate(ancestors):
            row = self._rows[ancestor]
            rows.append(row if ancestor == number else row.copy())
        self._rows = rows

    # -- looking ahead ---------------------------------------------------------------------------------------------

    def _following(self, row: _Row, scores: Tensor | None = None, more: int = 0) -> Tensor | None:
        """Log ψ of the text followed by each token, (V,), with ``more`` tokens left than the limit allows.

        Returns:
            None if ψ is 1 for every token, or not known.
        """
        if row.ahead is None or self._limit is None:
            return None
        values = row.ahead.following(self._limit - row.length - 1 + more, scores)
        return None if values is None else values.to(self._device)

    def _look_ahead(self, scores: Tensor, last: bool) -> dict[int, Tensor]:
        """:meth:`_following` by row, for a step of :meth:`choose`; ψ is 1 at the last step.

        Removes ψ of the texts so far from the weights.
        """
        log_psi = {}
        for number, row in enumerate(self._rows):
            if not row.open:
                continue
            self.log_weights[number] -= row.log_psi
            row.log_psi = 0.0
            values = None if last else self._following(row, scores[number])
            if values is not None:
                log_psi[number] = values
        return log_psi

    def _twist(self, scores: Tensor, ahead: dict[int, Tensor]) -> Tensor:
        """Multiply the scores by ψ, and the weights by what that does to the sum of the scores."""
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

    def _add_potential(self, number: int, row: _Row) -> None:
        """Multiply the weight by ψ of the text, if it was not known before the text was written."""
        if row.log_psi == 0.0 and self.weighs and self._limit is not None and row.ahead is not None:
            row.log_psi = row.ahead.potential(self._limit - row.length)
            self.log_weights[number] += row.log_psi

    # -- details ---------------------------------------------------------------------------------------------------

    def _draw(self, rows: list[int], scores: Tensor, probs: Tensor, tokens: Tensor, uniforms: awrs.Uniforms) -> Tensor:
        """Tokens and weights of the rows whose mask is not known, by rejection sampling.

        Args:
            rows: the rows.
            scores: those of all rows, (B, V).
            probs: their softmax.
            tokens: first candidates of all rows, (B,).
            uniforms: all other random numbers.

        Returns:
            The tokens of all rows, (B,).
        """
        trie = self._memory.trie
        index = torch.tensor(rows, device=scores.device)
        distribution = torch.log_softmax(scores[index].float(), dim=-1).cpu()[:, trie.order]
        probabilities = probs[index].float().cpu()[:, trie.order]
        firsts = trie.rank[tokens[index].cpu()].tolist()
        tokens = tokens.clone()
        for position, number in enumerate(rows):
            row = self._rows[number]
            row.known = self._know(number)
            draw = awrs.draw(
                distribution[position],
                row.known,
                estimator=self.guidance.estimator,
                accepts=self.guidance.accepts,
                max_rejects=self.guidance.max_rejects,
                first=firsts[position],
                probs=probabilities[position],
                uniforms=uniforms,
            )
            if draw.token < 0:
                self._die(number, NO_TOKEN if draw.exhausted else CAP)
            else:
                self.log_weights[number] += min(draw.log_weight, 0.0)
                tokens[number] = int(trie.order[draw.token])
        return tokens

    def _know(self, number: int) -> TrieKnowledge:
        """The knowledge about the tokens after the text of a row."""
        row = self._rows[number]
        return self._memory.about(row.session, row.known)

    def _mask_of(self, row: _Row, last: bool = False) -> Tensor | None:
        """The allowed tokens (V,), at the last step only end tokens; None if the constraint does not know them."""
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

    def _add_critic(self, number: int, row: _Row) -> None:
        """Multiply the weight by the ratio of the critic's potentials after and before the last token."""
        assert self.guidance.critic is not None
        text = self.vocabulary_text(row.session.text)
        value = float(self.guidance.critic(text))
        if math.isnan(value) or value == math.inf:
            raise ValueError(f"critic returned {value} for {text!r}; it must return a log potential, finite or -inf")
        if value == -math.inf:
            self._die(number, CRITIC)
            return
        self.log_weights[number] += value - row.potential
        row.potential = value

    @staticmethod
    def vocabulary_text(text: bytes) -> str:
        """The text for a critic: the characters so far, with a replacement character for an incomplete one."""
        return text.decode("utf-8", errors="replace")

    def _close(self, number: int, reason: str) -> None:
        row = self._rows[number]
        if self._is_complete(row):
            self.log_weights[number] -= row.log_psi
            row.log_psi = 0.0
            row.open = False
            row.finished = True
        else:
            self._die(number, reason)

    def _die(self, number: int, reason: str) -> None:
        self._rows[number].open = False
        self._rows[number].death = reason
        if self.weighs:
            self.log_weights[number] = -math.inf
