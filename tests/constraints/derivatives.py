"""An oracle for regular sets: Brzozowski's derivatives over bytes (J. ACM 11, 1964), with nothing done for speed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Re:
    """A regular expression over bytes; its pattern in Python's syntax is kept beside it."""


@dataclass(frozen=True)
class Nothing(Re):
    pass


@dataclass(frozen=True)
class Empty(Re):
    pass


@dataclass(frozen=True)
class Byte(Re):
    values: frozenset[int]


@dataclass(frozen=True)
class Then(Re):
    first: Re
    second: Re


@dataclass(frozen=True)
class Or(Re):
    parts: frozenset[Re]


@dataclass(frozen=True)
class And(Re):
    parts: frozenset[Re]


@dataclass(frozen=True)
class Other(Re):
    part: Re


@dataclass(frozen=True)
class Star(Re):
    part: Re


def then(a: Re, b: Re) -> Re:
    if isinstance(a, Nothing) or isinstance(b, Nothing):
        return Nothing()
    if isinstance(a, Empty):
        return b
    if isinstance(b, Empty):
        return a
    if isinstance(a, Then):  # lean to the right, so that equal sets look equal
        return Then(a.first, then(a.second, b))
    return Then(a, b)


def either(*parts: Re) -> Re:
    flat = {p for part in parts for p in (part.parts if isinstance(part, Or) else {part})} - {Nothing()}
    return Nothing() if not flat else next(iter(flat)) if len(flat) == 1 else Or(frozenset(flat))


def both(*parts: Re) -> Re:
    flat = {p for part in parts for p in (part.parts if isinstance(part, And) else {part})}
    if Nothing() in flat:
        return Nothing()
    return next(iter(flat)) if len(flat) == 1 else And(frozenset(flat))


def other(part: Re) -> Re:
    return part.part if isinstance(part, Other) else Other(part)


def star(part: Re) -> Re:
    return Empty() if isinstance(part, (Nothing, Empty)) else part if isinstance(part, Star) else Star(part)


def text(characters: str) -> Re:
    """One text."""
    result: Re = Empty()
    for byte in reversed(characters.encode()):
        result = then(Byte(frozenset([byte])), result)
    return result


def one_of(characters: str) -> Re:
    """One character of several."""
    return either(*(text(character) for character in characters))


def any_character() -> Re:
    """Any character of UTF-8 (surrogates are none)."""

    def span(low: int, high: int) -> Re:
        return Byte(frozenset(range(low, high + 1)))

    rest = span(0x80, 0xBF)
    return either(
        span(0, 0x7F),
        then(span(0xC2, 0xDF), rest),
        then(span(0xE0, 0xE0), then(span(0xA0, 0xBF), rest)),
        then(either(span(0xE1, 0xEC), span(0xEE, 0xEF)), then(rest, rest)),
        then(span(0xED, 0xED), then(span(0x80, 0x9F), rest)),
        then(span(0xF0, 0xF0), then(span(0x90, 0xBF), then(rest, rest))),
        then(span(0xF1, 0xF3), then(rest, then(rest, rest))),
        then(span(0xF4, 0xF4), then(span(0x80, 0x8F), then(rest, rest))),
    )


def repeat(part: Re, low: int, high: int | None) -> Re:
    result: Re = Empty()
    if high is None:
        result = star(part)
    else:
        for _ in range(high - low):
            result = either(Empty(), then(part, result))
    for _ in range(low):
        result = then(part, result)
    return result


def nullable(r: Re) -> bool:
    if isinstance(r, Then):
        return nullable(r.first) and nullable(r.second)
    if isinstance(r, Or):
        return any(map(nullable, r.parts))
    if isinstance(r, And):
        return all(map(nullable, r.parts))
    if isinstance(r, Other):
        return not nullable(r.part)
    return isinstance(r, (Empty, Star))


@cache
def derivative(r: Re, byte: int) -> Re:
    if isinstance(r, Byte):
        return Empty() if byte in r.values else Nothing()
    if isinstance(r, Then):
        rest = then(derivative(r.first, byte), r.second)
        return either(rest, derivative(r.second, byte)) if nullable(r.first) else rest
    if isinstance(r, Or):
        return either(*(derivative(part, byte) for part in r.parts))
    if isinstance(r, And):
        return both(*(derivative(part, byte) for part in r.parts))
    if isinstance(r, Other):
        return other(derivative(r.part, byte))
    if isinstance(r, Star):
        return then(derivative(r.part, byte), r)
    return Nothing()


@cache
def satisfiable(r: Re) -> bool:
    """Whether any text is in the set: some derivative is nullable."""
    seen, waiting = {r}, [r]
    while waiting:
        at = waiting.pop()
        if nullable(at):
            return True
        for byte in range(256):
            after = derivative(at, byte)
            if not isinstance(after, Nothing) and after not in seen:
                seen.add(after)
                waiting.append(after)
                assert len(seen) < 3000, "too many derivatives for an oracle"
    return False


def after(r: Re, written: bytes) -> Re:
    for byte in written:
        r = derivative(r, byte)
    return r


def is_prefix(r: Re, written: bytes) -> bool:
    return satisfiable(after(r, written))


def is_complete(r: Re, written: bytes) -> bool:
    return nullable(after(r, written))
