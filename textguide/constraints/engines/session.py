"""Sessions on engines that know the whole mask: the part that llguidance and xgrammar share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..base import Session, not_allowed
from ..vocabulary import Vocabulary

MAX_MASKS = 64


class GrammarError(ValueError):
    """An engine refuses a grammar; the message is the engine's, in one line."""


class EmptyGrammarError(GrammarError):
    """Nothing satisfies a grammar."""


class EngineState(ABC):
    """The state of an engine after a text.

    Texts are those of the engine's own vocabulary, the distinct byte strings of :class:`TokenTable`.
    """

    @abstractmethod
    def allowed(self) -> Tensor:
        """The byte strings that may come next, bool (U,)."""

    @abstractmethod
    def is_accepting(self) -> bool:
        """Whether the text is complete."""

    @abstractmethod
    def feed(self, text: bytes) -> bool:
        """Append ``text``; returns False if it is not allowed, and the state must not be used after that."""

    @abstractmethod
    def accepts(self, text: bytes) -> bool:
        """Whether :meth:`feed` would return True; the state does not change."""

    @abstractmethod
    def fork(self) -> EngineState:
        """An independent state after the same text."""


class TokenTable:
    """The distinct byte strings of a vocabulary, and the index of each token among them.

    Two tokens may have the same bytes, and the first token of a text may lose its leading space. The engine therefore
    sees every byte string once, and masks over tokens are gathered by index.

    Attributes:
        texts: the distinct byte strings, U of them.
        later: for each token its index in ``texts``, or U if it has no bytes, (V,).
        first: the same for the first token of a text, (V,).
        blank: tokens that leave the empty text as it is, because they are only the space that is dropped, bool (V,).
        ends: ids of the end tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        index: dict[bytes, int] = {}
        first = [vocabulary.visible(token) for token in vocabulary.tokens]
        for token in (*vocabulary.tokens, *first):
            if token:
                index.setdefault(token, len(index))
        self.texts = list(index)
        missing = len(index)  # one element after the last that is always False
        self.later = torch.tensor([index.get(token, missing) for token in vocabulary.tokens])
        self.first = torch.tensor([index.get(token, missing) for token in first])
        pairs = zip(vocabulary.tokens, first, strict=True)
        self.blank = torch.tensor([bool(written) and not visible for written, visible in pairs])
        self.ends = torch.tensor(sorted(vocabulary.ends), dtype=torch.long)

    @cached_property
    def digest(self) -> str:
        """A hash of the distinct byte strings, the same in every process."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(len(text).to_bytes(4, "little") + text)
        return digest.hexdigest()


class MaskCache:
    """The masks of recent texts: particles often have the same text."""

    def __init__(self) -> None:
        self._masks: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, text: bytes, compute: Callable[[], Tensor]) -> Tensor:
        """A copy of the mask after ``text``, computed if it is not known."""
        mask = self._masks.get(text)
        if mask is None:
            mask = self._masks[text] = compute()
            while len(self._masks) > MAX_MASKS:
                self._masks.popitem(last=False)
        return mask.clone()


class CompiledConstraint:
    """A constraint compiled for a vocabulary.

    Args:
        vocabulary: the tokens of the masks.
        table: its distinct byte strings.
        start: the state before the text; sessions fork it.

    Raises:
        EmptyGrammarError: nothing satisfies the constraint, or no token of the vocabulary can start it.
    """

    def __init__(self, vocabulary: Vocabulary, table: TokenTable, start: EngineState) -> None:
        if not start.is_accepting():
            if not any(start.accepts(bytes([byte])) for byte in range(256)):
                raise EmptyGrammarError("nothing satisfies it, not even the empty text")
            if not start.allowed().any():
                raise EmptyGrammarError("no token of the vocabulary can begin it")
        self.vocabulary = vocabulary
        self.table = table
        self.start = start
        self._masks = MaskCache()

    def session(self) -> EngineSession:
        """A session before the first token."""
        return EngineSession(self, self.start.fork(), b"", [0])

    def mask(self, text: bytes, state: EngineState) -> Tensor:
        """The mask after ``text``, whose state is ``state``."""
        return self._masks.get(text, lambda: self._compute_mask(text, state))

    def _compute_mask(self, text: bytes, state: EngineState) -> Tensor:
        table = self.table
        allowed = torch.cat([state.allowed(), torch.zeros(1, dtype=torch.bool)])
        if text:
            mask = allowed[table.later]
        else:
            mask = allowed[table.first] | table.blank
        mask[table.ends] = state.is_accepting()
        return mask


class EngineSession(Session):
    """One text under a compiled constraint."""

    def __init__(self, compiled: CompiledConstraint, state: EngineState, text: bytes, calls: list[int]) -> None:
        self.text = text
        self._compiled = compiled
        self._vocabulary = compiled.vocabulary
        self._state = state
        self._calls = calls  # a list of one number, which forks share

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
            return state.is_accepting()
        state = state.fork()
        return state.feed(rest) and state.is_accepting()

    def mask(self) -> Tensor:
        self._calls[0] += 1
        return self._compiled.mask(self.text, self._state)

    def write(self, text: bytes) -> None:
        visible = self._vocabulary.visible
        added = visible(self.text + text)[len(visible(self.text)) :]
        if not self._state.accepts(added):
            raise not_allowed(text, self.text)
        self._state.feed(added)
        self.text += text

    def fork(self) -> EngineSession:
        return EngineSession(self._compiled, self._state.fork(), self.text, self._calls)

    def _nearest(self, text: bytes) -> tuple[EngineState, bytes]:
        """The latest known state on the way to ``text``, which must not be changed, and the bytes that remain."""
        written = self._vocabulary.visible(self.text)
        target = self._vocabulary.visible(text)
        if target.startswith(written):
            return self._state, target[len(written) :]
        return self._compiled.start, target
