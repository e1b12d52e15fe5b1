"""Texts that patterns may match, written by walking through the pattern itself; no matcher is asked."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from textguide.constraints.patterns.tokens import Token, tokens

POOL = "".join(map(chr, range(32, 127))) + "\t\néßÀжΩあア一ㄅ٣→𓀀𒀀䷀⠿\u3000\u0300\u00ad€😀ǅ²"


class Writer:
    """Writes texts: look-around and anchors are left out, so that not every text is a member.

    Args:
        pattern: in ``regex``'s syntax.
        version: ``regex``'s flag for its behaviour.
    """

    def __init__(self, pattern: str, version: int) -> None:
        self.tokens, self.version = tokens(pattern), version
        self.opened = [at for at, token in enumerate(self.tokens) if token.kind == "capture"]
        self.names = {found[1]: at for at in self.opened if (found := re.match(r"\(\?P?<(\w+)>", self.tokens[at].text))}
        self.numbers = self._numbers()

    def write(self, rng: random.Random, tempted: str = "") -> str:
        """One text. ``tempted`` holds characters that are chosen more often."""
        self.rng, self.tempted, self.steps, self.groups = rng, tempted, 0, dict[int, str]()
        return self._choice(0, len(self.tokens))

    def _numbers(self) -> dict[int, int]:
        """The group's number of each capture; a branch reset counts anew in each branch, a name keeps its number."""
        numbers: dict[int, int] = {}
        count, resets, named = 0, list[list[int]](), dict[str, int]()
        for at, token in enumerate(self.tokens):
            if token.kind == "branch reset":
                resets.append([token.partner, count, count])
            elif resets and token.kind == "close" and at == resets[-1][0]:
                count = max(resets.pop()[2], count)
            elif resets and token.kind == "bar" and self._depth(at) == self._depth(resets[-1][0]) + 1:
                resets[-1][2], count = max(resets[-1][2], count), resets[-1][1]
            elif token.kind == "capture":
                name = next(
                    (name for name, place in self.names.items() if token.text in (f"(?<{name}>", f"(?P<{name}>")), ""
                )
                if name in named:
                    numbers[at] = named[name]
                    continue
                count += 1
                numbers[at] = count
                if name:
                    named[name] = count
        return numbers

    def _depth(self, at: int) -> int:
        return sum(1 for place, token in enumerate(self.tokens[:at]) if place < token.partner and token.partner > at)

    def _choice(self, start: int, end: int) -> str:
        """One of the alternatives between two places."""
        bars, at = [start - 1], start
        while at < end:
            token = self.tokens[at]
            if token.kind == "bar":
                bars.append(at)
            at = token.partner + 1 if token.partner > at else at + 1
        chosen = self.rng.randrange(len(bars))
        return self._sequence(bars[chosen] + 1, [*bars[1:], end][chosen])

    def _sequence(self, start: int, end: int) -> str:
        out, at = "", start
        while at < end and self.steps < 400:
            token = self.tokens[at]
            behind = token.partner + 1 if token.partner > at else at + 1
            low = high = 1
            if behind < end and self.tokens[behind].kind == "quantifier":
                low, high = _counts(self.tokens[behind].text)
            for _ in range(self.rng.randint(low, high)):
                self.steps += 1
                out += self._one(at, token)
            at = behind
        return out

    def _one(self, at: int, token: Token) -> str:
        if token.kind == "character":
            choices = _characters(token.text, self.version)
            liked = [c for c in choices if c in self.tempted]
            return self.rng.choice(liked if liked and self.rng.random() < 0.7 else choices or "?")
        if token.kind == "reference":
            name = re.search(r"(\w+)\W?$", token.text)
            return self.groups.get(self._number(name[1] if name else ""), "")
        if token.kind == "call":
            name = token.text.strip("(?&P>)R")
            if self.steps > 120:
                return ""
            if name in ("", "0"):
                return self._choice(0, len(self.tokens))
            target = self.names.get(name) if not name.isdigit() else self._at(int(name))
            return "" if target is None else self._choice(target + 1, self.tokens[target].partner)
        if token.kind == "lookaround":
            self._choice(at + 1, token.partner)  # for the groups in it
            return ""
        if token.kind == "conditional":
            return "" if "DEFINE" in token.text else self._condition(at, token)
        if token.kind in ("capture", "group", "atomic", "branch reset"):
            text = self._choice(at + 1, token.partner)
            if token.kind == "capture":
                self.groups[self.numbers[at]] = text
            return text
        return ""

    def _condition(self, at: int, token: Token) -> str:
        start = at + 1
        if token.text == "(?":
            start = self.tokens[at + 1].partner + 1
            return self._choice(start, token.partner)
        bar = next((i for i in range(start, token.partner) if self.tokens[i].kind == "bar" and self._in(i, at)), None)
        if self._number(token.text[3:-1]) in self.groups:
            return self._sequence(start, bar or token.partner)
        return "" if bar is None else self._sequence(bar + 1, token.partner)

    def _in(self, at: int, bracket: int) -> bool:
        return self._depth(at) == self._depth(bracket) + 1

    def _number(self, name: str) -> int:
        return int(name) if name.isdigit() else self.numbers.get(self.names.get(name, -1), -1)

    def _at(self, number: int) -> int | None:
        return next((at for at, found in self.numbers.items() if found == number), None)


def _counts(text: str) -> tuple[int, int]:
    text = text[:-1] if len(text) > 1 and text[-1] in "?+" else text
    if text in ("*", "+", "?"):
        return {"*": (0, 3), "+": (1, 3), "?": (0, 1)}[text]
    low, comma, high = text[1:-1].partition(",")
    least = int(low or 0)
    return least, min(int(high), least + 3) if high else least + 2 * bool(comma)


@lru_cache(maxsize=4096)
def _characters(text: str, version: int) -> str:
    import regex

    asked: Any = regex.compile(text, version)
    found = "".join(filter(asked.fullmatch, POOL))
    return found or next((chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000 and asked.fullmatch(chr(c))), "")


def changed(text: str, rng: random.Random, letters: Sequence[str]) -> str:
    """A text with one character left out, exchanged or put in."""
    at, letter = rng.randrange(len(text) + 1), rng.choice(letters)
    return rng.choice([text[:at] + text[at + 1 :], text[:at] + letter + text[at + 1 :], text[:at] + letter + text[at:]])
