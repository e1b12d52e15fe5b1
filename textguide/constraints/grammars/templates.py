"""Templates and priorities of Lark grammars, which the engine does not read, written without them.

A template is a rule for each set of arguments that it is used with. A priority says which derivation of a text ``lark``
prefers; which texts are members does not depend on it under its Earley parser, and derivations are not asked for here.
"""

from __future__ import annotations

from collections.abc import Iterator

from .rules import Token, parts

MOST_RULES = 1000
Parts = list[Token]


def plain(grammar: str) -> str:
    """The grammar without templates and priorities.

    Raises:
        ValueError: a template has another number of arguments than it is used with, or makes rules for ever.
    """
    statements = _statements(grammar)
    templates = {}
    kept = []
    for statement in statements:
        said = [part for part in statement if part[0] not in ("skip", "line")]
        if len(said) > 3 and said[0][0] == "name" and said[1] == ("mark", "{"):
            end = said.index(("mark", "}")) if ("mark", "}") in said else 0
            names = [text for kind, text in said[2:end] if kind == "name"]
            templates[said[0][1].lstrip("?!")] = (names, statement[_colon(statement) + 1 :])
        else:
            kept.append(_without_priority(statement))
    made = _Instances(templates)
    written = ["".join(text for _, text in made.filled(statement, {})) for statement in kept]
    return "".join([*written, *made.rules()])


def _statements(grammar: str) -> list[Parts]:
    """What stands on each line, with the lines that go on it, and all that is between."""
    statements: list[Parts] = [[]]
    for part in parts(grammar):
        statements[-1].append(part)
        if part[0] == "line":
            statements.append([])
    return statements


def _colon(statement: Parts) -> int:
    return next((at for at, part in enumerate(statement) if part == ("mark", ":")), -1)


def _without_priority(statement: Parts) -> Parts:
    """``name.2: …`` as ``name: …``."""
    colon = _colon(statement)
    said = [at for at, part in enumerate(statement[: max(0, colon)]) if part[0] not in ("skip", "line")]
    if len(said) > 2 and statement[said[0]][0] == "name" and statement[said[1]] == ("mark", "."):
        return [*statement[: said[1]], *statement[colon:]]
    return statement


class _Instances:
    """The rules that templates stand for."""

    def __init__(self, templates: dict[str, tuple[list[str], Parts]]) -> None:
        self.templates = templates
        self._waiting: list[tuple[str, Parts, dict[str, Parts]]] = []
        self._names: dict[tuple[str, ...], str] = {}

    def filled(self, tokens: Parts, values: dict[str, Parts]) -> Parts:
        """``tokens`` with values in place of names, and rules in place of templates."""
        out: Parts = []
        at = 0
        while at < len(tokens):
            kind, text = tokens[at]
            at += 1
            if kind == "name" and text in self.templates and tokens[at : at + 1] == [("mark", "{")]:
                given, at = _arguments(tokens, at + 1)
                out.append(("name", self._rule(text, [self.filled(one, values) for one in given])))
            elif kind == "name" and text in values:
                out += values[text]
            else:
                out.append((kind, text))
        return out

    def rules(self) -> Iterator[str]:
        """Those that what was filled stands on."""
        while self._waiting:
            made, body, values = self._waiting.pop(0)
            yield f"\n{made}:{''.join(text for _, text in self.filled(body, values)).rstrip()}\n"

    def _rule(self, name: str, given: list[Parts]) -> str:
        names, body = self.templates[name]
        if len(names) != len(given):
            raise ValueError(f"the template {name} takes {len(names)} arguments, and is used with {len(given)}")
        key = (name, *("".join(text for _, text in one).strip() for one in given))
        if key not in self._names:
            if len(self._names) == MOST_RULES:
                raise ValueError(f"the template {name} stands for more than {MOST_RULES} rules; it makes them for ever")
            made = self._names[key] = f"{name.lstrip('_')}_textguide_{len(self._names)}"
            values = {one: [("mark", "("), *value, ("mark", ")")] for one, value in zip(names, given, strict=True)}
            self._waiting.append((made, body, values))
        return self._names[key]


def _arguments(tokens: Parts, at: int) -> tuple[list[Parts], int]:
    """The arguments up to the closing brace, and where it ends."""
    given: list[Parts] = [[]]
    depth = 0
    while at < len(tokens):
        kind, text = tokens[at]
        at += 1
        if kind == "mark" and text == "}" and depth == 0:
            return given, at
        if kind == "mark" and text == "," and depth == 0:
            given.append([])
            continue
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(text, 0) if kind == "mark" else 0
        given[-1].append((kind, text))
    return given, at
