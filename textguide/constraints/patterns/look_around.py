"""Look-around as intersection, which regular sets have and which the engine's terminals write as ``&``.

``X(?=A)Y`` is ``X (A.* & Y)``, ``X(?<=A)Y`` is ``(X & .*A) Y``, and negative look-around uses the complement. This only
holds for look-around at the top level of the pattern or of one of its alternatives, not inside a group.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .syntax import LOOKS, PatternError, atoms, translate, without_blanks

Literal = Callable[[str], str]
_ALL = "(?s:.*)"
_NOTHING = r"[^\s\S]"
_STARTS = ("^", r"\A")
_ENDS = ("$", r"\z")
_FLAGS = re.compile(r"\(\?[a-zA-Z]+\)")


@dataclass(frozen=True)
class Look:
    """A look-around.

    Args:
        kind: how it starts, one of :data:`LOOKS`.
        body: its pattern, as it is written.
        at: its position.
    """

    kind: str
    body: str
    at: int

    @property
    def is_lookbehind(self) -> bool:
        """Whether it looks back."""
        return "<" in self.kind

    def holds_for_nothing(self) -> bool:
        """Whether it holds at the end of the text (a lookbehind: at its start)."""
        self.parts()
        try:
            return (re.fullmatch(self.body, "") is not None) != ("!" in self.kind)
        except re.error:  # the body is valid for the engine, but not for Python
            raise PatternError(f"{LOOKS[self.kind]} at {self.at}, next to no text, is not supported") from None

    def terminal(self, literal: Literal, flags: str) -> str:
        """The texts that may follow it (a lookbehind: precede it), as a terminal."""
        parts, anchored = self.parts()
        body = f"(?:{''.join(parts)})"
        rest = "" if anchored else _ALL
        matching = literal(flags + (rest + body if self.is_lookbehind else body + rest))
        return f"({literal(_ALL)} & ~({matching}))" if "!" in self.kind else matching

    def parts(self) -> tuple[list[str], bool]:
        """The body in the engine's spelling without an anchor at its outer end, and whether there was one."""
        parts = [text for _, text in atoms(self.body)]
        outer = 0 if self.is_lookbehind else -1
        anchored = bool(parts) and parts[outer] in (_STARTS if self.is_lookbehind else _ENDS)
        if anchored:
            del parts[outer]
        if any(text in (*_STARTS, *_ENDS) for text in parts) or (anchored and "|" in parts):
            raise PatternError(f"an anchor inside {LOOKS[self.kind]} at {self.at} is not supported")
        return parts, anchored


def terminal(pattern: str, literal: Literal) -> str:
    """A pattern as a terminal of the engine's grammars.

    Args:
        pattern: in Python's syntax.
        literal: makes a terminal of a pattern in the engine's syntax.

    Raises:
        PatternError: as :func:`textguide.constraints.patterns.syntax.translate`, or a look-around cannot be separated.
    """
    pattern = without_blanks(pattern)
    if not any(text in LOOKS for _, text in atoms(pattern)):
        return literal(translate(pattern))
    flags = "".join(match[0] for match in _FLAGS.finditer(pattern) if match.start() == 0)
    alternatives = []
    for texts, looks in _alternatives(pattern, len(flags)):
        joined = _Alternative(literal, flags).join(_without_anchors(texts, looks), looks)
        alternatives.append(f"({joined})")
    return " | ".join(alternatives)


def _alternatives(pattern: str, begin: int) -> list[tuple[list[str], list[Look]]]:
    """For each alternative after the flags, which end at ``begin``: the texts around its look-arounds, and these."""
    alternatives: list[tuple[list[str], list[Look]]] = [([""], [])]
    depth = 0
    kind = ""  # of the look-around that is open; empty: none is
    kind_at = 0
    is_after_look = False
    for at, text in atoms(pattern):
        if at < begin:
            continue
        texts, looks = alternatives[-1]
        if is_after_look and re.fullmatch(r"[*+?]|\{.*\}", text):
            raise PatternError(f"a repeated look-around at {at} is not supported")
        is_after_look = False
        if text in LOOKS and depth == 0:
            kind = text
            kind_at = at
        elif text in LOOKS:
            raise PatternError(f"{LOOKS[text]} at {at} is not supported inside a group")
        depth += text in LOOKS or text.startswith("(")
        depth -= text == ")"
        if kind:
            if depth == 0:
                looks.append(Look(kind, pattern[kind_at + len(kind) : at], kind_at))
                texts.append("")
                kind = ""
                is_after_look = True
        elif text == "|" and depth == 0:
            alternatives.append(([""], []))
        elif text not in LOOKS:
            texts[-1] += text
    return alternatives


@dataclass(frozen=True)
class _Alternative:
    """Makes terminals of one alternative, ``texts[0] looks[0] texts[1] …``.

    Args:
        literal: makes a terminal of a pattern in the engine's syntax.
        flags: those at the start of the whole pattern.
    """

    literal: Literal
    flags: str

    def join(self, texts: list[str], looks: list[Look]) -> str:
        """The terminal of some texts, without anchors, and the look-arounds between them."""
        if not looks:
            return self._text(texts[0])
        first = looks[0]
        last = looks[-1]
        # Nothing precedes the start of the text, and nothing follows its end.
        if not texts[0] and first.is_lookbehind:
            return self.join(texts[1:], looks[1:]) if first.holds_for_nothing() else self.literal(_NOTHING)
        if not texts[-1] and not last.is_lookbehind:
            return self.join(texts[:-1], looks[:-1]) if last.holds_for_nothing() else self.literal(_NOTHING)
        # A lookahead covers everything after it, so nothing after it may look back across it; and the reverse.
        lookbehinds = [look.is_lookbehind for look in looks]
        if not first.is_lookbehind and (not texts[0] or not any(lookbehinds)):
            rest = self.join(texts[1:], looks[1:])
            return f"{self._text(texts[0])} (({first.terminal(self.literal, self.flags)}) & ({rest}))"
        if last.is_lookbehind and (not texts[-1] or all(lookbehinds)):
            rest = self.join(texts[:-1], looks[:-1])
            return f"(({rest}) & ({last.terminal(self.literal, self.flags)})) {self._text(texts[-1])}"
        return self._split(texts, looks)

    def _split(self, texts: list[str], looks: list[Look]) -> str:
        """The terminal of lookbehinds that are followed by lookaheads: cut between the two."""
        lookbehinds = [look.is_lookbehind for look in looks]
        count = sum(lookbehinds)
        if not all(lookbehinds[:count]):
            raise PatternError(f"{LOOKS[looks[0].kind]} at {looks[0].at} before a lookbehind is not supported")
        before = self.join([*texts[:count], ""], looks[:count])
        return f"({before}) ({self.join(texts[count:], looks[count:])})"

    def _text(self, part: str) -> str:
        return self.literal(f"{self.flags}(?:{part})") if part else '""'


def _without_anchors(texts: list[str], looks: list[Look]) -> list[str]:
    """The texts without anchors at the ends of the alternative.

    Raises:
        PatternError: there is an anchor elsewhere.
    """
    texts = list(texts)
    for anchors, order in ((_STARTS, range(len(texts))), (_ENDS, range(len(texts) - 1, -1, -1))):
        is_edge = True
        for number in order:
            if is_edge and texts[number] in anchors:
                texts[number] = ""
            if not is_edge and any(text in anchors for _, text in atoms(texts[number])):
                raise PatternError(f"an anchor next to {LOOKS[looks[0].kind]} at {looks[0].at} is not supported")
            is_edge = is_edge and not texts[number]
    return texts
