"""Reads a JSON document byte by byte, and stops as soon as no valid document starts like this."""

from __future__ import annotations

from collections.abc import Set
from functools import lru_cache
from typing import Any, NamedTuple

from ..automata.expressions import ByteAutomaton
from ..utf8 import whole_characters
from .escapes import characters_after, characters_without_needless, escaped, is_needless
from .nodes import Node
from .numbers import number_of
from .plans import ArrayPlan, NumberPlan, ObjectPlan, Plan, StringPlan, plans

# What may come next.
VALUE, FIRST_ITEM, KEY, FIRST_KEY, COLON, AFTER_VALUE, STRING, NUMBER, WORD, END = range(10)
_SPACE = b" \t\r\n"
_WORDS = {0x74: b"true", 0x66: b"false", 0x6E: b"null"}
_WORD_VALUES = {b"true": True, b"false": False, b"null": None}
_NUMBER_STARTS = frozenset(b"-0123456789")
_NUMBER_BYTES = frozenset(b"+-.0123456789eE")


class Branch(NamedTuple):
    """One way in which an open value may be valid.

    Args:
        plan: what it must satisfy.
        parents: the branches of the surrounding value, by number, that allow this one.
        states: of the automata of a string.
    """

    plan: Plan
    parents: frozenset[int]
    states: tuple[int, ...] = ()


class Frame(NamedTuple):
    """An open object or array.

    Args:
        outer: the surrounding object or array.
        branches: the ways in which it may still be valid.
        keys: names of its properties.
        parts: the values so far, the last one first: ``(earlier parts, value)``; None: there are none.
        number: how many these are.
        key: the name of the property that is being written.
        is_object: whether it is an object.
    """

    outer: Frame | None
    branches: tuple[Branch, ...]
    keys: Set[str]
    parts: Any
    number: int
    key: str
    is_object: bool


class State(NamedTuple):
    """The state after a text.

    Args:
        expects: what may come next, such as :data:`VALUE`.
        frame: the innermost open object or array.
        gap: the state of the automaton for whitespace, between two parts.
        branches: the ways in which the unfinished string, number or word may be valid; none for a key.
        text: what is known of it: the characters of a string, the number as it is written, or the rest of a word.
        tail: the bytes of an incomplete character or escape in a string.
        is_key: whether the string is a key.
    """

    expects: int = VALUE
    frame: Frame | None = None
    gap: int = -1
    branches: tuple[Branch, ...] = ()
    text: str = ""
    tail: bytes = b""
    is_key: bool = False


class Reader:
    """Reads documents of a schema.

    Args:
        root: the schema.
        whitespace: the automaton of what may come between two parts.
    """

    def __init__(self, root: Node, whitespace: ByteAutomaton) -> None:
        self.root = root
        self.whitespace = whitespace

    def read(self, state: State, added: bytes) -> tuple[State | None, int]:
        """Read more bytes.

        Returns:
            The state after them and their number; or None, and the number of bytes up to the first one with which no
            valid document starts.
        """
        at = 0
        while at < len(added):
            if state.expects == STRING:
                following, used = self._read_in_string(state, added, at)
            else:
                following = self._read_byte(state, added[at])
                used = 1
            at += used
            if following is None:
                return None, at
            state = following
        if state.expects == STRING and not self._string_may_go_on(state):
            return None, at
        return state, at

    def is_complete(self, state: State) -> bool:
        """Whether the text may end."""
        if state.expects == NUMBER and state.frame is None:
            return self._finish_number(state) is not None
        return state.expects == END

    # -- between strings -------------------------------------------------------------------------------------------

    def _read_byte(self, state: State, byte: int) -> State | None:
        if state.expects == NUMBER:
            if byte in _NUMBER_BYTES:
                return self._with_digit(state, byte)
            finished = self._finish_number(state)
            return None if finished is None or finished.expects == END else self._read_byte(finished, byte)
        if state.expects == WORD:
            return self._with_letter(state, byte)
        if byte in _SPACE:
            return self._with_space(state, byte)
        if state.gap >= 0 and not self.whitespace.accepting[state.gap]:
            return None
        return self._read_part(state, byte)

    def _with_space(self, state: State, byte: int) -> State | None:
        if state.gap < 0:
            return None
        gap = int(self.whitespace.moves[state.gap, byte])
        return None if gap == self.whitespace.dead else state._replace(gap=gap)

    def _read_part(self, state: State, byte: int) -> State | None:
        expects = state.expects
        if expects == COLON:
            return self._in_gap(VALUE, state.frame) if byte == 0x3A else None
        if expects == AFTER_VALUE:
            return self._read_after_value(state, byte)
        if expects in (KEY, FIRST_KEY):
            if byte == 0x22:
                return State(STRING, state.frame, is_key=True)
            return self._close(state) if byte == 0x7D and expects == FIRST_KEY else None
        if expects == FIRST_ITEM and byte == 0x5D:
            return self._close(state)
        return self._begin_value(state, byte) if expects in (VALUE, FIRST_ITEM) else None

    def _in_gap(self, expects: int, frame: Frame | None) -> State:
        return State(expects, frame, gap=self.whitespace.start)

    def _read_after_value(self, state: State, byte: int) -> State | None:
        frame = state.frame
        assert frame is not None
        if byte in (0x5D, 0x7D):
            return self._close(state) if (byte == 0x7D) == frame.is_object else None
        if byte != 0x2C:
            return None
        # Only branches stay that allow another part.
        branches = []
        for branch in frame.branches:
            plan = branch.plan
            if isinstance(plan, ObjectPlan):
                has_room = plan.may_have_name(b"", 0, frame.keys)
            else:
                has_room = isinstance(plan, ArrayPlan) and plan.may_have(frame.number)
            if has_room:
                branches.append(branch)
        if not branches:
            return None
        return self._in_gap(KEY if frame.is_object else VALUE, frame._replace(branches=tuple(branches)))

    # -- values ----------------------------------------------------------------------------------------------------

    def _begin_value(self, state: State, byte: int) -> State | None:
        if byte == 0x22:
            branches = self._branches(state.frame, "string")
            return State(STRING, state.frame, branches=branches) if branches else None
        if byte in (0x7B, 0x5B):
            is_object = byte == 0x7B
            branches = self._branches(state.frame, "object" if is_object else "array")
            frame = Frame(state.frame, branches, frozenset(), None, 0, "", is_object)
            return self._in_gap(FIRST_KEY if is_object else FIRST_ITEM, frame) if branches else None
        if byte in _NUMBER_STARTS:
            branches = self._branches(state.frame, "number")
            return self._with_digit(State(NUMBER, state.frame, branches=branches), byte)
        if byte in _WORDS:
            word = _WORDS[byte]
            branches = self._branches(state.frame, "null" if word == b"null" else "boolean")
            branches = self._accepting(branches, _WORD_VALUES[word], word)
            if self._is_repeated(state.frame, _WORD_VALUES[word]):
                return None
            return State(WORD, state.frame, branches=branches, text=word.decode(), tail=word[1:]) if branches else None
        return None

    def _branches(self, frame: Frame | None, kind: str) -> tuple[Branch, ...]:
        """The ways in which the next value may be valid if it has this type."""
        if frame is None:
            return tuple(Branch(plan, frozenset([0]), _start(plan)) for plan in plans((self.root,), kind))
        parents: dict[Plan, set[int]] = {}
        for number, branch in enumerate(frame.branches):
            outer = branch.plan
            if isinstance(outer, ObjectPlan):
                nodes = outer.of_property(frame.key)
            else:
                assert isinstance(outer, ArrayPlan)
                if not outer.may_have(frame.number):
                    continue
                nodes = outer.of_item(frame.number)
            for plan in plans(nodes, kind):
                unused: Plan | None = plan
                if isinstance(outer, ArrayPlan) and outer.is_unique:
                    unused = plan.without(_listed(frame.parts))
                if unused is not None:
                    parents.setdefault(unused, set()).add(number)
        return tuple(Branch(plan, frozenset(numbers), _start(plan)) for plan, numbers in parents.items())

    @staticmethod
    def _is_repeated(frame: Frame | None, value: Any) -> bool:
        """Whether an array whose items must differ already contains true, false or null."""
        if frame is None or not all(isinstance(one.plan, ArrayPlan) and one.plan.is_unique for one in frame.branches):
            return False
        return any(item is value for item in _listed(frame.parts))

    @staticmethod
    def _accepting(branches: tuple[Branch, ...], value: Any, key: Any) -> tuple[Branch, ...]:
        return tuple(branch for branch in branches if branch.plan.accepts(value, key))

    def _finish(self, frame: Frame | None, branches: tuple[Branch, ...], value: Any) -> State | None:
        """The state after a value that is valid in these branches."""
        if not branches:
            return None
        if frame is None:
            return State(END) if self.root.is_valid(value, None) else None
        allowed = frozenset().union(*(branch.parents for branch in branches))
        kept = [branch for number, branch in enumerate(frame.branches) if number in allowed]
        if frame.is_object:
            parts = (frame.parts, (frame.key, value))
        else:
            parts = (frame.parts, value)
            items = _listed(parts)
            kept = [one for one in kept if isinstance(one.plan, ArrayPlan) and one.plan.accepts_items(items)]
        if not kept:
            return None
        following = frame._replace(branches=tuple(kept), parts=parts, number=frame.number + 1)
        return self._in_gap(AFTER_VALUE, following)

    def _close(self, state: State) -> State | None:
        """The state after the end of the innermost object or array."""
        frame = state.frame
        assert frame is not None
        value: Any = _listed(frame.parts)
        if frame.is_object:
            value = dict(value)
        return self._finish(frame.outer, self._accepting(frame.branches, value, None), value)

    # -- numbers and words -----------------------------------------------------------------------------------------

    def _with_digit(self, state: State, byte: int) -> State | None:
        text = state.text + chr(byte)
        if not _is_start_of_number(text):
            return None
        branches = []
        for branch in state.branches:
            assert isinstance(branch.plan, NumberPlan)
            if branch.plan.may_start_with(text):
                branches.append(branch)
        return state._replace(branches=tuple(branches), text=text) if branches else None

    def _finish_number(self, state: State) -> State | None:
        if not _is_number(state.text):
            return None
        value = number_of(state.text)
        return self._finish(state.frame, self._accepting(state.branches, value, (NUMBER, state.text)), value)

    def _with_letter(self, state: State, byte: int) -> State | None:
        if byte != state.tail[0]:
            return None
        tail = state.tail[1:]
        if tail:
            return state._replace(tail=tail)
        return self._finish(state.frame, state.branches, _WORD_VALUES[state.text.encode()])

    # -- strings ---------------------------------------------------------------------------------------------------

    def _read_in_string(self, state: State, added: bytes, at: int) -> tuple[State | None, int]:
        """Read a part of a string, up to its end or to the end of ``added``."""
        byte = added[at]
        if state.tail[:1] == b"\\" or (byte == 0x5C and not state.tail):
            return self._with_escape(state, byte), 1
        if byte == 0x22:
            return (None if state.tail else self._finish_string(state)), 1
        end = at
        while end < len(added) and added[end] not in b'"\\' and added[end] >= 0x20:
            end += 1
        if end == at:
            return None, 1
        decoded = whole_characters(state.tail + added[at:end])
        if decoded is None:
            return None, _valid_length(state.tail, added[at:end]) + 1
        characters, tail = decoded
        if tail and end < len(added):
            return None, end - at + 1
        following = self._with_characters(state, characters)
        return (None if following is None else following._replace(tail=tail)), end - at

    def _with_escape(self, state: State, byte: int) -> State | None:
        tail = state.tail + bytes([byte])
        character = escaped(tail)
        if character is None:
            return None
        if not character:
            return state._replace(tail=tail)
        if _is_listed(state) and is_needless(character):
            return None
        return self._with_characters(state._replace(tail=b""), character)

    def _with_characters(self, state: State, characters: str) -> State | None:
        text = state.text + characters
        if state.is_key:
            return state._replace(text=text)
        added = characters.encode("utf-8", "surrogatepass")
        branches = []
        for branch in state.branches:
            assert isinstance(branch.plan, StringPlan)
            states = branch.plan.run(branch.states, added)
            if states is not None:
                branches.append(branch._replace(states=states))
        return state._replace(text=text, branches=tuple(branches)) if branches else None

    def _string_may_go_on(self, state: State) -> bool:
        """Whether an unfinished string may become a valid one."""
        begun = state.text.encode("utf-8", "surrogatepass")
        length = len(state.text) + bool(state.tail)
        following = None
        if state.tail[:1] == b"\\":
            following = characters_without_needless(state.tail) if _is_listed(state) else characters_after(state.tail)
        else:
            begun += state.tail
        if state.is_key:
            frame = state.frame
            assert frame is not None
            return any(
                isinstance(branch.plan, ObjectPlan) and branch.plan.may_have_name(begun, length, frame.keys, following)
                for branch in frame.branches
            )
        for branch in state.branches:
            plan = branch.plan
            assert isinstance(plan, StringPlan)
            if not plan.may_start_with(begun, length, following):
                continue
            if following is None:
                states = plan.run(branch.states, state.tail)
                if states is not None and plan.has_room(states, length):
                    return True
            elif plan.may_read_one(branch.states, length, following):
                return True
        return False

    def _finish_string(self, state: State) -> State | None:
        if not state.is_key:
            branches = self._accepting(state.branches, state.text, (STRING, state.text))
            return self._finish(state.frame, branches, state.text)
        frame = state.frame
        assert frame is not None
        name = state.text
        if name in frame.keys:
            return None
        keys = frame.keys | {name}
        kept = []
        for branch in frame.branches:
            plan = branch.plan
            assert isinstance(plan, ObjectPlan)
            if plan.may_have_name(b"", 0, frame.keys) and plan.allows(name) and plan.may_end_with(keys):
                kept.append(branch)
        if not kept:
            return None
        return self._in_gap(COLON, frame._replace(branches=tuple(kept), keys=keys, key=name))


def stays_inside_string(added: bytes) -> bool:
    """Whether these bytes may be written inside a string, and do not end it."""
    tail = b""
    for byte in added:
        character = bytes([byte])
        if tail[:1] == b"\\" or (character == b"\\" and not tail):
            decoded = escaped(tail + character)
            if decoded is None:
                return False
            tail = b"" if decoded else tail + character
            continue
        split = whole_characters(tail + character)
        if split is None or character == b'"' or byte < 0x20:
            return False
        tail = split[1]
    return True


def _is_listed(state: State) -> bool:
    """Whether an unfinished string is a name or one of listed values, which are written without needless escapes."""
    if state.is_key:
        return True
    return all(isinstance(branch.plan, StringPlan) and branch.plan.values is not None for branch in state.branches)


def _start(plan: Plan) -> tuple[int, ...]:
    return plan.start if isinstance(plan, StringPlan) else ()


def _listed(parts: Any) -> list[Any]:
    """The parts of an object or array, the first one first."""
    found = []
    while parts is not None:
        parts, value = parts
        found.append(value)
    found.reverse()
    return found


@lru_cache(maxsize=1 << 14)
def _is_number(text: str) -> bool:
    return _number().fullmatch(text) is not None


@lru_cache(maxsize=1 << 14)
def _is_start_of_number(text: str) -> bool:
    return _number().fullmatch(text, partial=True) is not None


@lru_cache(maxsize=1)
def _number() -> Any:
    import regex

    return regex.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def _valid_length(tail: bytes, added: bytes) -> int:
    """The number of bytes of ``added`` that continue UTF-8 text after ``tail``."""
    for length in range(len(added), 0, -1):
        if whole_characters(tail + added[:length]) is not None:
            return length
    return 0
