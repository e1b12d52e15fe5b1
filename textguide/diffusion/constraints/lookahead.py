"""Any constraint on a canvas: whole texts that are checked from left to right before one of their tokens is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...constraints.base import Constraint, Session
from ...constraints.vocabulary import Vocabulary
from ..canvas import Canvas
from ..denoisers import Denoiser
from ..orders import gumbel
from .base import Asked, Form, Uniform

SMALL = 1024
"""Tokens of a vocabulary up to which a constraint without a mask is asked about all of them."""
TRIED = 64
"""Short tokens that a search tries beside the likely ones, for they close what is open."""


@dataclass
class _Text:
    """A beginning: its tokens at open positions, its session (None behind an end token), and its log-weight."""

    tokens: list[int]
    session: Session | None
    weight: float


class SearchedForm(Form):
    """Lookahead for constraints that are no automaton, such as grammars (LAVE, arXiv 2602.00612).

    A step's tokens are those of one whole text in form. Texts are written from left to right around what is there, each
    token from its position's distribution among those that the constraint allows next; a text weighs the product of
    what was allowed (sequential importance sampling), and one of ``particles`` is drawn by these weights. With many
    particles that is the product of the distributions given the form; with few it is an approximation of it. At
    temperature 0 a beam looks for the most likely text instead.

    A text in form is kept for every row, so that there always is one: where none of the new ones is in form, its
    tokens are taken. What orders rank by are the distributions themselves.

    Args:
        particles: texts that are written for each row and step.
        beam: beginnings that are kept at temperature 0.

    Raises:
        ValueError: no text in form was found for a row, or the constraint says too little.
    """

    def __init__(
        self, model: Denoiser, canvas: Canvas, whole: bool, name: str, constraint: Constraint, vocabulary: Vocabulary,
        particles: int = 8, beam: int = 4,
    ) -> None:  # fmt: skip
        super().__init__(model, canvas, whole, name)
        self.vocabulary, self.particles, self.beam = vocabulary, particles, beam
        self._start = constraint.start(vocabulary)
        self._masks: dict[bytes, Tensor] = {}
        if self._start.mask() is None and vocabulary.size > SMALL:
            raise ValueError(
                f"constraint={name} says of one text after the other whether it may go on, and the canvas wants to "
                f"know of {vocabulary.size} tokens at once; take a Regex without backtracking, a schema or a grammar"
            )
        self._ends = torch.zeros(vocabulary.size, dtype=torch.bool)
        self._ends[sorted(vocabulary.ends)] = True
        self._writable = torch.ones(vocabulary.size, dtype=torch.bool)
        self._writable[list(model.forbidden)] = False
        by_size = sorted((len(text), token) for token, text in enumerate(vocabulary.tokens) if text)
        self._short = [token for _, token in by_size if self._writable[token]][:TRIED]
        self._kept: dict[int, list[int]] = {}

    def posterior(self, asked: Asked) -> Tensor:
        return asked.logp

    def draw(self, asked: Asked, temperature: float, uniform: Uniform) -> Tensor:
        logp = asked.logp[asked.masked[asked.where]].double().cpu()
        scores = logp / temperature if temperature else logp
        found, begin = [], 0
        for n, row in enumerate(asked.rows.tolist()):
            places = self.places[row][self.there[row]].cpu()
            open_ = asked.masked[n].cpu()[places]
            mine = scores[begin : begin + int(open_.sum())]
            begin += len(mine)
            line = [
                None if is_open else int(t) for t, is_open in zip(asked.canvas.ids[n].cpu()[places], open_, strict=True)
            ]
            found.append(self._text(row, line, mine, bool(temperature), uniform))
        return torch.tensor([token for tokens in found for token in tokens], device=asked.logp.device)

    def _text(self, row: int, line: list[int | None], scores: Tensor, random: bool, uniform: Uniform) -> list[int]:
        """The tokens of the open positions of a row."""
        texts = self._sampled(row, line, scores, uniform) if random else self._searched(line, scores, self.beam, 4, [])
        if not texts and row not in self._kept:
            texts = self._searched(line, scores, 8 * self.beam, 4, self._short)
            if not texts:
                masks = sum(token is None for token in line)
                raise ValueError(
                    f"constraint={self.name}: no text was found that fits the {masks} masks of row {row}; give it "
                    "more, or another form"
                )
        kept = self._kept.get(row)
        before = None if kept is None else [token for token, now in zip(kept, line, strict=True) if now is None]
        if texts and random:
            weights = torch.tensor([text.weight for text in texts], dtype=torch.float64)
            chosen = texts[int((weights + gumbel(uniform([row], [1], len(texts))[0].cpu())).argmax())].tokens
        elif texts:
            best = max(texts, key=lambda text: text.weight)
            chosen = best.tokens
            if before is not None and _score(scores, before) > best.weight:
                chosen = before
        else:
            assert before is not None
            chosen = before
        rest = iter(chosen)
        self.keep(row, [next(rest) if token is None else token for token in line])
        return chosen

    def keep(self, row: int, line: list[int]) -> None:
        """A text in form of a row: the tokens of all its positions."""
        self._kept[row] = line

    def _sampled(self, row: int, line: list[int | None], scores: Tensor, uniform: Uniform) -> list[_Text]:
        """Texts in form, each from its own draws, weighed by what was allowed."""
        found = []
        totals = torch.logsumexp(scores, -1).tolist()
        for _ in range(self.particles):
            noise = gumbel(uniform([row], [len(scores)], scores.shape[1])).cpu()
            text: _Text | None = _Text([], self._start.fork(), 0.0)
            for token in line:
                assert text is not None
                if token is None:
                    number = len(text.tokens)
                    allowed = scores[number]
                    if text.session is not None:
                        allowed = allowed.masked_fill(~self._mask(text.session), -math.inf)
                    total = float(torch.logsumexp(allowed, -1))
                    if total == -math.inf:
                        text = None
                        break
                    token = int((allowed + noise[number]).argmax())
                    text = self._behind(
                        _Text(text.tokens, text.session, text.weight + total - totals[number]), token, True
                    )
                else:
                    text = self._behind(text, token, False)
                if text is None:
                    break
            if text is not None and self._complete(text):
                found.append(text)
        return found

    def _searched(
        self, line: list[int | None], scores: Tensor, beam: int, likely: int, further: list[int]
    ) -> list[_Text]:
        """Texts in form by a beam. The best beginning for each set of tokens that may come next has precedence, so that
        what can still end is not crowded out by what is likely."""
        texts = [_Text([], self._start.fork(), 0.0)]
        for token in line:
            behind: list[_Text] = []
            for text in texts:
                for candidate in self._candidates(text, scores, likely, further) if token is None else [token]:
                    longer = self._behind(text, candidate, token is None)
                    if longer is not None:
                        if token is None:
                            longer.weight += float(scores[len(text.tokens), candidate])
                        behind.append(longer)
            behind.sort(key=lambda text: -text.weight)
            first: dict[bytes, _Text] = {}
            for text in behind:
                first.setdefault(b"" if text.session is None else self._mask(text.session).numpy().tobytes(), text)
            leading = {id(text) for text in first.values()}
            texts = [*first.values(), *(text for text in behind if id(text) not in leading)][:beam]
        return [text for text in texts if self._complete(text)]

    def _candidates(self, text: _Text, scores: Tensor, likely: int, further: list[int]) -> list[int]:
        allowed = scores[len(text.tokens)]
        if text.session is not None:
            allowed = allowed.masked_fill(~self._mask(text.session), -math.inf)
        best = allowed.topk(min(likely, len(allowed))).indices.tolist()
        more = [*further, *torch.nonzero(self._ends)[:, 0].tolist()] if text.session is not None else []
        return [token for token in dict.fromkeys([*best, *more]) if allowed[token] > -math.inf]

    def _behind(self, text: _Text, token: int, is_open: bool) -> _Text | None:
        """The text with a token behind it; None where it is not allowed."""
        tokens, session = [*text.tokens, token] if is_open else text.tokens, text.session
        if session is None:
            return _Text(tokens, None, text.weight)
        if not self._mask(session)[token]:
            return None
        if self._ends[token]:
            return _Text(tokens, None, text.weight)
        session = session.fork()
        try:
            session.advance(token)
        except ValueError:  # a mask may hold more than the constraint takes
            return None
        return _Text(tokens, session, text.weight)

    def _complete(self, text: _Text) -> bool:
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
            if len(self._masks) > 4096:
                self._masks.clear()
            self._masks[session.text] = mask
        return mask


def _score(scores: Tensor, tokens: list[int]) -> float:
    """The log-weight of tokens at the open positions."""
    return float(scores.gather(1, torch.tensor(tokens)[:, None]).sum())
