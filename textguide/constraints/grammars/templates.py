"""Templates and priorities of Lark grammars, which the engine does not support, rewritten without them.

A template becomes one rule for each list of arguments that it is used with. A priority chooses which derivation of a
text ``lark`` prefers; under its Earley parser it does not change which texts are accepted, and derivations are not
needed here.
"""

from __future__ import annotations

from collections.abc import Iterator

from .rules import Token, tokens_of

MAX_RULES = 1000
Tokens = list[Token]


def plain(grammar: str) -> str:
    """The grammar without templates and priorities.

    Raises:
        ValueError: a template is used with the wrong number of arguments, or expands forever.
    """
    templates: dict[str, tuple[list[str], Tokens]] = {}
    others = []
    for statement in _statements(grammar):
        words = [token for token in statement if token[0] not in ("skip", "line")]
        if len(words) > 3 and words[0][0] == "name" and words[1] == ("mark", "{"):
            end = words.index(("mark", "}")) if ("mark", "}") in words else 0
            parameters = [text for kind, text in words[2:end] if kind == "name"]
            templates[words[0][1].lstrip("?!")] = (parameters, statement[_colon(statement) + 1 :])
        else:
            others.append(_without_priority(statement))
    expansion = _Expansion(templates)
    written = [_text(expansion.expanded(statement, {})) for statement in others]
    return "".join([*written, *expansion.rules()])


def starting_at(grammar: str, rule: str) -> str:
    """The grammar whose rule ``start`` has the texts of ``rule``; its own rule of that name gets another one.

    Raises:
        ValueError: ``rule`` is no rule of the grammar.
    """
    if rule == "start":
        return grammar
    tokens = tokens_of(grammar)
    names = {text.lstrip("?!") for kind, text in tokens if kind == "name"}
    if rule not in names or not rule.islower():
        raise ValueError(f"start_rule={rule!r} is no rule of it; pass the name of one, in small letters")
    renamed = []
    for kind, text in tokens:
        if kind == "name" and text.lstrip("?!") == "start":
            text = f"{text}_textguide"
        renamed.append((kind, text))
    return f"{_text(renamed)}\nstart: {rule}\n"


def _text(tokens: Tokens) -> str:
    return "".join(text for _, text in tokens)


def _statements(grammar: str) -> list[Tokens]:
    """The tokens of each statement, up to the end of its last line."""
    statements: list[Tokens] = [[]]
    for token in tokens_of(grammar):
        statements[-1].append(token)
        if token[0] == "line":
            statements.append([])
    return statements


def _colon(statement: Tokens) -> int:
    return next((at for at, token in enumerate(statement) if token == ("mark", ":")), -1)


def _without_priority(statement: Tokens) -> Tokens:
    """``name.2: …`` as ``name: …``."""
    colon = _colon(statement)
    words = [at for at, token in enumerate(statement[: max(0, colon)]) if token[0] not in ("skip", "line")]
    if len(words) > 2 and statement[words[0]][0] == "name" and statement[words[1]] == ("mark", "."):
        return [*statement[: words[1]], *statement[colon:]]
    return statement


class _Expansion:
    """Replaces templates by rules.

    Args:
        templates: the parameters and the body of each template by its name.
    """

    def __init__(self, templates: dict[str, tuple[list[str], Tokens]]) -> None:
        self.templates = templates
        self._pending: list[tuple[str, Tokens, dict[str, Tokens]]] = []
        self._names: dict[tuple[str, ...], str] = {}

    def expanded(self, tokens: Tokens, values: dict[str, Tokens]) -> Tokens:
        """``tokens`` with parameters replaced by their values, and templates by the names of rules."""
        result: Tokens = []
        at = 0
        while at < len(tokens):
            kind, text = tokens[at]
            at += 1
            if kind == "name" and text in self.templates and tokens[at : at + 1] == [("mark", "{")]:
                arguments, at = _arguments(tokens, at + 1)
                name = self._rule(text, [self.expanded(argument, values) for argument in arguments])
                result.append(("name", name))
            elif kind == "name" and text in values:
                result += values[text]
            else:
                result.append((kind, text))
        return result

    def rules(self) -> Iterator[str]:
        """The rules that the expanded statements use, including rules that these use in turn."""
        while self._pending:
            name, body, values = self._pending.pop(0)
            yield f"\n{name}:{_text(self.expanded(body, values)).rstrip()}\n"

    def _rule(self, name: str, arguments: list[Tokens]) -> str:
        """The name of the rule for a template with these arguments."""
        parameters, body = self.templates[name]
        if len(parameters) != len(arguments):
            raise ValueError(f"the template {name} has {len(parameters)} parameters, but is used with {len(arguments)}")
        key = (name, *(_text(argument).strip() for argument in arguments))
        if key not in self._names:
            if len(self._names) == MAX_RULES:
                raise ValueError(f"the template {name} expands to more than {MAX_RULES} rules; it may expand forever")
            rule = self._names[key] = f"{name.lstrip('_')}_textguide_{len(self._names)}"
            values: dict[str, Tokens] = {}
            for parameter, argument in zip(parameters, arguments, strict=True):
                values[parameter] = [("mark", "("), *argument, ("mark", ")")]
            self._pending.append((rule, body, values))
        return self._names[key]


_NESTING = {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}


def _arguments(tokens: Tokens, at: int) -> tuple[list[Tokens], int]:
    """The arguments up to the closing brace, and the position after it."""
    arguments: list[Tokens] = [[]]
    depth = 0
    while at < len(tokens):
        kind, text = tokens[at]
        at += 1
        if kind == "mark" and depth == 0 and text == "}":
            break
        if kind == "mark" and depth == 0 and text == ",":
            arguments.append([])
            continue
        if kind == "mark":
            depth += _NESTING.get(text, 0)
        arguments[-1].append((kind, text))
    return arguments, at
