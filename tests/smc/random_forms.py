"""Random constraints of every kind over a few tokens, each with a judge that shares no code with it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema

from textguide.constraints import (
    After,
    AllOf,
    AnyOf,
    Call,
    Constraint,
    Grammar,
    JSONSchema,
    Not,
    Predicate,
    Regex,
    Vocabulary,
)

Judge = Callable[[str], bool]
LETTERS = ("a", "b", "c", "ab", "ba", "cab")
DOCUMENTS = ("{", "}", "[", "]", ",", '"a":', '"b":', '"', "1", "-", "2", "true", "null", "x", "[1", '{"a":1')
CALLS = ('{"name":"', "f", "g", '","arguments":{', '"x":', "true", "false", "1", '"y":', ",", "}}", "}", '{"name":"f')


@dataclass(frozen=True)
class Form:
    """A constraint.

    Args:
        kind: names what it is made of.
        constraint: the constraint.
        judge: whether a text is a member.
        pieces: the tokens, behind the end token 0.
        length: the limit of tokens, the end token included.
    """

    kind: str
    constraint: Constraint
    judge: Judge
    pieces: tuple[str, ...]
    length: int

    @property
    def vocabulary(self) -> Vocabulary:
        """Token 0 ends a text, the last one is special."""
        return Vocabulary((b"", *(piece.encode() for piece in self.pieces), b""), frozenset({0}))


def random_form(rng: random.Random) -> Form:
    """A form of a random kind."""
    kind = rng.choice([*MAKERS])
    return MAKERS[kind](rng)


def pattern(rng: random.Random, depth: int = 3) -> str:
    """A regular expression that ``re`` takes."""
    if depth == 0 or rng.random() < 0.25:
        return rng.choice(["a", "b", "c", "[ab]", "[^a]", "ab", "."])
    one, other = pattern(rng, depth - 1), pattern(rng, depth - 1)
    return rng.choice(
        [one + other, one + other, f"(?:{one}|{other})", f"(?:{one}){rng.choice(['*', '+', '?', '{1,2}'])}"]
    )


def matches(expression: str) -> Judge:
    compiled = re.compile(expression)
    return lambda text: compiled.fullmatch(text) is not None


def regex(rng: random.Random) -> Form:
    expression = pattern(rng)
    return _of_letters(rng, "regex", Regex(expression), matches(expression))


def look_around(rng: random.Random) -> Form:
    """Patterns of constructs that both packages read alike, and that need backtracking."""
    part, other = pattern(rng, 2), pattern(rng, 1)
    expression = rng.choice(
        [
            rf"(?!{other}){part}",
            rf"({part})\1?",
            rf"(?:{part})(?<!{rng.choice('abc')})",
            rf"(?={part}){other}.*",
        ]
    )
    return _of_letters(rng, "look-around", Regex(expression), matches(expression))


def combined(rng: random.Random) -> Form:
    one, other = (rng.choice([regex, regex, strings])(rng) for _ in range(2))
    if rng.random() < 0.6:
        union = AnyOf(one.constraint, other.constraint)
        return _of_letters(rng, "any-of", union, lambda text: one.judge(text) or other.judge(text))
    both = AllOf(one.constraint, other.constraint)
    return _of_letters(rng, "all-of", both, lambda text: one.judge(text) and other.judge(text))


def complement(rng: random.Random) -> Form:
    form = regex(rng)
    return _of_letters(rng, "not", Not(form.constraint), lambda text: not form.judge(text))


def members(rng: random.Random) -> frozenset[str]:
    return frozenset("".join(rng.choice("abc") for _ in range(rng.randint(0, 4))) for _ in range(rng.randint(1, 6)))


def strings(rng: random.Random) -> Form:
    """A function of the text."""
    found = members(rng)
    prefixes = {text[:n] for text in found for n in range(len(text) + 1)}
    asked = Predicate(lambda text: text in prefixes, lambda text: text in found, ascii=rng.random() < 0.5)
    return _of_letters(rng, "predicate", asked, lambda text: text in found)


def grammar(rng: random.Random) -> Form:
    """Rules over single letters, whose texts are made beside them."""
    rules, languages = [], list[frozenset[str]]()
    for number in range(rng.randint(1, 3)):
        alternatives, texts = [], set[str]()
        for _ in range(rng.randint(1, 3)):
            parts, made = [], {""}
            for _ in range(rng.randint(1, 3)):
                if languages and rng.random() < 0.5:
                    place = rng.randrange(len(languages))
                    part, inner = f"r{place}", languages[place]
                else:
                    letter = rng.choice("abc")
                    part, inner = f'"{letter}"', frozenset({letter})
                if rng.random() < 0.25:
                    part, inner = f"({part})?", inner | {""}
                parts.append(part)
                made = {left + right for left in made for right in inner if len(left + right) <= 8}
            alternatives.append(" ".join(parts))
            texts |= made
        rules.append(f"r{number}: {' | '.join(alternatives)}")
        languages.append(frozenset(texts))
    lark = "\n".join([f"start: r{len(rules) - 1}", *rules])
    return _of_letters(rng, "grammar", Grammar(lark), lambda text: text in languages[-1])


def after(rng: random.Random) -> Form:
    form, trigger = regex(rng), rng.choice(["c", "ab", "ca"])

    def judge(text: str) -> bool:
        head, found, rest = text.partition(trigger)
        return bool(found) and trigger not in head and form.judge(rest)

    return _of_letters(rng, "after", After(trigger, form.constraint), judge)


def schema(rng: random.Random, depth: int = 2) -> Any:
    """A schema over few values."""
    kinds = ["integer", "boolean", "null", "enum", "const", "array", "object", "any of", "not"]
    kind = rng.choice(kinds if depth else kinds[:5])
    inner = (lambda: schema(rng, depth - 1)) if depth else (lambda: True)
    return {
        "integer": lambda: {"type": "integer", **rng.choice([{}, {"minimum": 0}, {"maximum": 12}])},
        "boolean": lambda: {"type": "boolean"},
        "null": lambda: {"type": "null"},
        "enum": lambda: {"enum": rng.sample([1, 2, 12, True, None, "x", [1]], 3)},
        "const": lambda: {"const": rng.choice([1, "x", True, [], {"a": 1}])},
        "array": lambda: {
            "type": "array",
            "items": inner(),
            **rng.choice([{}, {"maxItems": 2}, {"uniqueItems": True}]),
        },
        "object": lambda: {
            "type": "object",
            "properties": {"a": inner(), "b": inner()},
            "additionalProperties": False,
            **rng.choice([{}, {"required": ["a"]}, {"minProperties": 1}]),
        },
        "any of": lambda: {"anyOf": [inner(), inner()]},
        "not": lambda: {"type": "integer", "not": {"const": rng.choice([1, 2])}},
    }[kind]()


def document(rng: random.Random) -> Form:
    found = schema(rng)
    return Form("json", JSONSchema(found), documents(found), _few(rng, DOCUMENTS, 9), rng.choice([4, 5]))


def call(rng: random.Random) -> Form:
    def f(x: bool) -> None: ...
    def g(x: int, y: bool = True) -> None: ...

    functions = rng.choice([(f,), (g,), (f, g)])
    constraint = Call(*functions)
    return Form("call", constraint, documents(constraint.to_dict()["schema"]), CALLS, 7)


def documents(found: Any) -> Judge:
    """Documents without blanks that ``jsonschema`` takes, with properties in order and numbers without exponents."""
    validator = jsonschema.Draft202012Validator(found)

    def judge(text: str) -> bool:
        try:
            value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
        except ValueError:
            return False
        plain = json.dumps(value, separators=(",", ":")) == text and ordered(value)
        return plain and validator.is_valid(value)

    return judge


def ordered(value: Any) -> bool:
    """Whether names come in the order in which the schemas here have them."""
    if isinstance(value, dict):
        order = ["name", "arguments", "a", "b", "x", "y"]
        places = [order.index(name) for name in value if name in order]
        return places == sorted(places) and all(map(ordered, value.values()))
    return not isinstance(value, list) or all(map(ordered, value))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _of_letters(rng: random.Random, kind: str, constraint: Constraint, judge: Judge) -> Form:
    return Form(kind, constraint, judge, _few(rng, LETTERS, 5), rng.choice([3, 4, 5]))


def _few(rng: random.Random, pieces: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(rng.sample(pieces, min(count, len(pieces))))


MAKERS: dict[str, Callable[[random.Random], Form]] = {
    "regex": regex, "look-around": look_around, "combined": combined, "not": complement, "predicate": strings,
    "grammar": grammar, "after": after, "json": document, "call": call,
}  # fmt: skip
