"""Lookahead by length without an automaton: short completions that were found, compared to the tokens that are left.

A *witness* of a text is one way to complete it. If it fits into the tokens that are left, the text can end within the
limit. If no witness fits, this is not known, so ψ is small, but never 0.
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
"""Number of spare tokens from which on the length does not matter."""
FLOOR = -60.0
"""Log ψ of texts that seem to be too long."""
CANDIDATES = 16
"""Number of likeliest tokens after which witnesses are searched for."""
CLOSING = 16
"""Number of further tokens, which close brackets and quotations."""
LONGEST = 128
"""Largest number of tokens of a witness that is searched for."""
TRIES = 4
"""Number of walks per search."""
MAX_TEXTS = 512
"""Number of texts whose witnesses are cached."""
MAX_COUNTS = 100_000
"""Number of texts whose numbers of tokens are cached."""
PAUSE = 16
"""Largest number of texts in a row without a search, after searches that failed."""
_CLOSERS = {ord("("): b")", ord("["): b"]", ord("{"): b"}"}
_CLOSING = frozenset(b"\"'])}>;")
_SPACES = frozenset(b" \t\r\n")


class WitnessLookahead(Lookahead):
    """ψ from the number ``d`` of tokens of the shortest known witness and the number ``n`` of tokens that are left.

    It is ``1 − 2^−(n − d)``, as in :class:`LengthLookahead`, and close to 0 if ``d + 1 > n``. Witnesses come from the
    constraint, if it guesses completions; from the text itself (what is open is closed); from the text before; and from
    walks through the constraint that prefer to close. After unlikely tokens that close nothing, a few more tokens are
    assumed to be needed than after the text.

    Args:
        constraint: the constraint of the texts.
        vocabulary: the model's vocabulary.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ends = 1 if vocabulary.ends else 0
        self.guess = constraint.completion
        self.guesses = constraint.completion(b"") is not None
        self._session = constraint.start(vocabulary)
        self._nodes: OrderedDict[bytes, _Text] = OrderedDict()

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return self.node(b"", None)

    def node(self, text: bytes, before: _Text | None) -> _Text:
        """The lookahead after a text, which must be allowed; cached for other particles."""
        node = self._nodes.get(text)
        if node is None:
            session = (self._session if before is None else before.session).fork()
            if before is not None:
                session.write(text[len(before.session.text) :])
            node = self._nodes[text] = _Text(self, session, before)
            if len(self._nodes) > MAX_TEXTS:
                self._nodes.popitem(last=False)
        return node

    def tokens_of(self, text: bytes) -> int:
        """The number of tokens that write ``text``, the longest possible first."""
        return _count_tokens(self.vocabulary, text)


class _Text(Ahead):
    """The lookahead after one text.

    Args:
        lookahead: the lookahead of the run.
        session: the constraint after the text.
        before: the lookahead before its last token; None for the empty text.
    """

    def __init__(self, lookahead: WitnessLookahead, session: Session, before: _Text | None) -> None:
        self.lookahead = lookahead
        self.session = session
        self._before = None if before is None else before.known
        self._pause, self._rest = (0, 0) if before is None else before.pause
        self._found: bytes | None = None

    # -- witnesses -------------------------------------------------------------------------------------------------

    @cached_property
    def quick(self) -> bytes | None:
        """A witness that is known without a search."""
        text = self.session.text
        return next((rest for rest in self._guesses() if self.session.is_complete(text + rest)), None)

    @property
    def witness(self) -> bytes | None:
        """The shortest witness that is known.

        If there is none, it is searched for, but less often after searches that failed. If the constraint guesses
        completions there is no search: it only makes no guess inside a character, and makes one a token later.
        """
        if self.quick is not None or self._rest or (self.lookahead.guesses and self._before is not None):
            return self.quick
        return self._searched

    @property
    def pause(self) -> tuple[int, int]:
        """The number of texts without a search after a failed search, and how many of them are left after this text.

        The number doubles with every failure, because a search that fails computes hundreds of masks.
        """
        if "_searched" not in self.__dict__:
            return self._pause, max(self._rest - 1, 0)
        if self._searched is not None:
            return 0, 0
        pause = min(max(1, 2 * self._pause), PAUSE)
        return pause, pause

    @property
    def known(self) -> tuple[bytes, bytes] | None:
        """The text and its witness, if there is one, or else those of an earlier text."""
        return (self.session.text, self._found) if self._found is not None else self._before

    @cached_property
    def _searched(self) -> bytes | None:
        return _search(self.session, self.lookahead.vocabulary, LONGEST)

    def _guesses(self) -> Iterator[bytes]:
        """Texts that may be witnesses."""
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
        text = self.session.text
        tokens = lookahead.vocabulary.tokens
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
        """Tokens to examine: the likeliest ones, those that close something, and those that start the witness."""
        vocabulary = self.lookahead.vocabulary
        index = _tokens(vocabulary)
        likely: list[int] = []
        if scores is not None:
            possible = scores.detach().cpu()
            if mask is not None:
                possible = possible.masked_fill(~mask, -math.inf)
            top = possible.topk(min(CANDIDATES, len(possible)))
            likely = top.indices[top.values > -math.inf].tolist()
        closing: list[int] = []
        if not self.lookahead.guesses:  # a guess closes what is open
            closing = [token for token in _closing(vocabulary) if mask is None or bool(mask[token])][:CLOSING]
        witness = self._found or b""
        starts = [index[witness[:size]] for size in range(1, len(witness) + 1) if witness[:size] in index]
        return [token for token in dict.fromkeys((*likely, *closing, *starts)) if vocabulary.tokens[token]]


def _value(spare: int) -> float:
    """Log ψ with so many spare tokens."""
    if spare < 0:
        return FLOOR
    return 0.0 if spare > AMPLE else math.log1p(-(0.5 ** (spare + 1)))


def _open(text: bytes) -> tuple[bytes, bytes]:
    """The text that closes the open brackets and quotation, and the digits that occur an odd number of times.

    Such digits mark open rings in SMILES.
    """
    closing = []
    quoted = False
    escaped = False
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
    """A text that completes that of ``session``: the first of some walks that ends.

    A walk closes what is open as soon as that is allowed, and prefers some tokens otherwise; later walks vary these.
    """
    preference = _preference(vocabulary)
    index = _tokens(vocabulary)
    for attempt in range(TRIES):
        walk = bytearray()
        here = session.fork()
        generator = torch.Generator().manual_seed(attempt)
        for _ in range(most):
            if here.is_complete(here.text):
                return bytes(walk)
            mask = here.mask()
            if mask is None:
                return None
            closing = _open(here.text)[0]
            close = (index.get(closing[:size]) for size in range(len(closing), 0, -1))
            token = next((one for one in close if one is not None and bool(mask[one])), None)
            if token is None:
                allowed = preference.masked_fill(~mask, -math.inf)
                if attempt:
                    allowed = allowed + 3 * torch.rand(len(allowed), generator=generator)
                token = int(allowed.argmax())
                if allowed[token] == -math.inf:
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
def _preference(vocabulary: Vocabulary) -> Tensor:
    """A score of each token for walks that should end soon, (V,)."""

    def score(text: bytes) -> float:
        if not text:
            return -math.inf
        if _SPACES.issuperset(text):
            return -9.0
        opening = sum(byte in _CLOSERS for byte in text)
        spaces = sum(byte in _SPACES for byte in text)
        return 5.0 * (text[:1] == b'"') + 3.0 * text.isalnum() - 2 * opening - spaces + 0.05 * len(text)

    return torch.tensor([score(text) for text in vocabulary.tokens])


def _count_tokens(vocabulary: Vocabulary, text: bytes) -> int:
    """The number of tokens that write ``text``, the longest possible first; counts of all its ends are cached."""
    index = _tokens(vocabulary)
    known = _counts(vocabulary)
    before = []
    if len(known) > MAX_COUNTS:
        known.clear()
    while text and text not in known:
        before.append(text)
        sizes = range(min(len(text), 24), 1, -1)
        text = text[next((size for size in sizes if text[:size] in index), 1) :]
    count = known.get(text, 0)
    for earlier in reversed(before):
        count += 1
        known[earlier] = count
    return count


@lru_cache(maxsize=4)
def _counts(vocabulary: Vocabulary) -> dict[bytes, int]:
    return {}
