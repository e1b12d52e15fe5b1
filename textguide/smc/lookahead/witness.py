"""Length where no automaton is known: short completions that were found, against the tokens that are left.

A *witness* of a text is one way to complete it. Where it fits into the tokens that are left the text can end in time;
where none was found that fits, nobody knows, and ψ is small, never 0.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ...constraints import Constraint, Session, Vocabulary
from .base import Ahead, Lookahead

AMPLE = 8
"""Tokens beyond those of a witness, from which on length is no matter."""
FLOOR = -60.0
"""Log ψ of what seems too long."""
CANDIDATES = 16
"""Likeliest tokens that witnesses are looked for behind."""
CLOSING = 16
"""Further tokens, which close something."""
LONGEST = 128
"""Tokens of a witness up to which it is searched for."""
TRIES, KEPT = 4, 512
COUNTED = 100_000
"""Texts whose tokens stay counted."""
PAUSE = 16
"""Texts in a row that are not searched for at most."""
_CLOSERS = {ord("("): b")", ord("["): b"]", ord("{"): b"}"}
_CLOSING = frozenset(b"\"'])}>;")
_SPACES = frozenset(b" \t\r\n")


class WitnessLookahead(Lookahead):
    """ψ from the tokens ``d`` of the shortest witness that was found and the ``n`` that are left: ``1 − 2^−(n − d)``,
    as :class:`LengthLookahead` has it, and next to nothing where ``d + 1 > n``.

    Witnesses come from the constraint, where it guesses some, from the text itself (what is open is closed), from the
    text before, and from walks through the constraint that prefer what closes. Of tokens that are unlikely and close
    nothing, a few more than of the text are supposed to be needed.

    Args:
        constraint: what texts have to satisfy.
        vocabulary: of the model.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.ends = vocabulary, 1 if vocabulary.ends else 0
        self.guess = constraint.completion
        self.guesses = constraint.completion(b"") is not None
        self._session = constraint.start(vocabulary)
        self._nodes: OrderedDict[bytes, _Text] = OrderedDict()

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return self.node(b"", None)

    def node(self, text: bytes, before: _Text | None) -> _Text:
        """What is known of a text that is allowed, kept for other particles."""
        found = self._nodes.get(text)
        if found is None:
            session = (self._session if before is None else before.session).fork()
            if before is not None:
                session.write(text[len(before.session.text) :])
            found = self._nodes[text] = _Text(self, session, before)
            if len(self._nodes) > KEPT:
                self._nodes.popitem(last=False)
        return found

    def tokens_of(self, text: bytes) -> int:
        """Tokens that write ``text``, the longest first."""
        return _spelled(self.vocabulary, text)


class _Text(Ahead):
    """One text.

    Args:
        lookahead: whose it is.
        session: behind the text.
        before: the text that it goes on from.
    """

    def __init__(self, lookahead: WitnessLookahead, session: Session, before: _Text | None) -> None:
        self.lookahead, self.session = lookahead, session
        self._before = None if before is None else before.known
        self._pause, self._rest = (0, 0) if before is None else before.pause
        self._found: bytes | None = None

    # -- witnesses -------------------------------------------------------------------------------------------------

    @cached_property
    def quick(self) -> bytes | None:
        """A witness that is seen without a search."""
        text, complete = self.session.text, self.session.is_complete
        return next((rest for rest in self._guesses() if complete(text + rest)), None)

    @property
    def witness(self) -> bytes | None:
        """The shortest one that is known; searched for where none is seen, not too often in vain, and not at all where
        the constraint guesses: behind half a character it does not, and one token later it does."""
        if self.quick is not None or self._rest or (self.lookahead.guesses and self._before is not None):
            return self.quick
        return self._searched

    @property
    def pause(self) -> tuple[int, int]:
        """How many texts behind a search in vain are not searched for, twice as many each time, and how many of these
        are left behind this one. A search in vain asks for hundreds of masks."""
        if "_searched" not in self.__dict__:
            return self._pause, max(self._rest - 1, 0)
        if self._searched is not None:
            return 0, 0
        pause = min(max(1, 2 * self._pause), PAUSE)
        return pause, pause

    @property
    def known(self) -> tuple[bytes, bytes] | None:
        """The text and the witness, where one was looked for; else what is known of an earlier text."""
        return (self.session.text, self._found) if self._found is not None else self._before

    @cached_property
    def _searched(self) -> bytes | None:
        return _search(self.session, self.lookahead.vocabulary, LONGEST)

    def _guesses(self) -> Iterator[bytes]:
        text = self.session.text
        yield b""
        guess = self.lookahead.guess(text) if self.lookahead.guesses else None
        if guess is not None:
            yield guess
        closing, marks = _open(text)
        yield closing
        if self._before is not None:
            earlier, witness = self._before
            written = text[len(earlier) :]
            if witness.startswith(written):
                yield witness[len(written) :]
            yield witness
            yield witness[1:]
        if not self.lookahead.guesses:
            yield from dict.fromkeys((marks + closing, closing + marks, b"0" + closing, b"C" + marks + closing))

    # -- looking ahead ---------------------------------------------------------------------------------------------

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        self._found = self.witness
        if self._found is None:
            return None
        lookahead = self.lookahead
        needed = lookahead.tokens_of(self._found)
        spare = left + 1 - needed - lookahead.ends
        if spare > AMPLE:
            return None
        text, tokens = self.session.text, lookahead.vocabulary.tokens
        values = torch.full((lookahead.vocabulary.size,), _value(spare - 3))
        mask = self.session.mask()
        for token in self._candidates(mask, scores):
            written = text + tokens[token]
            if mask is None and not self.session.is_prefix(written):
                continue
            rest = lookahead.node(written, self).quick
            if rest is not None:
                values[token] = _value(left - lookahead.tokens_of(rest) - lookahead.ends)
            elif len(tokens[token]) and self._found.startswith(tokens[token]):
                values[token] = _value(left - lookahead.tokens_of(self._found[len(tokens[token]) :]) - lookahead.ends)
        values[sorted(lookahead.vocabulary.ends)] = 0.0
        return values

    def after(self, token: int) -> Ahead:
        return self.lookahead.node(self.session.text + self.lookahead.vocabulary.tokens[token], self)

    def _candidates(self, mask: Tensor | None, scores: Tensor | None) -> list[int]:
        """Tokens with bytes that may follow: the likeliest, those that close something, and the witness's own."""
        vocabulary = self.lookahead.vocabulary
        index = _tokens(vocabulary)
        likely: list[int] = []
        if scores is not None:
            some = scores.detach().cpu()
            some = some if mask is None else some.masked_fill(~mask, -math.inf)
            top = some.topk(min(CANDIDATES, len(some)))
            likely = [
                token
                for token, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)
                if score > -math.inf
            ]
        some_close = () if self.lookahead.guesses else _closing(vocabulary)  # a guess closes what is open
        close = [token for token in some_close if mask is None or bool(mask[token])][:CLOSING]
        witness = self._found or b""
        own = [index[witness[:size]] for size in range(1, len(witness) + 1) if witness[:size] in index]
        return [token for token in dict.fromkeys((*likely, *close, *own)) if vocabulary.tokens[token]]


def _value(spare: int) -> float:
    return FLOOR if spare < 0 else 0.0 if spare > AMPLE else math.log1p(-(0.5 ** (spare + 1)))


def _open(text: bytes) -> tuple[bytes, bytes]:
    """What closes the brackets and the quotation that are open, and digits that come an odd number of times, as the
    marks of rings do in SMILES."""
    closing, quoted, escaped = [], False, False
    for byte in text:
        if quoted:
            quoted = escaped or byte != ord('"')
            escaped = not escaped and byte == ord("\\")
        elif byte == ord('"'):
            quoted = True
        elif byte in _CLOSERS:
            closing.append(_CLOSERS[byte])
        elif closing and bytes([byte]) == closing[-1]:
            closing.pop()
    marks = b"".join(bytes([byte]) for byte in b"123456789" if text.count(byte) % 2) if len(text) < 400 else b""
    return (b'"' if quoted else b"") + b"".join(reversed(closing)), marks


def _search(session: Session, vocabulary: Vocabulary, most: int) -> bytes | None:
    """What completes the text of ``session``, by a walk that closes what is open as soon as that is allowed; where it
    does not end, by others that turn elsewhere."""
    taste, index = _taste(vocabulary), _tokens(vocabulary)
    for attempt in range(TRIES):
        walk, here = bytearray(), session.fork()
        generator = torch.Generator().manual_seed(attempt)
        for _ in range(most):
            if here.is_complete(here.text):
                return bytes(walk)
            mask = here.mask()
            if mask is None:
                return None
            closing = _open(here.text)[0]
            close = (index.get(closing[:size]) for size in range(len(closing), 0, -1))
            token = next((found for found in close if found is not None and bool(mask[found])), None)
            if token is None:
                liked = taste.masked_fill(~mask, -math.inf)
                if attempt:
                    liked = liked + 3 * torch.rand(len(liked), generator=generator)
                token = int(liked.argmax())
                if liked[token] == -math.inf:
                    break
            here.advance(token)
            walk += vocabulary.tokens[token]
    return None


@lru_cache(maxsize=4)
def _tokens(vocabulary: Vocabulary) -> dict[bytes, int]:
    return {text: token for token, text in enumerate(vocabulary.tokens) if text}


@lru_cache(maxsize=4)
def _closing(vocabulary: Vocabulary) -> list[int]:
    """Tokens that only close, the shortest first, and the digits."""
    tokens = [token for token, text in enumerate(vocabulary.tokens) if text and _CLOSING.issuperset(text)]
    digits = [token for token, text in enumerate(vocabulary.tokens) if len(text) == 1 and text.isdigit()]
    return [*sorted(tokens, key=lambda token: len(vocabulary.tokens[token]))[: CLOSING - len(digits)], *digits]


@lru_cache(maxsize=4)
def _taste(vocabulary: Vocabulary) -> Tensor:
    """How much a walk that wants to end likes each token, (V,)."""

    def liked(text: bytes) -> float:
        if not text:
            return -math.inf
        if _SPACES.issuperset(text):
            return -9.0
        opening = sum(byte in _CLOSERS for byte in text)
        spaces = sum(byte in _SPACES for byte in text)
        return 5.0 * (text[:1] == b'"') + 3.0 * text.isalnum() - 2 * opening - spaces + 0.05 * len(text)

    return torch.tensor([liked(text) for text in vocabulary.tokens])


def _spelled(vocabulary: Vocabulary, text: bytes) -> int:
    """How many tokens write ``text``, the longest first; texts that end alike share what was counted."""
    index, known, before = _tokens(vocabulary), _counts(vocabulary), []
    if len(known) > COUNTED:
        known.clear()
    while text and text not in known:
        before.append(text)
        text = text[next((size for size in range(min(len(text), 24), 1, -1) if text[:size] in index), 1) :]
    count = known.get(text, 0)
    for earlier in reversed(before):
        count += 1
        known[earlier] = count
    return count


@lru_cache(maxsize=4)
def _counts(vocabulary: Vocabulary) -> dict[bytes, int]:
    return {}
