"""What no mask holds of a JSON schema, checked at finished values, against ``jsonschema``."""

from __future__ import annotations

import json
import os
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import textguide
from textguide import AWRS
from textguide.constraints import JSONSchema
from textguide.constraints.json_schema.nodes import Node

from .schema_documents import documents, spoilt, written
from .walks import BYTES

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

SAMPLED = range(3, 244, 16)
"""Schemas that are tried where TEXTGUIDE_DOCUMENTS does not ask for that many documents of every one."""

LETTERS = {"type": "array", "items": {"enum": ["a", "b", 1]}, "maxItems": 2}
SCHEMAS: dict[str, Any] = {
    "unique": {**LETTERS, "uniqueItems": True},
    "not": {**LETTERS, "not": {"contains": {"const": 1}}},
    "one of": {"oneOf": [{**LETTERS, "minItems": 1}, {**LETTERS, "maxItems": 1}]},
    "if": {**LETTERS, "if": {"maxItems": 1}, "then": {"items": {"const": 1}}},
    "reference": {"allOf": [{"$ref": "#/$defs/few"}], "$defs": {"few": {**LETTERS, "uniqueItems": True}}},
    "identifier": {"$ref": "few", "$defs": {"f": {"$id": "few", **LETTERS, "uniqueItems": True}}},
}


def lists() -> list[str]:
    """Every list that ``LETTERS`` allows, and some more."""
    words = ['"a"', '"b"', "1"]
    return ["[" + ", ".join(one) + "]" for count in range(4) for one in product(words, repeat=count)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_list_is_judged_as_jsonschema_judges_it(name: str) -> None:
    schema = SCHEMAS[name]
    judge = jsonschema.Draft202012Validator(schema)
    session = JSONSchema(schema).start(BYTES)
    verdicts = set()
    for text in lists():
        valid = judge.is_valid(json.loads(text))
        verdicts.add(valid)
        assert session.is_complete(text.encode()) == valid, text
        if valid:
            assert all(session.is_prefix(text[:end].encode()) for end in range(len(text) + 1)), text
        else:
            assert not session.is_prefix(text.encode()), text  # refused with the last bracket, not behind it
    assert verdicts == {True, False}


def test_a_value_inside_is_refused_where_it_ends() -> None:
    schema = {
        "type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "properties": {"n": {"not": {"const": 13}, "type": "integer"}}, "minProperties": 2, "required": ["n"],
    }  # fmt: skip
    constraint = JSONSchema(schema)
    assert set(constraint.held.checked) == {"not", "uniqueItems"}
    assert {"required", "minProperties"} <= set(constraint.held.masked)
    session = constraint.start(BYTES)
    for text, is_prefix in (
        (b'{"n": 13', True),
        (b'{"n": 13,', False),
        (b'{"n": 130,', True),
        (b'{"n": 13}', False),
        (b'{"n": 1}', False),
        (b'{"n": 1, "x": [1, 1', True),
        (b'{"n": 1, "x": [1, 1]', False),
        (b'{"n": 1, "x": [1, 11]}', True),
    ):
        assert session.is_prefix(text) == is_prefix, text
    assert session.is_complete(b'{"n": 1, "x": [1, 11]}')
    # The same when the text is written token by token, and in a fork.
    for byte in b'{"n": 1, "\\"]": [1, ':
        assert session.is_prefix(session.text + bytes([byte]))
        session.advance(1 + byte)  # the token of a byte
    fork = session.fork()
    assert not session.is_prefix(session.text + b"1]")
    fork.advance(1 + ord("2"))
    assert fork.is_prefix(fork.text + b"]}")
    assert fork.is_complete(fork.text + b"]}")
    assert not session.is_complete(fork.text + b"]")


def test_what_is_left_out_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "is_valid", lambda *_: True)
    with pytest.raises(AssertionError):
        test_every_list_is_judged_as_jsonschema_judges_it("not")


@pytest.mark.parametrize("draft", ["http://json-schema.org/draft-04/schema#", ""])
def test_what_stands_beside_a_reference(draft: str) -> None:
    schema = {
        "$schema": draft,
        "type": "object",
        "properties": {"a": {"type": "string", "$ref": "#/x"}},
        "x": {"enum": [1, "b"]},
    }
    if not draft:
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    judge = jsonschema.validators.validator_for(schema)(schema)
    session = JSONSchema(schema).start(BYTES)
    for text in ('{"a": 1}', '{"a": "b"}', '{"a": 2}'):
        assert session.is_complete(text.encode()) == judge.is_valid(json.loads(text)), text


def test_patterns_that_python_alone_knows_are_checked() -> None:
    constraint = JSONSchema({"type": "string", "pattern": "^(?!no)[a-z]+$"})
    assert constraint.held.checked == ("pattern",)
    session = constraint.start(BYTES)
    assert session.is_complete(b'"yes"')
    assert not session.is_complete(b'"not"')
    closed = JSONSchema(
        {"type": "object", "patternProperties": {"^(?!no)": {"const": 1}}, "additionalProperties": False}
    ).start(BYTES)
    assert closed.is_complete(b'{"yes": 1}')
    assert not closed.is_prefix(b'{"yes": 2}')
    assert not closed.is_prefix(b'{"not": 1}')


def test_documents_that_are_sampled_are_valid() -> None:
    schema = {**LETTERS, "minItems": 2, "uniqueItems": True}
    model, tokenizer = textguide.load("smollm2-small")
    guidance = AWRS(JSONSchema(schema, whitespace="none"), particles=12)
    out = textguide.generate(model, tokenizer, "A list:", guidance, max_new_tokens=24, seed=1)
    finished = [text for text, done in zip(out.texts, out.finished.tolist(), strict=True) if done]
    assert finished
    judge = jsonschema.Draft202012Validator(schema)
    assert all(judge.is_valid(json.loads(text)) for text in finished)


@pytest.mark.filterwarnings("ignore:schema uses formats")
def test_documents_of_the_benchmarks_schemas_are_judged_as_jsonschema_judges_them() -> None:
    pytest.importorskip("hypothesis_jsonschema")
    data = os.environ.get("TEXTGUIDE_DATA")
    if not data:
        pytest.skip("TEXTGUIDE_DATA is not set: the schemas are not there")
    lines = (Path(data) / "jsonschemabench" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    count = int(os.environ.get("TEXTGUIDE_DOCUMENTS", "0"))
    formats = jsonschema.FormatChecker(["email", "ipv4", "ipv6", "date", "uuid"])
    draw = random.Random(0)
    tried, refused, accepted = 0, [], []
    for number in range(len(lines)) if count else SAMPLED:
        row = json.loads(lines[number])
        text = row["schema"] if isinstance(row["schema"], str) else json.dumps(row["schema"])
        made, session = documents(text, count or 6, 0), JSONSchema(text).start(BYTES)
        kind = jsonschema.validators.validator_for(json.loads(text), jsonschema.Draft202012Validator)
        judge = kind(json.loads(text), format_checker=formats)
        for value in [*made, *(spoilt(one, draw) for one in made or [{}] * 6)]:
            document = written(value)
            valid = judge.is_valid(json.loads(document))
            taken = session.is_prefix(document) and session.is_complete(document)
            tried += 1
            refused += [(row["id"], document)] if valid and not taken else []
            accepted += [(row["id"], document)] if taken and not valid else []
    print(f"{tried} documents; invalid and accepted {len(accepted)}; valid and refused {len(refused)}: {refused[:9]}")
    assert tried > 120
    assert accepted == []
    assert len(refused) <= tried / 200
