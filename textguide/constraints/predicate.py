"""Any Python function as a constraint."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .base import Constraint, Session, UnsatisfiableError
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

Function = Callable[[Any], bool]
VERDICTS_KEPT = 1 << 17


@dataclass(frozen=True)
class Predicate(Constraint):
    """Texts that a function accepts, asked one text at a time.

    Nothing is known of the function but its answers, so there is no mask: the sampler proposes tokens and asks. A text
    is asked once, however many particles come to it.

    Args:
        prefix_fn: whether a text can still become a member. It must be closed: where it is False for a text it must be
            False for everything that continues it; and it should be True only where some continuation is a member, or
            particles run into dead ends.
        complete_fn: whether a text is a member, asked only where ``prefix_fn`` holds. None: every text that
            ``prefix_fn`` accepts is one.
        on: ``text`` gives the functions a ``str`` of whole characters: where a token ends inside a character, they are
            asked about the characters before it, and the bytes behind must begin a character of UTF-8. ``bytes`` gives
            them the bytes.
        ascii: say that members hold ASCII characters alone. Other bytes are then refused unasked. Without it, a token
            that ends inside a character passes, whatever may follow, and where nothing does that particle dies.

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
        if self.on not in ("text", "bytes"):
            raise ValueError(f"on={self.on!r} must be 'text' or 'bytes'")
        if not isinstance(self.ascii, bool):
            raise ValueError(f"ascii={self.ascii!r} must be True or False")

    def to_dict(self) -> dict[str, Any]:
        """A description; functions have no JSON form, so that :func:`from_dict` refuses it."""
        complete = None if self.complete_fn is None else _name(self.complete_fn)
        return {
            "kind": self.kind,
            "prefix_fn": _name(self.prefix_fn),
            "complete_fn": complete,
            "on": self.on,
            "ascii": self.ascii,
        }

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        raise ValueError(
            f"prefix_fn={values.get('prefix_fn')!r} names a function, and functions are not loaded from a file; "
            "make the Predicate in Python"
        )

    def start(self, vocabulary: Vocabulary) -> Session:
        session = PredicateSession(self, vocabulary, b"", Asked())
        if not session.is_prefix(b""):
            raise UnsatisfiableError(f"prefix_fn={_name(self.prefix_fn)} refuses the empty text: nothing satisfies it")
        return session


Judge = TypeVar("Judge")


class AskedSession(Session, Generic[Judge]):
    """One text under something that is asked about texts one by one, so that there is no mask.

    Args:
        judge: what is asked.
        vocabulary: what each token adds.
        text: the bytes written so far.
        asked: the answers so far; what was asked before is not asked again.
    """

    def __init__(self, judge: Judge, vocabulary: Vocabulary, text: bytes, asked: Asked) -> None:
        self.text = text
        self._judge = judge
        self._vocabulary = vocabulary
        self._asked = asked

    @property
    def calls(self) -> int:
        """How many texts had to be asked about."""
        return self._asked.calls

    def write(self, text: bytes) -> None:
        """As of any session."""
        if not self.is_prefix(self.text + text):
            raise ValueError(f"text={text!r} is not allowed behind {self.text[-40:]!r}")
        self.text += text

    def fork(self) -> Self:
        """As of any session."""
        return type(self)(self._judge, self._vocabulary, self.text, self._asked)


class PredicateSession(AskedSession["Predicate"]):
    """One text under a function."""

    def is_prefix(self, text: bytes) -> bool:
        seen = self._seen(text)
        return seen is not None and self._ask("prefix_fn", self._judge.prefix_fn, seen[0])

    def is_complete(self, text: bytes) -> bool:
        seen = self._seen(text)
        if seen is None or seen[1] or not self._ask("prefix_fn", self._judge.prefix_fn, seen[0]):
            return False
        function = self._judge.complete_fn
        return function is None or self._ask("complete_fn", function, seen[0])

    def _ask(self, role: str, function: Function, text: str | bytes) -> bool:
        return self._asked((role, text), lambda: _ask(role, function, text))

    def _seen(self, text: bytes) -> tuple[str | bytes, bytes] | None:
        """What the functions see of a text, and the bytes behind it that begin a character; None: no UTF-8."""
        text = self._vocabulary.visible(text)
        if self._judge.ascii and not text.isascii():
            return None
        return (text, b"") if self._judge.on == "bytes" else whole_characters(text)


def whole_characters(text: bytes) -> tuple[str, bytes] | None:
    """The whole characters of a text, and the bytes behind them that begin one; None: no UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        whole = decoder.decode(text)
    except UnicodeDecodeError:
        return None
    rest = decoder.getstate()[0]
    # The decoder waits for the end of a surrogate too, and then refuses it.
    return None if rest[:1] == b"\xed" and rest[1:2] > b"\x9f" else (whole, rest)


class Asked:
    """The answers so far, shared by all forks of a session.

    Attributes:
        calls: how many questions had to be answered anew.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._answers: dict[Hashable, bool] = {}

    def __call__(self, question: Hashable, answering: Callable[[], bool]) -> bool:
        answer = self._answers.get(question)
        if answer is None:
            self.calls += 1
            answer = answering()
            if len(self._answers) >= VERDICTS_KEPT:  # drop the older half
                for old in list(self._answers)[: VERDICTS_KEPT // 2]:
                    del self._answers[old]
            self._answers[question] = answer
        return answer


def _ask(role: str, function: Function, text: str | bytes) -> bool:
    try:
        answer = function(text)
    except Exception as error:
        _annotate(error, f"raised by {role}={_name(function)} of a Predicate, which was given {text!r}")
        raise
    if type(answer).__name__ in ("bool", "bool_"):  # Python's and NumPy's
        return bool(answer)
    raise ValueError(f"{role}={_name(function)} gave {answer!r} for {text!r}; it must give True or False")


def _annotate(error: Exception, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # the interpreter prints notes from 3.11 on; before, a cause is printed
        error.__cause__ = RuntimeError(note)


def _name(function: Any) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(function)
