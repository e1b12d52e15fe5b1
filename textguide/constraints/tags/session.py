"""Free text, and forms in it that triggers start: one text, read from left to right.

A text is divided in one way only. Free text ends with the first trigger. A form then starts: the rest of its
beginning, its content, and its end. The content ends as soon as it satisfies the constraint and the end
follows, and free text starts again. If several forms share a trigger, all of them are followed until all but one are
ruled out.

A text is a prefix if and only if the scan of it does not fail: the content of a form can be continued to a member, and
wherever the form then ends first, free text follows, which may end or be continued with further forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base import Session, not_allowed
from ..triggers import Literal, Trigger
from ..utf8 import whole_characters
from ..vocabulary import SPECIAL, Vocabulary
from .tokens import MAX_CHECKED, free_tokens, tokens_into

SEPARATORS = (b"", b"\n")
"""What may be between forms if there is no free text."""


@dataclass(frozen=True)
class Form:
    """A form after its trigger.

    Args:
        trigger: number of its trigger.
        rest: what is left of its beginning after the trigger.
        session: its content before the first byte; never advanced.
        end: its end; None: the content goes on to the end of the text.
    """

    trigger: int
    rest: bytes
    session: Session
    end: bytes | None


@dataclass(frozen=True)
class Structure:
    """What a text may contain.

    Args:
        triggers: the triggers.
        forms: the forms.
        at_least: smallest number of forms.
        at_most: largest number of forms; None: no limit.
        free: whether there is text besides the forms.
    """

    triggers: tuple[Trigger, ...]
    forms: tuple[Form, ...]
    at_least: int
    at_most: int | None
    free: bool


@dataclass(frozen=True)
class State:
    """The position of a text in its structure.

    Args:
        begin: start of the current free text, or the place after the current trigger.
        count: number of forms that have ended.
        forms: the numbers of the forms that the text may be in; None in free text.
        searched: length of the text that was scanned.
        whole: in free text, the start of its last character if that is incomplete, or its length.
    """

    begin: int = 0
    count: int = 0
    forms: tuple[int, ...] | None = None
    searched: int = 0
    whole: int = 0


class TagsSession(Session):
    """One text with forms in it.

    Args:
        structure: what a text may contain.
        vocabulary: what each token adds.
        text: the bytes written so far.
        state: the position of the text in its structure.
        contents: the sessions of the forms that the text may be in, after their contents.
    """

    def __init__(
        self,
        structure: Structure,
        vocabulary: Vocabulary,
        text: bytes = b"",
        state: State | None = None,
        contents: dict[int, Session] | None = None,
    ) -> None:
        self.text = text
        self._structure = structure
        self._vocabulary = vocabulary
        self._state = state or State()
        self._contents = contents or {}

    @property
    def calls(self) -> int:
        return sum(form.session.calls for form in self._structure.forms)

    def is_prefix(self, text: bytes) -> bool:
        return self._state_of(text) is not None

    def is_complete(self, text: bytes) -> bool:
        state = self._state_of(text)
        if state is None:
            return False
        if state.forms is not None:
            return state.count + 1 >= self._structure.at_least and self._ends_inside(text, state)
        piece = text[state.begin :]
        if not self._structure.free and self._visible(piece, state) not in SEPARATORS:
            return False
        return state.count >= self._structure.at_least and state.whole == len(text)

    def write(self, text: bytes) -> None:
        whole = self.text + text
        state = self._state_of(whole)
        if state is None:
            raise not_allowed(text, self.text)
        contents = {}
        for number in state.forms or ():
            form = self._structure.forms[number]
            start = state.begin + len(form.rest)
            if len(whole) < start:
                continue
            same = state.begin == self._state.begin and number in self._contents
            session = self._contents[number] if same else form.session.fork()
            # If only the end of the form can follow, its session stays as it is.
            if len(whole) - start > len(session.text) and session.is_prefix(whole[start:]):
                session.write(whole[start + len(session.text) :])
            contents[number] = session
        self.text = whole
        self._state = state
        self._contents = contents

    def fork(self) -> TagsSession:
        contents = {number: session.fork() for number, session in self._contents.items()}
        return TagsSession(self._structure, self._vocabulary, self.text, self._state, contents)

    # -- reading ---------------------------------------------------------------------------------------------------

    def states(self, text: bytes) -> list[State] | None:
        """The states at which free text and forms ended in ``text``, and the one after it.

        Returns:
            None if the text is not a prefix.
        """
        states = [State()]
        while True:
            following = self._step(text, states[-1])
            if following is None:
                return None
            if following.begin == states[-1].begin:  # nothing ended in the rest of the text
                return [*states[:-1], following]
            states.append(following)

    def trigger_of(self, state: State) -> int:
        """The number of the trigger with which the form of a state starts."""
        assert state.forms is not None
        return self._structure.forms[state.forms[0]].trigger

    def content(self, text: bytes, state: State, stop: int) -> tuple[int, int, int]:
        """The form that starts at a state and ends at ``stop``, and the start and end of its content."""
        for number in state.forms or ():
            form = self._structure.forms[number]
            start = state.begin + len(form.rest)
            end = stop - len(form.end or b"")
            fits = text[state.begin : start] == form.rest and start <= end and text[end:stop] == (form.end or b"")
            if fits and form.session.is_complete(text[start:end]):
                return number, start, end
        raise AssertionError("no form ends here")

    def _state_of(self, text: bytes) -> State | None:
        """The state after ``text``; None if it is not a prefix."""
        if text == self.text:
            return self._state
        state = self._state if text.startswith(self.text) else State()
        while True:
            following = self._step(text, state)
            if following is None or following.begin == state.begin:
                return following
            state = following

    def _step(self, text: bytes, state: State) -> State | None:
        """The state at the next place where free text or a form ends, or at the end of ``text``."""
        return self._in_free_text(text, state) if state.forms is None else self._in_form(text, state)

    def _in_free_text(self, text: bytes, state: State) -> State | None:
        structure = self._structure
        piece = text[state.begin :]
        searched = state.searched - state.begin
        number, end = None, len(piece) + 1
        for index, trigger in enumerate(structure.triggers):
            at = trigger(piece, searched)
            if at is not None and at < end:
                number, end = index, at
        if number is None:
            whole = self._whole_length(text, state)
            if whole is None or not self._is_allowed_between(piece, state):
                return None
            return replace(state, searched=len(text), whole=whole)
        if structure.at_most is not None and state.count >= structure.at_most:
            return None
        if not self._may_precede(text[: state.begin + end], number, state):
            return None
        forms = tuple(index for index, form in enumerate(structure.forms) if form.trigger == number)
        begin = state.begin + end
        return State(begin, state.count, forms, begin)

    def _whole_length(self, text: bytes, state: State) -> int | None:
        """The length of ``text`` without an incomplete last character; None if it is not UTF-8 or a special token."""
        rest = text[state.whole :]
        special = rest.find(SPECIAL)
        if special >= 0:  # the start of a trigger, if it is allowed at all
            rest = rest[:special]
            parts = whole_characters(rest)
            return None if parts is None or parts[1] else state.whole + special
        parts = whole_characters(rest)
        return None if parts is None else len(text) - len(parts[1])

    def _is_allowed_between(self, piece: bytes, state: State) -> bool:
        """Whether free text without a trigger can be continued."""
        structure = self._structure
        literals = [trigger.text for trigger in structure.triggers if isinstance(trigger, Literal)]
        special = piece.find(SPECIAL)
        if special >= 0:  # only as a part of a trigger
            sizes = [size for literal in literals for size in _started(piece, literal)]
            if not any(len(piece) - size <= special for size in sizes):
                return False
        if structure.free:
            return True
        visible = self._visible(piece, state)
        if visible in SEPARATORS:
            return True
        is_full = structure.at_most is not None and state.count >= structure.at_most
        between = [separator + literal for separator in SEPARATORS for literal in literals]
        return not is_full and any(whole.startswith(visible) for whole in between)

    def _may_precede(self, text: bytes, number: int, state: State) -> bool:
        """Whether the trigger at the end of ``text`` may follow the free text before it."""
        trigger = self._structure.triggers[number]
        size = len(trigger.text) if isinstance(trigger, Literal) else 0
        parts = whole_characters(text[state.whole : len(text) - size])
        if parts is None or parts[1]:
            return False
        before = self._visible(text[state.begin : len(text) - size], state)
        return SPECIAL not in before and (self._structure.free or before in SEPARATORS)

    def _visible(self, piece: bytes, state: State) -> bytes:
        return self._vocabulary.visible(piece) if state.begin == 0 else piece

    def _in_form(self, text: bytes, state: State) -> State | None:
        assert state.forms is not None
        ends = [self._first_end(text, state, number) for number in state.forms]
        known = [end for end in ends if end is not None]
        if known:
            end = min(known)
            return State(end, state.count + 1, None, end, end)
        alive = tuple(number for number in state.forms if self._is_alive(text, state, number))
        return replace(state, forms=alive, searched=len(text)) if alive else None

    def _first_end(self, text: bytes, state: State, number: int) -> int | None:
        """The first end of a form, after the part of the text that was scanned before."""
        form = self._structure.forms[number]
        if form.end is None or text[state.begin : state.begin + len(form.rest)] != form.rest:
            return None
        start = state.begin + len(form.rest)
        session = self._content(state, number)
        at = text.find(form.end, max(start, state.searched - len(form.end) + 1))
        while at >= 0:
            if session.is_complete(text[start:at]):
                return at + len(form.end)
            at = text.find(form.end, at + 1)
        return None

    def _is_alive(self, text: bytes, state: State, number: int) -> bool:
        """Whether a form that has not ended can be continued."""
        form = self._structure.forms[number]
        written = text[state.begin :]
        if len(written) <= len(form.rest):
            return form.rest.startswith(written)
        if not written.startswith(form.rest):
            return False
        content = written[len(form.rest) :]
        session = self._content(state, number)
        if session.is_prefix(content):
            return True
        return any(session.is_complete(content[:-size]) for size in _started(content, form.end))

    def _ends_inside(self, text: bytes, state: State) -> bool:
        """Whether the text may end with the content of a form that has no end."""
        for number in state.forms or ():
            form = self._structure.forms[number]
            written = text[state.begin :]
            if form.end is not None or not written.startswith(form.rest):
                continue
            if self._content(state, number).is_complete(written[len(form.rest) :]):
                return True
        return False

    def _content(self, state: State, number: int) -> Session:
        """A session that answers questions about the content of a form."""
        if state.begin == self._state.begin and number in self._contents:
            return self._contents[number]
        return self._structure.forms[number].session

    # -- masks -----------------------------------------------------------------------------------------------------

    def mask(self) -> Tensor | None:
        mask = self._free_mask() if self._state.forms is None else self._form_mask(self._state.forms)
        if mask is not None:
            mask[sorted(self._vocabulary.ends)] = self.is_complete(self.text)
        return mask

    def _free_mask(self) -> Tensor | None:
        literals: list[bytes] = []
        for trigger in self._structure.triggers:
            if not isinstance(trigger, Literal):
                return None
            literals.append(trigger.text)
        if self._structure.free:
            mask = free_tokens(self._vocabulary, self.text[self._state.whole :])
            targets = literals
        else:
            mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
            targets = [separator + literal for literal in literals for separator in SEPARATORS]
        return self._checked(mask, [(target, self.text[self._state.begin :]) for target in targets])

    def _form_mask(self, forms: Sequence[int]) -> Tensor | None:
        mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        targets = []
        written = self.text[self._state.begin :]
        for number in forms:
            form = self._structure.forms[number]
            session = self._contents.get(number)
            if session is None or len(written) < len(form.rest):
                targets.append((form.rest, written))
                continue
            content = written[len(form.rest) :]
            if session.text == content:
                inner = session.mask()
                if inner is None:
                    return None
                mask |= inner
            if form.end is not None:
                targets.append((form.end, content))
        return self._checked(mask, targets)

    def _checked(self, mask: Tensor, targets: Sequence[tuple[bytes, bytes]]) -> Tensor | None:
        """``mask`` after checks of the tokens that write a part of one of the targets.

        Args:
            mask: of the tokens that write no part of them.
            targets: texts that may follow, each with the text before them, at whose end a part of it may be.

        Returns:
            None if there are too many tokens to check.
        """
        tokens: set[int] = set()
        for target, before in targets:
            tokens.update(tokens_into(self._vocabulary, target, [*_started(before, target)]))
        if len(tokens) > MAX_CHECKED:
            return None
        for token in tokens:
            mask[token] = self.is_prefix(self.text + self._vocabulary.tokens[token])
        return mask


def _started(text: bytes, target: bytes | None) -> list[int]:
    """The sizes of the parts of ``target`` with which ``text`` ends, without 0 and the whole of it."""
    sizes = range(1, len(target or b""))
    return [size for size in sizes if text.endswith((target or b"")[:size])]
