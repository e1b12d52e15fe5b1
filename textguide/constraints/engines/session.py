"""Sessions on engines that know the whole mask: the part that llguidance and xgrammar share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

import numpy as np
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
    """The byte strings of a vocabulary as an engine sees them.

    An engine sees every distinct byte string once: at the id of the first token that has it, so that its mask is nearly
    the mask over tokens. Two tokens may have the same bytes, and the first token of a text may lose its leading space.

    Attributes:
        texts: the byte strings, U of them; empty for tokens without bytes and for repeated ones. The first V belong to
            the tokens of the same ids.
        repeated: tokens whose bytes an earlier one has.
        originals: the earlier ones.
        first: the index in ``texts`` of what each token is at the start of a text, or U if that is nothing, (V,).
        blank: tokens that leave the empty text as it is, because they are only the space that is dropped, bool (V,).
        ends: ids of the end tokens.
        size: V.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        index: dict[bytes, int] = {}
        repeated = []
        texts = []
        for token, text in enumerate(vocabulary.tokens):
            if text in index:
                repeated.append(token)
                text = b""
            if text:
                index[text] = token
            texts.append(text)
        first = [vocabulary.visible(token) for token in vocabulary.tokens]
        for text in first:
            if text and text not in index:
                index[text] = len(texts)
                texts.append(text)
        self.texts = texts
        self.size = vocabulary.size
        self.repeated = np.array(repeated, dtype=np.int64)
        self.originals = np.array([index[vocabulary.tokens[token]] for token in repeated], dtype=np.int64)
        self.first = torch.tensor([index.get(text, len(texts)) for text in first])
        pairs = zip(vocabulary.tokens, first, strict=True)
        self.blank = torch.tensor([bool(written) and not visible for written, visible in pairs])
        self.ends = sorted(vocabulary.ends)

    def mask(self, allowed: Tensor, is_start: bool, is_complete: bool) -> Tensor:
        """The mask over tokens, bool (V,).

        Args:
            allowed: the byte strings that may come next, bool (U,); the mask may share its memory.
            is_start: whether the text is empty.
            is_complete: whether an end token may follow.
        """
        if is_start:
            mask = torch.cat([allowed, torch.zeros(1, dtype=torch.bool)])[self.first] | self.blank
        else:
            mask = allowed[: self.size]
        values = mask.numpy()  # shares its memory; writing to few elements is several times faster than by torch
        if len(self.repeated) and not is_start:
            values[self.repeated] = values[self.originals]
        for end in self.ends:
            values[end] = is_complete
        return mask

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
        return self.table.mask(state.allowed(), not text, state.is_accepting())


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
