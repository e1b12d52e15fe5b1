"""Any constraint on a canvas: whole texts are checked from left to right before one of their tokens is filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...constraints.base import Constraint, Session
from ...constraints.vocabulary import Vocabulary
from ..canvas import Canvas
from ..denoisers import Denoiser
from ..draws import gumbel
from .base import CanvasConstraint, StepDistributions, Uniform

SMALL_VOCABULARY = 1024
"""A constraint without a mask is asked about every single token in vocabularies up to this size."""
SHORT_TOKENS = 64
"""Short tokens that a second search tries besides the likely ones, since they close what is open."""
LARGEST_MASK_CACHE = 4096
Line = Sequence[int | None]
"""The tokens of a text; None at masked positions."""


@dataclass
class _Prefix:
    """A beginning of a text.

    Attributes:
        tokens: those at masked positions.
        session: of the constraint; None after an end token.
        weight: its log-weight.
    """

    tokens: list[int]
    session: Session | None
    weight: float


class LookaheadConstraint(CanvasConstraint):
    """Lookahead for constraints that have no automaton, such as grammars (LAVE, arXiv 2602.00612).

    The tokens of a step are those of one whole text that satisfies the constraint. Texts are written from left to right
    around the filled positions, each token drawn from its position's distribution among the tokens that the constraint
    allows next. The weight of a text is the product of the probabilities of what was allowed (sequential importance
    sampling), and one of ``particles`` texts is drawn by these weights. With many particles this is the product of the
    distributions given the constraint; with few it is an approximation. At temperature 0 a beam search looks for the
    most likely text instead.

    A satisfying text is kept for every row: if none of the new texts satisfies the constraint, the tokens of the kept
    one are used. Orders rank by the distributions without the constraint.

    Args:
        particles: texts that are written per row and step.
        beam: beginnings that are kept at temperature 0.

    Raises:
        ValueError: no satisfying text was found for a row, or the constraint cannot state which tokens may come next.
    """

    def __init__(
        self,
        model: Denoiser,
        canvas: Canvas,
        whole: bool,
        name: str,
        constraint: Constraint,
        vocabulary: Vocabulary,
        particles: int = 8,
        beam: int = 4,
    ) -> None:
        super().__init__(model, canvas, whole, name)
        self.vocabulary = vocabulary
        self.particles = particles
        self.beam = beam
        self._start = constraint.start(vocabulary)
        self._masks: dict[bytes, Tensor] = {}
        if self._start.mask() is None and vocabulary.size > SMALL_VOCABULARY:
            raise ValueError(
                f"constraint={name} judges one text at a time, and a canvas asks about {vocabulary.size} tokens at "
                "once; use a Regex without backtracking, a schema or a grammar"
            )
        self._ends = torch.zeros(vocabulary.size, dtype=torch.bool)
        self._ends[sorted(vocabulary.ends)] = True
        self._writable = torch.ones(vocabulary.size, dtype=torch.bool)
        self._writable[list(model.forbidden)] = False
        by_length = sorted((len(text), token) for token, text in enumerate(vocabulary.tokens) if text)
        self._short = [token for _, token in by_length if self._writable[token]][:SHORT_TOKENS]
        self._satisfying: dict[int, list[int]] = {}  # by row, the tokens of all positions

    def posterior(self, step: StepDistributions) -> Tensor:
        return step.logp

    def draw(self, step: StepDistributions, temperature: float, uniform: Uniform) -> Tensor:
        logp = step.masked_logp().double().cpu()
        scores = logp / temperature if temperature else logp
        found: list[int] = []
        begin = 0
        for n, row in enumerate(step.rows.tolist()):
            positions = self.text_positions[row][self.is_text[row]].cpu()
            masked = step.masked[n].cpu()[positions].tolist()
            tokens = step.canvas.ids[n].cpu()[positions].tolist()
            line = [None if is_masked else token for token, is_masked in zip(tokens, masked, strict=True)]
            own = scores[begin : begin + sum(masked)]
            begin += len(own)
            found += self._tokens_for(row, line, own, bool(temperature), uniform)
        return torch.tensor(found, device=step.logp.device)

    def keep(self, row: int, line: list[int]) -> None:
        """Remember the tokens of all positions of a row, which satisfy the constraint."""
        self._satisfying[row] = line

    def _tokens_for(self, row: int, line: Line, scores: Tensor, sampling: bool, uniform: Uniform) -> list[int]:
        """The tokens of the masked positions of a row."""
        if sampling:
            texts = self._sample_texts(row, line, scores, uniform)
        else:
            texts = self._beam_search(line, scores, self.beam, 4, [])
        before = self._kept_tokens(row, line)
        if not texts and before is None:
            texts = self._beam_search(line, scores, 8 * self.beam, 4, self._short)
            if not texts:
                masks = sum(token is None for token in line)
                raise ValueError(
                    f"constraint={self.name}: no text was found that fits the {masks} masks of row {row}; give it "
                    "more masks, or another constraint"
                )
        if not texts:
            assert before is not None
            chosen = before
        elif sampling:
            weights = torch.tensor([text.weight for text in texts], dtype=torch.float64)
            noise = gumbel(uniform([row], [1], len(texts))[0].cpu())
            chosen = texts[int((weights + noise).argmax())].tokens
        else:
            best = max(texts, key=lambda text: text.weight)
            is_better = before is not None and _score(scores, before) > best.weight
            chosen = before if is_better and before is not None else best.tokens
        rest = iter(chosen)
        self.keep(row, [next(rest) if token is None else token for token in line])
        return chosen

    def _kept_tokens(self, row: int, line: Line) -> list[int] | None:
        """The tokens of the kept text at the positions that are masked now; None if no text was found so far."""
        kept = self._satisfying.get(row)
        if kept is None:
            return None
        return [token for token, now in zip(kept, line, strict=True) if now is None]

    def _sample_texts(self, row: int, line: Line, scores: Tensor, uniform: Uniform) -> list[_Prefix]:
        """Satisfying texts, each from its own draws, weighted by the probability of what was allowed."""
        totals = torch.logsumexp(scores, -1).tolist()
        found = []
        for _ in range(self.particles):
            noise = gumbel(uniform([row], [len(scores)], scores.shape[1])).cpu()
            text = self._sample(line, scores, totals, noise)
            if text is not None and self._is_complete(text):
                found.append(text)
        return found

    def _sample(self, line: Line, scores: Tensor, totals: Sequence[float], noise: Tensor) -> _Prefix | None:
        """One text from left to right; None if the constraint left no token at some position."""
        text: _Prefix | None = _Prefix([], self._start.fork(), 0.0)
        for given in line:
            assert text is not None
            if given is not None:
                text = self._extend(text, given, is_masked=False)
            else:
                number = len(text.tokens)
                allowed = self._allowed_scores(text, scores)
                total = float(torch.logsumexp(allowed, -1))
                if total == -math.inf:
                    return None
                token = int((allowed + noise[number]).argmax())
                weighted = _Prefix(text.tokens, text.session, text.weight + total - totals[number])
                text = self._extend(weighted, token, is_masked=True)
            if text is None:
                return None
        return text

    def _beam_search(self, line: Line, scores: Tensor, beam: int, likely: int, further: list[int]) -> list[_Prefix]:
        """Satisfying texts by a beam search. The best beginning for each set of tokens that may come next takes
        precedence, so that likely beginnings do not crowd out those that can still end.

        Args:
            likely: how many of the most likely tokens are tried at each position.
            further: tokens that are tried besides these.
        """
        texts = [_Prefix([], self._start.fork(), 0.0)]
        for given in line:
            longer = []
            for text in texts:
                candidates = [given] if given is not None else self._candidates(text, scores, likely, further)
                for token in candidates:
                    extended = self._extend(text, token, is_masked=given is None)
                    if extended is None:
                        continue
                    if given is None:
                        extended.weight += float(scores[len(text.tokens), token])
                    longer.append(extended)
            longer.sort(key=lambda text: -text.weight)
            texts = self._with_precedence(longer)[:beam]
        return [text for text in texts if self._is_complete(text)]

    def _with_precedence(self, texts: list[_Prefix]) -> list[_Prefix]:
        """Sorted texts with the first of each set of next tokens before all others."""
        first: dict[bytes, _Prefix] = {}
        for text in texts:
            next_tokens = b"" if text.session is None else self._mask(text.session).numpy().tobytes()
            first.setdefault(next_tokens, text)
        leading = {id(text) for text in first.values()}
        return [*first.values(), *(text for text in texts if id(text) not in leading)]

    def _candidates(self, text: _Prefix, scores: Tensor, likely: int, further: list[int]) -> list[int]:
        allowed = self._allowed_scores(text, scores)
        best = allowed.topk(min(likely, len(allowed))).indices.tolist()
        more = [*further, *torch.nonzero(self._ends)[:, 0].tolist()] if text.session is not None else []
        return [token for token in dict.fromkeys([*best, *more]) if allowed[token] > -math.inf]

    def _allowed_scores(self, text: _Prefix, scores: Tensor) -> Tensor:
        """The scores of the next masked position, with −inf for tokens that the constraint does not allow."""
        own = scores[len(text.tokens)]
        return own if text.session is None else own.masked_fill(~self._mask(text.session), -math.inf)

    def _extend(self, text: _Prefix, token: int, *, is_masked: bool) -> _Prefix | None:
        """The text with one more token; None if it is not allowed."""
        tokens = [*text.tokens, token] if is_masked else text.tokens
        session = text.session
        if session is None:
            return _Prefix(tokens, None, text.weight)
        if not self._mask(session)[token]:
            return None
        if self._ends[token]:
            return _Prefix(tokens, None, text.weight)
        session = session.fork()
        try:
            session.advance(token)
        except ValueError:  # a mask may allow more than the constraint accepts
            return None
        return _Prefix(tokens, session, text.weight)

    def _is_complete(self, text: _Prefix) -> bool:
        return text.session is None or text.session.is_complete(text.session.text)

    def _mask(self, session: Session) -> Tensor:
        """The tokens that may come next, bool (V,)."""
        mask = self._masks.get(session.text)
        if mask is None:
            mask = session.mask()
            if mask is None:
                mask = torch.tensor(
                    [bool(text) and session.is_prefix(session.text + text) for text in self.vocabulary.tokens]
                )
                mask[self._ends] = session.is_complete(session.text)
            mask = mask.cpu() & self._writable
            if len(self._masks) > LARGEST_MASK_CACHE:
                self._masks.clear()
            self._masks[session.text] = mask
        return mask


def _score(scores: Tensor, tokens: list[int]) -> float:
    """The log-weight of tokens at the masked positions."""
    return float(scores.gather(1, torch.tensor(tokens)[:, None]).sum())
