"""Terminals of the engine's grammars, as :meth:`Constraint.regular` returns them, as expressions over bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..patterns.syntax import end_of_set
from .characters import expression, ranges_of
from .expressions import EMPTY, NOTHING_MORE, Expressions, Node

_LITERAL = re.compile(r"/((?:[^/\\]|\\.)*)/", re.DOTALL)
_REPEAT = re.compile(r"([*+?])|\{(\d+)(,?)(\d*)\}")
_GROUP = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
_BRACED = re.compile(r"\\[pPxuU]\{[^}]*\}")
_HEX = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})")
_STARTS = ("^", r"\A")
_ENDS = ("$", r"\z")
_IGNORED_FLAGS = frozenset("uU")


class UnsupportedTerminalError(ValueError):
    """A terminal contains a construct that is not supported here."""


def read(terminal: str) -> tuple[Expressions, Node, bool]:
    """Convert a terminal to an expression.

    Args:
        terminal: in the engine's syntax.

    Returns:
        The expressions; the one of the terminal, which may match additional texts with characters beyond ASCII; and
        whether it is exact, that is, matches none.

    Raises:
        UnsupportedTerminalError: the terminal contains an unsupported construct.
    """
    expressions = Expressions()
    try:
        reader = _Terminal(expressions, terminal)
        node = reader.alternatives(True)
        exact = node == _Terminal(expressions, terminal).alternatives(False)
    except (RecursionError, re.error) as error:
        raise UnsupportedTerminalError(str(error)) from None
    if reader.at != len(terminal):
        raise UnsupportedTerminalError(f"{terminal[reader.at : reader.at + 10]!r} is not supported")
    return expressions, node, exact


class _Terminal:
    """A parser of literals between slashes that are combined by ``|``, ``&``, ``~`` and brackets."""

    def __init__(self, expressions: Expressions, text: str) -> None:
        self.expressions = expressions
        self.text = text
        self.at = 0

    def _next(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def alternatives(self, wide: bool) -> Node:
        parts = [self._shared(wide)]
        while self._next() == "|":
            self.at += 1
            parts.append(self._shared(wide))
        return self.expressions.either(parts)

    def _shared(self, wide: bool) -> Node:
        parts = [self._sequence(wide)]
        while self._next() == "&":
            self.at += 1
            parts.append(self._sequence(wide))
        return self.expressions.both(parts)

    def _sequence(self, wide: bool) -> Node:
        parts = [self._item(wide)]
        while self._next() not in ("", "|", "&", ")"):
            parts.append(self._item(wide))
        return self.expressions.join(parts)

    def _item(self, wide: bool) -> Node:
        character = self._next()
        self.at += 1
        if character == "~":  # the complement of a superset is a subset
            return self.expressions.outside(self._item(not wide))
        if character == "(":
            node = self.alternatives(wide)
            if self._next() != ")":
                raise UnsupportedTerminalError("a bracket is not closed")
            self.at += 1
            return node
        if self.text.startswith('""', self.at - 1):
            self.at += 1
            return NOTHING_MORE
        literal = _LITERAL.match(self.text, self.at - 1)
        if literal is None:
            raise UnsupportedTerminalError(f"{self.text[self.at - 1 : self.at + 9]!r} is not supported")
        self.at = literal.end()
        return _Pattern(self.expressions, literal[1].replace(r"\/", "/"), wide).whole()


@dataclass(frozen=True)
class _Position:
    """The position of a part in a pattern.

    Args:
        first: whether nothing precedes it.
        final: whether nothing follows it.
    """

    first: bool = True
    final: bool = True


@dataclass
class _Part:
    """A part of a pattern.

    Args:
        text: its text, if it is not a group.
        flags: those that apply to it.
        group: the alternatives of a group.
        least: smallest number of repetitions.
        most: largest number of repetitions; None: no limit.
    """

    text: str = ""
    flags: str = ""
    group: list[list[_Part]] | None = None
    least: int = 1
    most: int | None = 1


class _Pattern:
    """A parser of regular expressions in the engine's syntax."""

    def __init__(self, expressions: Expressions, text: str, wide: bool) -> None:
        self.expressions = expressions
        self.text = text
        self.wide = wide
        self.at = 0
        self.known: dict[tuple[str, str], Node] = {}

    def whole(self) -> Node:
        group = self._group("")
        if self.at != len(self.text):
            raise UnsupportedTerminalError(f"a bracket at {self.at} is not opened")
        return self._either(group, _Position())

    # -- parsing ---------------------------------------------------------------------------------------------------

    def _group(self, flags: str) -> list[list[_Part]]:
        alternatives: list[list[_Part]] = [[]]
        while self.at < len(self.text) and self.text[self.at] != ")":
            text = self.text
            at = self.at
            if text[at] == "|":
                alternatives.append([])
                self.at += 1
                continue
            repeat = _REPEAT.match(text, at)
            if repeat and alternatives[-1]:
                self._repeat(alternatives[-1], repeat)
                continue
            if text[at] == "(":
                inner = flags
                match = _GROUP.match(text, at)
                self.at = match.end() if match else at + 1
                if match:
                    inner = _flags(flags, match)
                    if match[3] == ")":  # flags for the rest of this group
                        flags = inner
                        continue
                elif text.startswith("(?", at):
                    raise UnsupportedTerminalError(f"the group at {at} is not supported")
                group = self._group(inner)
                if self.text[self.at : self.at + 1] != ")":
                    raise UnsupportedTerminalError(f"the bracket at {at} is not closed")
                self.at += 1
                alternatives[-1].append(_Part(group=group))
                continue
            alternatives[-1].append(_Part(self._atom(), flags))
        return alternatives

    def _repeat(self, parts: list[_Part], repeat: re.Match[str]) -> None:
        self.at = repeat.end()
        if self.text[self.at : self.at + 1] == "?":  # laziness does not change the set of texts
            self.at += 1
        if repeat[1]:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[repeat[1]]
        else:
            least = int(repeat[2])
            most = least
            if repeat[3]:  # a comma
                most = int(repeat[4]) if repeat[4] else None
        parts[-1] = _Part(group=[[parts[-1]]], least=least, most=most)

    def _atom(self) -> str:
        text = self.text
        at = self.at
        if text[at] == "[":
            self.at = end_of_set(text, at)
        elif text[at] == "\\":
            match = _BRACED.match(text, at) or _HEX.match(text, at)
            self.at = match.end() if match else at + 2
        else:
            self.at = at + 1
        return text[at : self.at]

    # -- building -------------------------------------------------------------------------------------------------

    def _either(self, group: list[list[_Part]], position: _Position) -> Node:
        return self.expressions.either([self._join(parts, position) for parts in group])

    def _join(self, parts: list[_Part], position: _Position) -> Node:
        anchors = [part.text in (*_STARTS, *_ENDS) for part in parts]
        nodes = []
        for number, part in enumerate(parts):
            inner = _Position(
                first=position.first and all(anchors[:number]), final=position.final and all(anchors[number + 1 :])
            )
            nodes.append(self._part(part, inner))
        return self.expressions.join(nodes)

    def _part(self, part: _Part, position: _Position) -> Node:
        if part.group is not None:
            once = (part.least, part.most) == (1, 1)
            inner = position if once else _Position(first=False, final=False)
            return self.expressions.repeat(self._either(part.group, inner), part.least, part.most)
        if part.text in _STARTS or part.text in _ENDS:
            if not (position.first if part.text in _STARTS else position.final):
                raise UnsupportedTerminalError("an anchor inside a pattern is not supported")
            return NOTHING_MORE
        key = (part.text, part.flags)
        if key not in self.known:
            ranges = ranges_of(self._escaped(part.text), part.flags, self.wide)
            self.known[key] = expression(self.expressions, ranges) if ranges else EMPTY
        return self.known[key]

    @staticmethod
    def _escaped(text: str) -> str:
        return text if len(text) > 1 or text == "." else re.escape(text)


def _flags(flags: str, match: re.Match[str]) -> str:
    """The flags after a group or a directive switched some on and some off."""
    on = set(match[1] or "")
    off = set(match[2] or "")
    unknown = (on | off) - set("is") - _IGNORED_FLAGS
    if unknown:
        raise UnsupportedTerminalError(f"the flag {min(unknown)} is not supported")
    return "".join(sorted(({*flags} | on) - off - _IGNORED_FLAGS))
