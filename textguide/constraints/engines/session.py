"""Sessions on an engine that knows its whole mask: what llguidance and xgrammar have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from ..base import Session
from ..vocabulary import Vocabulary

MASKS_KEPT = 64


class State(ABC):
    """Where an engine stands in a text."""

    @abstractmethod
    def allowed(self) -> Tensor:
        """The tokens that may come next, bool (U,), in the order of the engine's own vocabulary."""

    @abstractmethod
    def accepting(self) -> bool:
        """Whether the text is complete."""

    @abstractmethod
    def feed(self, text: bytes) -> bool:
        """Go on by ``text``; False where it is not allowed, after which the state is of no use."""

    @abstractmethod
    def accepts(self, text: bytes) -> bool:
        """Whether :meth:`feed` would give True, without going on."""

    @abstractmethod
    def fork(self) -> State:
        """An independent state at the same place."""


class TokenTable:
    """The distinct byte strings of a vocabulary, and where each token finds its own among them.

    Two tokens may have the same bytes, and the first token of a text may lose its leading space; so the engine gets
    every byte string once, and masks are read through an index.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        index: dict[bytes, int] = {}
        first = [vocabulary.visible(token) for token in vocabulary.tokens]
        for token in (*vocabulary.tokens, *first):
            if token:
                index.setdefault(token, len(index))
        self.texts = list(index)
        none = len(index)  # a place behind the last that is always False
        self.later = torch.tensor([index.get(token, none) for token in vocabulary.tokens])
        self.first = torch.tensor([index.get(token, none) for token in first])
        # A token that is nothing but the space that is left out leaves the text as it is.
        self.blank = torch.tensor([bool(a) and not b for a, b in zip(vocabulary.tokens, first, strict=True)])
        self.ends = torch.tensor(sorted(vocabulary.ends), dtype=torch.long)


class KeptMasks:
    """The masks of the last texts: particles often stand at the same place."""

    def __init__(self) -> None:
        self._masks: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, text: bytes, making: Callable[[], Tensor]) -> Tensor:
        """The mask behind ``text``, a copy."""
        mask = self._masks.get(text)
        if mask is None:
            mask = self._masks[text] = making()
            while len(self._masks) > MASKS_KEPT:
                self._masks.popitem(last=False)
        return mask.clone()


class Engine:
    """A constraint compiled for a vocabulary.

    Args:
        vocabulary: whose tokens masks are for.
        table: its distinct byte strings.
        start: the state in front of the text; it is forked, never moved.
    """

    def __init__(self, vocabulary: Vocabulary, table: TokenTable, start: State) -> None:
        self.vocabulary = vocabulary
        self.table = table
        self.start = start
        self._masks = KeptMasks()

    def session(self) -> EngineSession:
        """A session in front of the first token."""
        return EngineSession(self, self.start.fork(), b"", [0])

    def mask(self, text: bytes, state: State) -> Tensor:
        """The mask behind ``text``, where ``state`` stands; kept for particles that stand at the same place."""
        return self._masks(text, lambda: self._made(text, state))

    def _made(self, text: bytes, state: State) -> Tensor:
        table = self.table
        allowed = torch.cat([state.allowed(), torch.zeros(1, dtype=torch.bool)])
        mask = allowed[table.later if text else table.first]
        if not text:
            mask |= table.blank
        mask[table.ends] = state.accepting()
        return mask


class EngineSession(Session):
    """One text under a compiled constraint."""

    def __init__(self, engine: Engine, state: State, text: bytes, calls: list[int]) -> None:
        self.text = text
        self._engine = engine
        self._vocabulary = engine.vocabulary
        self._state = state
        self._calls = calls

    @property
    def calls(self) -> int:
        return self._calls[0]

    def is_prefix(self, text: bytes) -> bool:
        self._calls[0] += 1
        state, rest = self._nearest(text)
        return state.accepts(rest)

    def is_complete(self, text: bytes) -> bool:
        self._calls[0] += 1
        state, rest = self._nearest(text)
        if not rest:
            return state.accepting()
        state = state.fork()
        return state.feed(rest) and state.accepting()

    def mask(self) -> Tensor:
        self._calls[0] += 1
        return self._engine.mask(self.text, self._state)

    def write(self, text: bytes) -> None:
        visible = self._vocabulary.visible
        rest = visible(self.text + text)[len(visible(self.text)) :]
        if not self._state.accepts(rest):
            raise ValueError(f"text={text!r} is not allowed behind {self.text[-40:]!r}")
        self._state.feed(rest)
        self.text += text

    def fork(self) -> EngineSession:
        return EngineSession(self._engine, self._state.fork(), self.text, self._calls)

    def _nearest(self, text: bytes) -> tuple[State, bytes]:
        """A state to go on from, not to be moved, and what is left of ``text`` behind it."""
        visible = self._engine.vocabulary.visible
        here, there = visible(self.text), visible(text)
        if there.startswith(here):
            return self._state, there[len(here) :]
        return self._engine.start, there
