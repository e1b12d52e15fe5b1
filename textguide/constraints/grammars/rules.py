"""Which rules of a Lark grammar have a text at all; for templates and priorities see :mod:`lark_templates`.

The engine's masks hold every token behind which its parser can go on, and a rule that needs itself in every
alternative goes on for ever: ``list: item list`` with no end. Such a rule is found here, before anything is compiled.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""(?P<skip>[ \t\f\r]+|(?://|\#)[^\n]*|\n\s*(?=\|))
    |(?P<line>\n)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*|<[^>\n]*>|@[\w-]+|%(?:regex|json|lark)\b)
    |(?P<name>[?!]*[A-Za-z_][\w-]*)
    |(?P<count>\{\d*,?\d*\}|~\s*\d+(?:\s*\.\.\s*\d+)?)
    |(?P<mark>->|.)""",
    re.VERBOSE,
)
Token = tuple[str, str]


def unproductive(grammar: str) -> list[str]:
    """Names of rules of which no text is a member, in their order. What this cannot read it takes for productive."""
    rules = _rules(grammar)
    productive: set[str] = set()
    grew = True
    while grew:
        grew = False
        for name, body in rules.items():
            if name not in productive and _Body(body, productive, set(rules)).whole():
                productive.add(name)
                grew = True
    return [name for name in rules if name not in productive]


def _rules(grammar: str) -> dict[str, list[Token]]:
    rules: dict[str, list[Token]] = {}
    line: list[Token] = []
    tokens = _tokens(grammar)
    for token in [*tokens, ("line", "\n")]:
        if token[0] != "line":
            line.append(token)
            continue
        marks = [i for i, (kind, text) in enumerate(line) if kind == "mark" and text == ":"]
        if line and line[0][0] == "name" and marks:
            rules[line[0][1].lstrip("?!")] = line[marks[0] + 1 :]
        line = []
    return rules


def _tokens(grammar: str) -> list[Token]:
    return [token for token in parts(grammar) if token[0] not in ("skip", "block")]


def parts(grammar: str) -> list[Token]:
    """All of a grammar in order: tokens, ``skip`` between them, and ``block``, the braces of ``%json`` and so on."""
    found: list[Token] = []
    at = 0
    while at < len(grammar):
        match = _TOKEN.match(grammar, at)
        assert match is not None
        assert match.lastgroup is not None
        at = match.end()
        found.append((match.lastgroup, match[0]))
        if match[0] in ("%json", "%regex", "%lark"):
            end = _behind_braces(grammar, at)
            found.append(("block", grammar[at:end]))
            at = end
    return found


def _behind_braces(text: str, at: int) -> int:
    """Where ``{…}`` ends that begins at or behind ``at``; strings may hold braces."""
    depth = 0
    for part in re.compile(r'"(?:\\.|[^"\\])*"|[{}]').finditer(text, at):
        depth += {"{": 1, "}": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return len(text)


class _Body:
    """Whether a body has a text, given which rules have one."""

    def __init__(self, tokens: list[Token], productive: set[str], rules: set[str]) -> None:
        self.tokens, self.productive, self.rules = tokens, productive, rules
        self.at = 0

    def whole(self) -> bool:
        return self._alternatives("")

    def _alternatives(self, end: str) -> bool:
        some, this = False, True
        while self.at < len(self.tokens):
            kind, text = self.tokens[self.at]
            self.at += 1
            if kind == "mark" and text == end:
                break
            if text == "|":
                some, this = some or this, True
            elif text == "->":  # an alias
                self.at += 1
            else:
                this = self._item(kind, text) and this
        return some or this

    def _item(self, kind: str, text: str) -> bool:
        holds = True
        if text == "[":  # may be left out
            self._alternatives("]")
        elif text == "(":
            holds = self._alternatives(")")
        elif kind == "name":
            name = text.lstrip("?!")
            holds = name in self.productive or name not in self.rules
        return self._optional() or holds

    def _optional(self) -> bool:
        """Whether what comes next says that nothing need be there."""
        if self.at == len(self.tokens):
            return False
        kind, text = self.tokens[self.at]
        if text in ("?", "*", "+") or kind == "count":
            self.at += 1
            low = re.search(r"\d+", text.split(",")[0].split("..")[0])
            return text in ("?", "*") or (kind == "count" and (low is None or int(low[0]) == 0))
        return False
