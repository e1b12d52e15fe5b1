"""Terminals of the engine's grammars, which :meth:`Constraint.regular` gives, as expressions over bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..patterns.syntax import end_of_set
from .characters import expression, ranges_of
from .expressions import EMPTY, NOTHING_MORE, Expressions, Node

_LITERAL = re.compile(r"/((?:[^/\\]|\\.)*)/", re.DOTALL)
_REPEAT = re.compile(r"([*+?])|\{(\d+)(,?)(\d*)\}")
_GROUP = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
_BRACED = re.compile(r"\\[pPxuU]\{[^}]*\}")
_HEX = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})")
_STARTS, _ENDS = ("^", r"\A"), ("$", r"\z")
_IGNORED = frozenset("uU")


class UnsupportedTerminalError(ValueError):
    """A terminal holds what is not read here."""


def read(terminal: str) -> tuple[Expressions, Node, bool]:
    """A terminal as an expression whose texts are those of the terminal, and maybe more with characters beyond ASCII;
    and whether there are none of these.

    Raises:
        UnsupportedTerminalError: it holds what is not read.
    """
    expressions = Expressions()
    try:
        reader = _Terminal(expressions, terminal)
        node = reader.alternatives(True)
        exact = node == _Terminal(expressions, terminal).alternatives(False)
    except (RecursionError, re.error) as error:
        raise UnsupportedTerminalError(str(error)) from None
    if reader.at != len(terminal):
        raise UnsupportedTerminalError(f"{terminal[reader.at : reader.at + 10]!r} is not read")
    return expressions, node, exact


class _Terminal:
    """Literals between slashes, joined by ``|``, ``&``, ``~`` and brackets."""

    def __init__(self, expressions: Expressions, text: str) -> None:
        self.expressions, self.text, self.at = expressions, text, 0

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
        if character == "~":  # what is a superset inside is a subset outside
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
            raise UnsupportedTerminalError(f"{self.text[self.at - 1 : self.at + 9]!r} is not read")
        self.at = literal.end()
        return _Pattern(self.expressions, literal[1].replace(r"\/", "/"), wide).whole()


@dataclass(frozen=True)
class _Place:
    """Where a part of a pattern stands: its flags, and whether nothing is before it or behind it."""

    flags: str = ""
    first: bool = True
    final: bool = True


@dataclass
class _Part:
    """A part that was found: its text, or the alternatives of a group, and how often it comes."""

    text: str = ""
    flags: str = ""
    group: list[list[_Part]] | None = None
    least: int = 1
    most: int | None = 1


class _Pattern:
    """A regular expression in the engine's spelling."""

    def __init__(self, expressions: Expressions, text: str, wide: bool) -> None:
        self.expressions, self.text, self.wide, self.at = expressions, text, wide, 0
        self.known: dict[tuple[str, str], Node] = {}

    def whole(self) -> Node:
        group = self._group("")
        if self.at != len(self.text):
            raise UnsupportedTerminalError(f"a bracket at {self.at} is not opened")
        return self._either(group, _Place())

    # -- taking apart ----------------------------------------------------------------------------------------------

    def _group(self, flags: str) -> list[list[_Part]]:
        alternatives: list[list[_Part]] = [[]]
        while self.at < len(self.text) and self.text[self.at] != ")":
            text, at = self.text, self.at
            if text[at] == "|":
                alternatives.append([])
                self.at += 1
                continue
            repeat = _REPEAT.match(text, at)
            if repeat and alternatives[-1]:
                self._repeat(alternatives[-1], repeat)
                continue
            if text[at] == "(":
                found = _GROUP.match(text, at)
                inner, self.at = flags, found.end() if found else at + 1
                if found:
                    inner = _flags(flags, found)
                    if found[3] == ")":
                        flags = inner
                        continue
                elif text.startswith("(?", at):
                    raise UnsupportedTerminalError(f"the group at {at} is not read")
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
        if self.text[self.at : self.at + 1] == "?":  # which match is preferred changes no set of texts
            self.at += 1
        if repeat[1]:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[repeat[1]]
        else:
            least = int(repeat[2])
            most = (int(repeat[4]) if repeat[4] else None) if repeat[3] else least
        parts[-1] = _Part(group=[[parts[-1]]], least=least, most=most)

    def _atom(self) -> str:
        text, at = self.text, self.at
        if text[at] == "[":
            self.at = end_of_set(text, at)
        elif text[at] == "\\":
            found = _BRACED.match(text, at) or _HEX.match(text, at)
            self.at = found.end() if found else at + 2
        else:
            self.at = at + 1
        return text[at : self.at]

    # -- putting together ------------------------------------------------------------------------------------------

    def _either(self, group: list[list[_Part]], place: _Place) -> Node:
        return self.expressions.either([self._join(parts, place) for parts in group])

    def _join(self, parts: list[_Part], place: _Place) -> Node:
        anchors = [part.text in (*_STARTS, *_ENDS) for part in parts]
        nodes = []
        for number, part in enumerate(parts):
            here = replace(
                place,
                first=place.first and all(anchors[:number]),
                final=place.final and all(anchors[number + 1 :]),
            )
            nodes.append(self._part(part, here))
        return self.expressions.join(nodes)

    def _part(self, part: _Part, place: _Place) -> Node:
        if part.group is not None:
            once = (part.least, part.most) == (1, 1)
            inner = place if once else replace(place, first=False, final=False)
            return self.expressions.repeat(self._either(part.group, inner), part.least, part.most)
        if part.text in _STARTS or part.text in _ENDS:
            if not (place.first if part.text in _STARTS else place.final):
                raise UnsupportedTerminalError("an anchor inside of a pattern is not read")
            return NOTHING_MORE
        key = (part.text, part.flags)
        if key not in self.known:
            ranges = ranges_of(self._escaped(part.text), part.flags, self.wide)
            self.known[key] = expression(self.expressions, ranges) if ranges else EMPTY
        return self.known[key]

    @staticmethod
    def _escaped(text: str) -> str:
        return text if len(text) > 1 or text == "." else re.escape(text)


def _flags(flags: str, found: re.Match[str]) -> str:
    on, off = set(found[1] or ""), set(found[2] or "")
    unknown = (on | off) - set("is") - _IGNORED
    if unknown:
        raise UnsupportedTerminalError(f"the flag {min(unknown)} is not read")
    return "".join(sorted(({*flags} | on) - off - _IGNORED))
