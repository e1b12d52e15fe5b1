"""Constraints as values: equality, JSON, lines of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textguide.constraints import (
    SMILES,
    SQL,
    After,
    AllOf,
    AnyOf,
    Constraint,
    Corpus,
    Grammar,
    JSONSchema,
    Not,
    Predicate,
    Quote,
    Regex,
    Tag,
    Tags,
    from_dict,
    resolve,
)  # fmt: skip

pytest.importorskip("llguidance")

EVERY: list[Constraint] = [
    Regex("é[a-z]+"),
    Regex("a", engine="xgrammar"),
    JSONSchema({"b": 1, "a": [None]}, whitespace="none", lenient=True),
    JSONSchema(True),
    Grammar('start: "a"\n'),
    AnyOf(Regex("a"), Grammar('start: "b"')),
    AllOf(Regex("a"), Not(Regex("b"))),
    After("</think>", Regex("a")),
    SMILES(),
    Tags([Tag("<a>", Regex("b"), "</a>"), Tag("<c>", SMILES())], at_most=2),
    Quote("a b", unit="word", most=2),
    Corpus({"a": "b", "c": "d"}),
    SQL({"t": ["a", "b c"]}, dialect="standard"),
]


@pytest.mark.parametrize("constraint", EVERY, ids=repr)
def test_to_json_and_back(constraint: Constraint) -> None:
    again = from_dict(json.loads(json.dumps(constraint.to_dict())))
    assert again == constraint
    assert hash(again) == hash(constraint)
    assert resolve(json.dumps(constraint.to_dict())) == resolve(constraint.to_dict()) == resolve(constraint) == again


def test_every_kind_is_registered() -> None:
    kinds = {"regex", "json-schema", "grammar", "predicate", "any-of", "all-of", "not", "after", "sql", "smiles"}
    kinds |= {"quote", "corpus", "tags"}
    ours = {kind for kind, made in Constraint.registry.items() if made.__module__.startswith("textguide.constraints")}
    assert ours == kinds
    assert {constraint.kind for constraint in EVERY} == kinds - {"predicate"} - {"not"}


def test_functions_are_not_loaded() -> None:
    with pytest.raises(ValueError, match="functions are not loaded from JSON"):
        from_dict(Predicate(str.isascii).to_dict())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "regexp", "pattern": "a"}, "kind='regexp' is not a constraint; use one of after, all-of"),
        ({"pattern": "a"}, "kind=None"),
        ({"kind": ["regex"]}, "is not a constraint"),
        ({"kind": "regex"}, "'pattern' is missing"),
        ({"kind": "any-of"}, "'constraints' is missing"),
        (
            {"kind": "regex", "pattern": "a", "flags": 1},
            "'flags' is not a field of regex; its fields are pattern, engine",
        ),
        ({"kind": "not", "constraint": {"kind": "grammar", "grammar": "start: A"}}, "cannot be negated"),
        ([], "must be a dict"),
    ],
)
def test_dicts_that_are_no_constraint(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "null"}')
    (tmp_path / "g.txt").write_text('start: "a"')
    assert resolve("regex:a:b") == Regex("a:b")
    assert resolve(f"json-schema:{tmp_path / 's.json'}") == JSONSchema({"type": "null"})
    assert resolve('json-schema:{"type": "null"}') == JSONSchema({"type": "null"})
    assert resolve(f"grammar:{tmp_path / 'g.txt'}") == resolve('grammar:start: "a"') == Grammar('start: "a"')


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("regx:a", "did you mean regex:…?"),
        ("[a-z]", "use one of regex:PATTERN"),
        ("json-schema:", "did you mean json-schema"),
        ("{", "is not valid JSON"),
        (3, "constraint=3 must be"),
        ("grammar:nowhere.txt", "grammar='nowhere.txt' cannot be read"),
    ],
)
def test_lines_that_are_no_constraint(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        resolve(value)
