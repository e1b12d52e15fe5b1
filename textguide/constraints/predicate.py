"""Any Python function as a constraint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..support.checks import flag, one_of
from .base import Constraint, Session, UnsatisfiableError
from .memoized_session import MemoizedSession, VerdictCache
from .utf8 import whole_characters
from .vocabulary import Vocabulary

Function = Callable[[Any], bool]


@dataclass(frozen=True)
class Predicate(Constraint):
    """Texts that a function accepts.

    Only the function's answers are known, so there is no mask: the sampler proposes tokens and calls the function. It
    is called once per text, no matter how many particles write that text.

    Args:
        prefix_fn: whether a text can still become a member. If it is False for a text, it must be False for everything
            that continues that text; and it should be True only if some continuation is a member, because particles run
            into dead ends otherwise.
        complete_fn: whether a text is a member; only called if ``prefix_fn`` is True for it. None: every text that
            ``prefix_fn`` accepts is a member.
        on: ``text`` passes a ``str`` of whole characters: if a token ends inside a character, the functions see the
            characters before it, and the remaining bytes must be the start of a UTF-8 character. ``bytes`` passes the
            bytes.
        ascii: declare that members are ASCII only. Other bytes are then rejected without a call. Otherwise a token that
            ends inside a character is accepted whatever may follow, and the particle is given up if nothing can.

    Raises:
        ValueError: a field has a value that cannot work.

    Example:
        >>> Predicate(str.isascii)  # doctest: +ELLIPSIS
        Predicate(prefix_fn=<method 'isascii' of 'str' objects>, complete_fn=None, on='text', ascii=False)
    """

    prefix_fn: Function
    complete_fn: Function | None = None
    on: str = "text"
    ascii: bool = False

    kind = "predicate"

    def __post_init__(self) -> None:
        if not callable(self.prefix_fn):
            raise ValueError(f"prefix_fn={self.prefix_fn!r} must be a function from a text to True or False")
        if self.complete_fn is not None and not callable(self.complete_fn):
            raise ValueError(
                f"complete_fn={self.complete_fn!r} must be a function from a text to True or False, or None"
            )
        one_of("on", self.on, ("text", "bytes"))
        flag("ascii", self.ascii)

    def to_dict(self) -> dict[str, Any]:
        """A description only: functions have no JSON form, and :func:`from_dict` refuses it."""
        return {
            "kind": self.kind,
            "prefix_fn": _name(self.prefix_fn),
            "complete_fn": None if self.complete_fn is None else _name(self.complete_fn),
            "on": self.on,
            "ascii": self.ascii,
        }

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        raise ValueError(
            f"prefix_fn={values.get('prefix_fn')!r} names a function, and functions are not loaded from JSON; "
            "build the Predicate in Python"
        )

    def start(self, vocabulary: Vocabulary) -> Session:
        session = PredicateSession(self, vocabulary, b"", VerdictCache())
        if not session.is_prefix(b""):
            raise UnsatisfiableError(
                f"prefix_fn={_name(self.prefix_fn)} is False for the empty text, so nothing satisfies it"
            )
        return session


class PredicateSession(MemoizedSession["Predicate"]):
    """One text under a function."""

    def is_prefix(self, text: bytes) -> bool:
        argument = self._argument(text)
        return argument is not None and self._call("prefix_fn", self._checker.prefix_fn, argument[0])

    def is_complete(self, text: bytes) -> bool:
        argument = self._argument(text)
        if argument is None or argument[1] or not self._call("prefix_fn", self._checker.prefix_fn, argument[0]):
            return False
        function = self._checker.complete_fn
        return function is None or self._call("complete_fn", function, argument[0])

    def _call(self, role: str, function: Function, argument: str | bytes) -> bool:
        return self._verdicts.get((role, argument), lambda: _call(role, function, argument))

    def _argument(self, text: bytes) -> tuple[str | bytes, bytes] | None:
        """What the functions receive for a text, and the first bytes of an incomplete character.

        Returns:
            None if the text is rejected without a call.
        """
        text = self._vocabulary.visible(text)
        if self._checker.ascii and not text.isascii():
            return None
        return (text, b"") if self._checker.on == "bytes" else whole_characters(text)


def _call(role: str, function: Function, argument: str | bytes) -> bool:
    try:
        answer = function(argument)
    except Exception as error:
        _add_note(error, f"raised by {role}={_name(function)} of a Predicate for {argument!r}")
        raise
    if type(answer).__name__ in ("bool", "bool_"):  # Python's and NumPy's
        return bool(answer)
    raise ValueError(f"{role}={_name(function)} returned {answer!r} for {argument!r}; it must return True or False")


def _add_note(error: Exception, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # Python 3.10 has no notes, but prints the cause of an error
        error.__cause__ = RuntimeError(note)


def _name(function: Any) -> str:
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(function)
