"""Grammars with templates, priorities and ambiguity take the texts that Python's ``lark`` takes."""

from __future__ import annotations

import random
from itertools import product

import pytest

from textguide.constraints import Grammar, from_dict
from textguide.constraints.grammars.templates import plain

from .walks import BYTES

pytest.importorskip("llguidance")
lark = pytest.importorskip("lark")

LETTERS = "ab,"
GRAMMARS = (
    'start: list{item, ","}\nlist{x, d}: x (d x)*\nitem: "a" | "b"',
    'start: list{item, ","} | list{"b", "b"}\n_sep{x, d}: d x\nlist{x, d}: x _sep{x, d}*\nitem.2: "a"',
    'start: pair{pair{"a", "b"}, ","}\npair{x, y}.3: x y | y x',
    'start: both{"a"}\nboth{x}: x x',
    'start: e\n?e.2: e "," e | a\na.1: "a" | b a\n!b.-1: "b"',
    'start: A | B B\nA.5: "a" | "ab"\nB.1: "a"\n',
    'start: x\n  | y\nx: "a"~1..2 ["b"] -> some\ny: opt{"b"}\nopt{z}: z? ","',
)


def texts(length: int) -> list[str]:
    return ["".join(letters) for size in range(length + 1) for letters in product(LETTERS, repeat=size)]


def members(grammar: str, length: int = 4) -> set[str]:
    parser = lark.Lark(grammar, parser="earley", lexer="dynamic_complete")
    found = set()
    for text in texts(length):
        try:
            parser.parse(text)
        except lark.exceptions.LarkError:
            continue
        found.add(text)
    return found


def agrees(grammar: str, length: int = 4) -> None:
    wanted = members(grammar, length)
    session = Grammar(grammar).start(BYTES)
    assert {text for text in texts(length) if session.is_complete(text.encode())} == wanted, grammar
    beginnings = {text[:end] for text in wanted for end in range(len(text) + 1)}
    assert all(session.is_prefix(text.encode()) for text in beginnings), grammar


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_texts_are_those_of_lark(grammar: str) -> None:
    assert members(grammar)
    agrees(grammar)


@pytest.mark.parametrize("rule", ["start", "item", "pair"])
@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
def test_start_rule(rule: str, engine: str) -> None:
    """Any rule can be the first one, also if the grammar has another one named start, which that rule needs."""
    grammar = 'start: pair ","\n?item: "a" | "b" start\npair: item item'
    parser = lark.Lark(grammar, parser="earley", lexer="dynamic_complete", start=rule)
    constraint = Grammar(grammar, engine=engine, start_rule=rule)
    assert from_dict(constraint.to_dict()) == constraint
    session = constraint.start(BYTES)
    count = 0
    for text in texts(5):
        try:
            parser.parse(text)
        except lark.exceptions.LarkError:
            is_member = False
        else:
            is_member = True
        count += is_member
        assert session.is_complete(text.encode()) == is_member, text
    assert count


def test_start_rule_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="start_rule='nothing' is no rule of it"):
        Grammar('start: "a"', start_rule="nothing")


def made(seed: int) -> str:
    """A random grammar of a few rules, with two templates and priorities; its terminals are single letters."""
    draw = random.Random(seed)

    def item(names: list[str], depth: int = 0) -> str:
        kind = draw.random()
        if kind < 0.4 or depth > 1:
            return draw.choice([f'"{letter}"' for letter in LETTERS])
        if kind < 0.6:
            return draw.choice(names)
        if kind < 0.75:
            return f"one{{{value(names)}}}"
        if kind < 0.85:
            return f"two{{{value(names)}, {value(names)}}}"
        return f"({item(names, depth + 1)} | {item(names, depth + 1)}){draw.choice(['', '?', '+'])}"

    def value(names: list[str]) -> str:
        return draw.choice(['"a"', '","', f"one{{{names[0]}}}", *names])

    def body(names: list[str]) -> str:
        return " | ".join(" ".join(item(names) for _ in range(draw.randint(1, 2))) for _ in range(draw.randint(1, 2)))

    def priority() -> str:
        return draw.choice(["", f".{draw.randint(0, 3)}"])

    lines = [f"start: {body(['u', 'v'])}", f"u{priority()}: {body(['v'])}", f'v{priority()}: "a" | v "b"']
    lines += [f"one{{x}}{priority()}: " + draw.choice(["x x", 'x | "b"', '"," x?'])]
    return "\n".join([*lines, f"two{{x, y}}{priority()}: " + draw.choice(["x y", "y | x", "one{x} y?"])])


def test_random_grammars() -> None:
    for seed in range(30):
        agrees(made(seed), length=3)


def test_what_is_no_template() -> None:
    with pytest.raises(ValueError, match="the template two has 2 parameters, but is used with 1"):
        Grammar('start: two{"a"}\ntwo{x, y}: x y')
    with pytest.raises(ValueError, match="may expand forever"):
        Grammar('start: more{"a"}\nmore{x}: x | more{more{x}}')
    with pytest.raises(ValueError, match="cannot be used"):
        Grammar('start: A\nA: "a"\n%declare B\n').start(BYTES)


def test_other_grammars_stay_as_they_are() -> None:
    for grammar in ('start: "a"{2,3} /a{2}.2/ # x.2: y\n', 'start: %json {\n  "a.2": {}\n}\n', 'start: "x.2: "\n| "b"'):
        assert plain(grammar) == grammar
