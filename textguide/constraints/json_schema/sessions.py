"""Sessions on JSON documents: verdicts by the reader, and masks over a whole vocabulary."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..automata.expressions import ByteAutomaton
from ..base import Session, not_allowed
from ..engines.session import MaskCache, TokenTable
from ..utf8 import whole_characters
from ..vocabulary import Vocabulary
from . import ecma_patterns
from .plans import ObjectPlan, Plan, StringPlan
from .reader import STRING, Reader, State, stays_inside_string

MOST_STATES = 1 << 14
"""Texts whose state is remembered."""
MOST_VECTORS = 128
"""Vectors over the vocabulary that are remembered, one for each state of an automaton."""
Bits = NDArray[np.bool_]


class TokenIndex:
    """The byte strings of a vocabulary in the forms that masks need.

    Attributes:
        table: the byte strings, U of them; empty for tokens without bytes and for repeated ones.
        has_bytes: which of them are not empty, bool (U,).
        order: their indices, sorted by their bytes.
        plain: indices of those with whole characters only, which a JSON string may contain as they are, P of them.
        lengths: the number of characters of each of these, (P,).
        stays_inside: whether an unrestricted string is still open after each byte string, bool (U,).
        has_quote: whether each contains a quotation mark, bool (U,).
        has_escape: whether each contains a backslash, bool (U,).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.table = TokenTable(vocabulary)
        texts = self.table.texts
        self.has_bytes = np.array([len(text) > 0 for text in texts], dtype=bool)
        self.order = np.array(sorted(range(len(texts)), key=texts.__getitem__), dtype=np.int64)
        self.sorted_texts = [texts[number] for number in self.order]
        plain = [number for number, text in enumerate(texts) if _is_plain(text)]
        self.plain = np.array(plain, dtype=np.int64)
        self.is_plain = np.zeros(len(texts), dtype=bool)
        self.is_plain[self.plain] = True
        self.lengths = np.array([len(texts[number].decode()) for number in plain], dtype=np.int64)
        self.place = {texts[number]: place for place, number in enumerate(plain)}
        self.longest = max((len(texts[number]) for number in plain), default=0)
        sizes = np.array([len(texts[number]) for number in plain], dtype=np.int64)
        by_size = np.argsort(-sizes, kind="stable")
        self._by_size = by_size
        self._counts = [int((sizes > column).sum()) for column in range(self.longest)]
        self._bytes = np.zeros((len(plain), self.longest), dtype=np.uint8)
        for row, place in enumerate(by_size):
            text = texts[plain[place]]
            self._bytes[row, : len(text)] = np.frombuffer(text, dtype=np.uint8)
        self._vectors: OrderedDict[tuple[int, int], tuple[ByteAutomaton, NDArray[np.int32]]] = OrderedDict()
        self.stays_inside = self.is_plain.copy()
        self.has_quote = np.array([b'"' in text for text in texts], dtype=bool)
        self.has_escape = np.array([b"\\" in text for text in texts], dtype=bool)
        for number in np.flatnonzero(~self.is_plain):
            self.stays_inside[number] = stays_inside_string(texts[number])

    def alive(self, automaton: ByteAutomaton, state: int) -> Bits:
        """Which plain byte strings an automaton can read from a state without dying, (P,)."""
        return self.states_after(automaton, state) != automaton.dead

    def states_after(self, automaton: ByteAutomaton, state: int) -> NDArray[np.int32]:
        """The state of an automaton after each plain byte string, (P,)."""
        key = (id(automaton), state)
        known = self._vectors.get(key)
        if known is not None and known[0] is automaton:
            self._vectors.move_to_end(key)
            return known[1]
        states = np.full(len(self.plain), state, dtype=np.int32)
        for column, count in enumerate(self._counts):
            states[:count] = automaton.moves[states[:count], self._bytes[:count, column]]
        after = np.empty(len(self.plain), dtype=np.int32)
        after[self._by_size] = states
        self._vectors[key] = (automaton, after)
        while len(self._vectors) > MOST_VECTORS:
            self._vectors.popitem(last=False)
        return after

    def starts_of(self, texts: Sequence[bytes]) -> Bits:
        """Which plain byte strings one of these texts starts with, (P,)."""
        found = np.zeros(len(self.plain), dtype=bool)
        for text in texts:
            for end in range(1, min(len(text), self.longest) + 1):
                place = self.place.get(text[:end])
                if place is not None:
                    found[place] = True
        return found


@lru_cache(maxsize=4)
def token_index(vocabulary: Vocabulary) -> TokenIndex:
    """The index of a vocabulary; cached."""
    return TokenIndex(vocabulary)


def _is_plain(text: bytes) -> bool:
    if not text or b'"' in text or b"\\" in text or min(text) < 0x20:
        return False
    decoded = whole_characters(text)
    return decoded is not None and not decoded[1]


class _Shared:
    """What all forks of a session share: the reader, caches, and the number of evaluations."""

    def __init__(self, reader: Reader, vocabulary: Vocabulary) -> None:
        self.reader = reader
        self.vocabulary = vocabulary
        self.masks = MaskCache()
        self.states: OrderedDict[bytes, State | None] = OrderedDict()
        self.calls = 0

    def state_after(self, text: bytes, known: State, begin: int) -> State | None:
        """The state after ``text``, of which ``known`` is the state after the first ``begin`` bytes."""
        if text not in self.states:
            self.calls += 1
            self.states[text] = self.reader.read(known, text[begin:])[0]
            while len(self.states) > MOST_STATES:
                self.states.popitem(last=False)
        return self.states[text]


class DocumentSession(Session):
    """One text under a JSON schema.

    Args:
        shared: what forks share.
        text: the bytes written so far.
        state: the state after them.
        engine: a session that must accept the text too; None: there is none.
    """

    def __init__(self, shared: _Shared, text: bytes, state: State, engine: Session | None) -> None:
        self.text = text
        self._shared = shared
        self._vocabulary = shared.vocabulary
        self._state = state
        self._engine = engine

    @classmethod
    def begin(cls, reader: Reader, vocabulary: Vocabulary, engine: Session | None = None) -> DocumentSession:
        """A session before the first token."""
        return cls(_Shared(reader, vocabulary), b"", State(), engine)

    @property
    def calls(self) -> int:
        return self._shared.calls

    def is_prefix(self, text: bytes) -> bool:
        if self._engine is not None and not self._engine.is_prefix(text):
            return False
        return self._state_after(text) is not None

    def is_complete(self, text: bytes) -> bool:
        if self._engine is not None and not self._engine.is_complete(text):
            return False
        state = self._state_after(text)
        return state is not None and self._shared.reader.is_complete(state)

    def mask(self) -> Tensor:
        return self._shared.masks.get(self.text, self._compute_mask)

    def write(self, text: bytes) -> None:
        whole = self.text + text
        state = self._state_after(whole)
        if state is None:
            raise not_allowed(text, self.text)
        if self._engine is not None:
            self._engine.write(text)
        self._state = state
        self.text = whole

    def fork(self) -> DocumentSession:
        engine = None if self._engine is None else self._engine.fork()
        return DocumentSession(self._shared, self.text, self._state, engine)

    def _state_after(self, text: bytes) -> State | None:
        written = self._vocabulary.visible(self.text)
        target = self._vocabulary.visible(text)
        if target.startswith(written):
            return self._shared.state_after(target, self._state, len(written))
        return self._shared.state_after(target, State(), 0)

    # -- masks -----------------------------------------------------------------------------------------------------

    def _compute_mask(self) -> Tensor:
        self._shared.calls += 1
        index = token_index(self._vocabulary)
        table = index.table
        possible = index.has_bytes.copy()
        outer = None if self._engine is None else self._engine.mask()
        if outer is not None:
            tokens = outer.numpy()
            from_engine = np.zeros(len(table.texts) + 1, dtype=bool)
            if self.text:
                from_engine[: table.size] = tokens
            else:
                from_engine[table.first.numpy()[tokens]] = True
            possible &= from_engine[:-1]
        allowed = torch.from_numpy(self._allowed(index, possible))
        return table.mask(allowed, not self.text, self.is_complete(self.text))

    def _allowed(self, index: TokenIndex, possible: Bits) -> Bits:
        """Which byte strings may come next, among the possible ones, (U,)."""
        allowed = np.zeros(len(possible), dtype=bool)
        rest = possible
        if self._state.expects == STRING and not self._state.tail:
            if self._is_free():
                stays_inside = index.stays_inside
                if self._state.is_key:  # not every escape is allowed in a name
                    stays_inside = stays_inside & ~index.has_escape
                allowed = possible & stays_inside
                rest = possible & (index.has_quote | index.has_escape) & ~stays_inside
            else:
                allowed[index.plain] = self._inside(index)
                allowed &= possible
                rest = possible & ~index.is_plain
        read = self._shared.reader.read
        texts = index.sorted_texts
        candidates = np.flatnonzero(rest[index.order]).tolist()
        at = 0
        while at < len(candidates):
            place = candidates[at]
            state, used = read(self._state, texts[place])
            at += 1
            if state is not None:
                allowed[index.order[place]] = True
                continue
            # No text that starts with the refused bytes is allowed either.
            end = bisect_left(texts, _after(texts[place][:used]), place + 1)
            at = bisect_left(candidates, end, at)
        return allowed

    def _is_free(self) -> bool:
        """Whether the unfinished string may go on in any way."""
        state = self._state
        if not state.is_key:
            return any(isinstance(branch.plan, StringPlan) and branch.plan.is_free for branch in state.branches)
        assert state.frame is not None
        for branch in state.frame.branches:
            assert isinstance(branch.plan, ObjectPlan)
            if branch.plan.has_any_name(state.frame.keys):
                return True
        return False

    def _inside(self, index: TokenIndex) -> Bits:
        """Which plain byte strings an unfinished string may contain next, (P,)."""
        state = self._state
        begun = state.text.encode("utf-8", "surrogatepass")
        found = np.zeros(len(index.plain), dtype=bool)
        if state.is_key:
            assert state.frame is not None
            for branch in state.frame.branches:
                assert isinstance(branch.plan, ObjectPlan)
                found |= _inside_name(index, branch.plan, begun, len(state.text), state.frame.keys)
        for branch in state.branches:
            assert isinstance(branch.plan, StringPlan)
            found |= _inside_string(index, branch.plan, branch.states, begun, len(state.text))
        return found


def _inside_string(index: TokenIndex, plan: StringPlan, states: Sequence[int], begun: bytes, length: int) -> Bits:
    found = np.ones(len(index.plain), dtype=bool)
    if plan.longest is not None:
        found &= index.lengths <= plan.longest - length
    if plan.values is not None:
        found &= index.starts_of([value[len(begun) :] for value in plan.values if value.startswith(begun)])
    for automaton, state in zip(plan.automata, states, strict=True):
        if plan.longest is None:
            found &= index.alive(automaton, state)
        else:
            needed = automaton.characters[index.states_after(automaton, state)]
            found &= length + index.lengths + needed <= plan.longest
    return found


def _inside_name(index: TokenIndex, plan: ObjectPlan, begun: bytes, length: int, used: object) -> Bits:
    """As :meth:`ObjectPlan.may_have_name`, for every plain byte string."""
    assert isinstance(used, (set, frozenset))
    found = np.ones(len(index.plain), dtype=bool)
    missing = plan.only_names(used)
    if missing is not None:
        return index.starts_of([name[len(begun) :] for name in missing if name.startswith(begun)])
    if plan.names:
        found = _inside_one_of(index, plan.key_plans, begun, length)
    if plan.names or plan.all_closed:
        found &= _inside_unused(index, plan, begun, length, used)
    if not plan.all_closed:
        return found
    unused = [name for name in plan.listed if name.startswith(begun) and name.decode() not in used]
    listed = index.starts_of([name[len(begun) :] for name in unused])
    by_pattern = np.ones(len(index.plain), dtype=bool)
    for patterns in plan.patterns_of_closed:
        by_pattern &= _inside_patterns(index, patterns, begun)
    return found & (listed | by_pattern)


def _inside_one_of(index: TokenIndex, plans: Sequence[Plan], begun: bytes, length: int) -> Bits:
    """Which plain byte strings may continue a string of one of the plans, (P,)."""
    found = np.zeros(len(index.plain), dtype=bool)
    for plan in plans:
        assert isinstance(plan, StringPlan)
        states = plan.run(plan.start, begun)
        if states is not None:
            found |= _inside_string(index, plan, states, begun, length)
    return found


def _inside_unused(
    index: TokenIndex, plan: ObjectPlan, begun: bytes, length: int, used: set[str] | frozenset[str]
) -> Bits:
    """Not those after which only names are left that are used, (P,)."""
    found = np.ones(len(index.plain), dtype=bool)
    rests = [name.encode("utf-8", "surrogatepass") for name in used]
    rests = [name[len(begun) :] for name in rests if name.startswith(begun)]
    for place in np.flatnonzero(index.starts_of(rests)):
        text = index.table.texts[index.plain[place]]
        found[place] = plan.may_have_name(begun + text, length + int(index.lengths[place]), used)
    return found


def _inside_patterns(index: TokenIndex, patterns: Sequence[str], begun: bytes) -> Bits:
    """Which plain byte strings may continue a name that starts with ``begun`` and matches one of the patterns, (P,)."""
    found = np.zeros(len(index.plain), dtype=bool)
    for pattern in patterns:
        automaton = ecma_patterns.automaton_of(pattern)
        if automaton is None:
            found[:] = True
        else:
            found |= index.alive(automaton, automaton.run(automaton.start, begun))
    return found


def _after(prefix: bytes) -> bytes:
    """The first byte string after all that start with ``prefix``."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\xff" * 1000
