"""The tokens of a Lark grammar, and which of its rules have a text at all.

The engine's masks contain every token after which its parser can continue, and a rule that needs itself in every
alternative continues forever: ``list: item list`` never ends. Such a rule is found here, before anything is compiled.
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
"""The kind of a token, a group of the expression above or ``block``, and its text."""


def tokens_of(grammar: str) -> list[Token]:
    """All of a grammar in order: tokens, ``skip`` between them, and ``block``, the braces after ``%json`` and so on."""
    tokens: list[Token] = []
    at = 0
    while at < len(grammar):
        match = _TOKEN.match(grammar, at)
        assert match is not None
        assert match.lastgroup is not None
        at = match.end()
        tokens.append((match.lastgroup, match[0]))
        if match[0] in ("%json", "%regex", "%lark"):
            end = _end_of_braces(grammar, at)
            tokens.append(("block", grammar[at:end]))
            at = end
    return tokens


def _end_of_braces(text: str, at: int) -> int:
    """The end of the first ``{…}`` from ``at`` on; strings may contain braces."""
    depth = 0
    for part in re.compile(r'"(?:\\.|[^"\\])*"|[{}]').finditer(text, at):
        depth += {"{": 1, "}": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return len(text)


def unproductive(grammar: str) -> list[str]:
    """Names of the rules that no text satisfies, in their order.

    A construct that is not understood here counts as productive, so that no valid grammar is refused.
    """
    rules = _rules(grammar)
    names = set(rules)
    left = list(rules.items())
    productive: set[str] = set()
    grew = True
    while grew:
        grew = False
        left = [(name, body) for name, body in reversed(left) if name not in productive]  # chains go either way
        for name, body in left:
            if _Body(body, productive, names).is_productive():
                productive.add(name)
                grew = True
    return [name for name in rules if name not in productive]


def _rules(grammar: str) -> dict[str, list[Token]]:
    """The body of each rule by its name."""
    rules: dict[str, list[Token]] = {}
    line: list[Token] = []
    tokens = [token for token in tokens_of(grammar) if token[0] not in ("skip", "block")]
    for token in [*tokens, ("line", "\n")]:
        if token[0] != "line":
            line.append(token)
            continue
        colons = [i for i, (kind, text) in enumerate(line) if kind == "mark" and text == ":"]
        if line and line[0][0] == "name" and colons:
            rules[line[0][1].lstrip("?!")] = line[colons[0] + 1 :]
        line = []
    return rules


class _Body:
    """Decides whether the body of a rule has a text.

    Args:
        tokens: the body.
        productive: names of the rules that are known to have a text.
        rules: names of all rules.
    """

    def __init__(self, tokens: list[Token], productive: set[str], rules: set[str]) -> None:
        self.tokens = tokens
        self.productive = productive
        self.rules = rules
        self.at = 0

    def is_productive(self) -> bool:
        return self._alternatives("")

    def _alternatives(self, end: str) -> bool:
        """Read up to the mark ``end``; whether one of the alternatives has a text."""
        any_productive = False
        this_productive = True
        while self.at < len(self.tokens):
            kind, text = self.tokens[self.at]
            self.at += 1
            if kind == "mark" and text == end:
                break
            if text == "|":
                any_productive = any_productive or this_productive
                this_productive = True
            elif text == "->":  # followed by the name of an alias
                self.at += 1
            else:
                this_productive = self._item(kind, text) and this_productive
        return any_productive or this_productive

    def _item(self, kind: str, text: str) -> bool:
        """Read the rest of one item, with its quantifier; whether it has a text."""
        is_productive = True
        if text == "[":  # optional, so it is productive in any case
            self._alternatives("]")
        elif text == "(":
            is_productive = self._alternatives(")")
        elif kind == "name":
            name = text.lstrip("?!")
            is_productive = name in self.productive or name not in self.rules
        return self._reads_optional_quantifier() or is_productive

    def _reads_optional_quantifier(self) -> bool:
        """Read a quantifier, if there is one; whether it allows zero repetitions."""
        if self.at == len(self.tokens):
            return False
        kind, text = self.tokens[self.at]
        if text not in ("?", "*", "+") and kind != "count":
            return False
        self.at += 1
        if text in ("?", "*"):
            return True
        least = re.search(r"\d+", text.split(",")[0].split("..")[0])
        return kind == "count" and (least is None or int(least[0]) == 0)
