"""Look-around as intersection: regular sets have one, and the engine's terminals spell it ``&``.

``X(?=A)Y`` is ``X (A.* & Y)``, ``X(?<=A)Y`` is ``(X & .*A) Y``, and a negative one takes the complement. That holds
where the look-around is a part of the whole pattern, or of one of its alternatives, and not of a group in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .syntax import LOOKS, PatternError, atoms, translate, without_blanks

Literal = Callable[[str], str]
_ALL = "(?s:.*)"
_NOTHING = r"[^\s\S]"
_STARTS, _ENDS = ("^", r"\A"), ("$", r"\z")
_FLAGS = re.compile(r"\(\?[a-zA-Z]+\)")


@dataclass(frozen=True)
class Look:
    """A look-around: its kind as it begins, its body as it was written, and its place."""

    kind: str
    body: str
    at: int

    @property
    def behind(self) -> bool:
        """Whether it looks back."""
        return "<" in self.kind

    def holds_for_nothing(self) -> bool:
        """Whether it holds at the end of the text (or, behind, at its start)."""
        self.parts()
        try:
            return (re.fullmatch(self.body, "") is not None) != ("!" in self.kind)
        except re.error:  # the body is right for the engine and not for Python
            raise PatternError(f"{LOOKS[self.kind]} at {self.at}, where no text is, is not supported") from None

    def terminal(self, literal: Literal, flags: str) -> str:
        """What it allows the rest of the text (or, behind, the text so far) to be."""
        parts, anchored = self.parts()
        body, rest = f"(?:{''.join(parts)})", "" if anchored else _ALL
        found = literal(flags + (rest + body if self.behind else body + rest))
        return f"({literal(_ALL)} & ~({found}))" if "!" in self.kind else found

    def parts(self) -> tuple[list[str], bool]:
        """The body in the engine's spelling without an anchor at its outer end, and whether there was one."""
        parts = [text for _, text in atoms(self.body)]
        outer = 0 if self.behind else -1
        anchored = bool(parts) and parts[outer] in (_STARTS if self.behind else _ENDS)
        if anchored:
            del parts[outer]
        if any(text in (*_STARTS, *_ENDS) for text in parts) or (anchored and "|" in parts):
            raise PatternError(f"an anchor inside of {LOOKS[self.kind]} at {self.at} is not supported")
        return parts, anchored


def terminal(pattern: str, literal: Literal) -> str:
    """A pattern as a terminal of the engine's grammars.

    Args:
        pattern: in Python's syntax.
        literal: makes a terminal of a pattern in the engine's syntax.

    Raises:
        PatternError: as :func:`pattern_syntax.translate`, or look-around stands where it cannot be taken apart.
    """
    pattern = without_blanks(pattern)
    if not any(text in LOOKS for _, text in atoms(pattern)):
        return literal(translate(pattern))
    flags = "".join(found[0] for found in _FLAGS.finditer(pattern) if found.start() == 0)
    parts = _alternatives(pattern, len(flags))
    return " | ".join(f"({_join(texts, looks, literal, flags)})" for texts, looks in parts)


def _alternatives(pattern: str, begin: int) -> list[tuple[list[str], list[Look]]]:
    """Of each alternative behind the flags, which end at ``begin``: the texts between its look-arounds, and these."""
    found: list[tuple[list[str], list[Look]]] = [([""], [])]
    depth, start, since, begun = 0, "", 0, 0  # `start`: the look-around that is open
    looked = False
    for at, text in atoms(pattern):
        if at < begin:
            continue
        texts, looks = found[-1]
        if looked and re.fullmatch(r"[*+?]|\{.*\}", text):
            raise PatternError(f"a repeated look-around at {at} is not supported")
        looked = False
        if text in LOOKS and depth == 0:
            start, since, begun = text, at + len(text), at
        elif text in LOOKS:
            raise PatternError(f"{LOOKS[text]} at {at} is not supported inside a group")
        depth += text in LOOKS or text.startswith("(")
        depth -= text == ")"
        if start:
            if depth == 0:
                looks.append(Look(start, pattern[since:at], begun))
                texts.append("")
                start, looked = "", True
        elif text == "|" and depth == 0:
            found.append(([""], []))
        elif text not in LOOKS:
            texts[-1] += text
    return found


def _join(texts: list[str], looks: list[Look], literal: Literal, flags: str) -> str:
    """One alternative: ``texts[0] looks[0] texts[1] …``, the texts in the engine's spelling and without anchors."""

    def text(part: str) -> str:
        return literal(f"{flags}(?:{part})") if part else '""'

    def join(texts: list[str], looks: list[Look]) -> str:
        if not looks:
            return text(texts[0])
        first, last = looks[0], looks[-1]
        behinds = [look.behind for look in looks]
        if not texts[0] and first.behind:  # nothing is behind the start, and nothing ahead of the end
            return join(texts[1:], looks[1:]) if first.holds_for_nothing() else literal(_NOTHING)
        if not texts[-1] and not last.behind:
            return join(texts[:-1], looks[:-1]) if last.holds_for_nothing() else literal(_NOTHING)
        # A look ahead covers all that follows, so that nothing that follows may look back over it; and the reverse.
        if not first.behind and (not texts[0] or not any(behinds)):
            return f"{text(texts[0])} (({first.terminal(literal, flags)}) & ({join(texts[1:], looks[1:])}))"
        if last.behind and (not texts[-1] or all(behinds)):
            return f"(({join(texts[:-1], looks[:-1])}) & ({last.terminal(literal, flags)})) {text(texts[-1])}"
        count = sum(behinds)
        if behinds != [True] * count + [False] * (len(behinds) - count):
            raise PatternError(f"{LOOKS[first.kind]} at {first.at} in front of a lookbehind is not supported")
        return f"({join([*texts[:count], ''], looks[:count])}) ({join(texts[count:], looks[count:])})"

    return join(_without_edges(texts, looks), looks)


def _without_edges(texts: list[str], looks: list[Look]) -> list[str]:
    """The texts without anchors at the ends, and no anchor where it would be taken for one."""
    texts = list(texts)
    for edges, order in ((_STARTS, range(len(texts))), (_ENDS, range(len(texts) - 1, -1, -1))):
        edge = True
        for i in order:
            if edge and texts[i] in edges:
                texts[i] = ""
            if not edge and any(text in edges for _, text in atoms(texts[i])):
                raise PatternError(f"an anchor beside {LOOKS[looks[0].kind]} at {looks[0].at} is not supported")
            edge = edge and not texts[i]
    return texts
