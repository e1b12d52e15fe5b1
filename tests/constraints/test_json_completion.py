"""Guesses that complete the beginning of a document: the constraint takes them."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from textguide.constraints import After, AnyOf, JSONSchema, Regex, Vocabulary
from textguide.constraints.json_schema.completion import Completer

BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))
EXPRESSION = {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "object", "required": ["not"],
              "properties": {"not": {"$ref": "#/$defs/e"}}, "additionalProperties": False},
              {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/e"}}]}  # fmt: skip
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3},
        "nick": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "key": {"type": "string", "pattern": "^[0-9]+#[A-Z]{2}$"},
        "stamp": {"type": "string", "pattern": r"\d{2}:\d{2}"},
        "size": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 12, "multipleOf": 5},
        "tags": {"type": "array", "items": {"const": "t"}, "minItems": 2},
        "shape": {
            "oneOf": [
                {
                    "type": "object",
                    "required": ["kind", "r"],
                    "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}},
                },
                {
                    "type": "object",
                    "required": ["kind", "a"],
                    "properties": {"kind": {"const": "square"}, "a": {"type": "number"}},
                },
            ]
        },
        "flag": {"type": "boolean"},
    },
    "required": ["name", "born", "key", "stamp", "size", "count", "tags", "shape", "flag"],
    "additionalProperties": False,
}
SHORTEST = (
    b'{"name":"aaa","born":"1000-01-01","key":"0#AA","stamp":"00:00","size":"small","count":15,"tags":["t","t"],'
    b'"shape":{"kind":"circle","r":0},"flag":true}'
)


@pytest.mark.parametrize(
    ("schema", "text", "rest"),
    [
        ({"type": "string", "pattern": "^[0-9]+#[A-Za-z0-9]+"}, b'"2022', b'#0"'),
        ({"type": "string", "pattern": "a{3}"}, b'"xa', b'aa"'),
        ({"type": "string", "pattern": "é$"}, b'"', '"é"'.encode()[1:]),
        ({"type": "string", "minLength": 2}, b'"\\', b'na"'),
        ({"type": "string"}, b'"\\u00', b'00"'),
        ({"type": "string"}, b'"done"', b""),
        ({"type": "integer", "minimum": 250, "maximum": 260}, b"2", b"50"),
        ({"type": "number"}, b"-", b"0"),
        ({"type": "number"}, b"1.", b"0"),
        ({"type": "number"}, b"1e", b"0"),
        ({"type": ["boolean", "null"]}, b"f", b"alse"),
        ({"enum": [[1, 2], "two", 300]}, b"", b"300"),
        ({"enum": ["apple", "apricot"]}, b'"apr', b'icot"'),
        ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "minItems": 2}, b"[", b'"",null]'),
        ({"type": "object", "required": ["b"]}, b"{", b'"b":0}'),
        ({"type": "object", "properties": {"a": {}, "b": {}}}, b'{"a":1,', b'"b":0}'),
        ({"type": "object", "patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False,
          "required": ["x1"]}, b"{", b'"x1":null}'),
        ({"allOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"required": ["a"]}]}, b"", b'{"a":1}'),
        ({"$defs": {"e": EXPRESSION}, "$ref": "#/$defs/e"}, b'{"not":[3,', b"3]}"),
        ({"$defs": {"a/b": {"const": 7}}, "$ref": "#/$defs/a~1b"}, b"", b"7"),
        (True, b'{"a": [1, {"b": "c', b'"}]}'),
    ],
)  # fmt: skip
def test_short_ways_to_complete(schema: Any, text: bytes, rest: bytes) -> None:
    assert Completer(schema).completed(text) == rest
    if schema is not True:
        assert JSONSchema(schema).start(BYTES).is_complete(text + rest)


def test_every_beginning_of_a_document_is_completed() -> None:
    constraint = JSONSchema(PERSON, "none")
    session = constraint.start(BYTES)
    assert constraint.completion(b"") == SHORTEST
    written = SHORTEST.replace(b"aaa", "Zoë “Q” \\n ".encode()).replace(b'"square","a":0', b'"circle","r":-1.5e3')
    for text in (SHORTEST, written):
        for end in range(len(text) + 1):
            try:
                text[:end].decode()
            except UnicodeDecodeError:
                assert constraint.completion(text[:end]) is None
                continue
            guess = constraint.completion(text[:end])
            assert guess is not None, text[:end]
            assert session.is_complete(text[:end] + guess), (text[:end], guess)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (False, b""),
        ({"type": "string"}, b"{"),
        ({"enum": ["a"]}, b'"b'),
        ({"type": "string", "pattern": "^a+$"}, b'"b'),
        ({"$ref": "http://elsewhere"}, b""),
        ({"$ref": "#/nowhere"}, b""),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, b""),
        ({"type": "object", "additionalProperties": False}, b'{"a'),
        ({"type": "object"}, b"{x"),
        ({}, b"\xc3"),
        ({"type": "string", "pattern": "a"}, b'"\\ud800'),
        ({"type": "string", "pattern": "a"}, b'"\\q"'),
        ({"allOf": [True], "$ref": "#/allOf/7"}, b""),
        ({}, b"[}"),
    ],
)
def test_no_guess(schema: Any, text: bytes) -> None:
    assert Completer(schema).completed(text) is None


def test_parts_that_need_each_other_take_no_time() -> None:
    names = [f"e{n}" for n in range(12)]
    parts: list[Any] = [
        {"type": "object", "required": [name], "properties": {name: {"$ref": f"#/$defs/{name}"}}} for name in names
    ]
    schema = {"$defs": {name: {"anyOf": [*parts, {"type": "boolean"}]} for name in names}, "$ref": "#/$defs/e0"}
    guess = Completer(schema).completed(b'{"e3":{"e5":')
    jsonschema.validate(json.loads(b'{"e3":{"e5":' + (guess or b"")), schema)
    endless = {"$defs": {name: {"anyOf": parts} for name in names}, "$ref": "#/$defs/e0"}
    assert Completer(endless).completed(b"") is None


def test_a_pattern_that_would_be_searched_for_ever_takes_no_time() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}, "required": ["a"]}
    completer = Completer({**schema, "patternProperties": {"^(b+)+$": {"type": "null"}}})
    assert completer.completed(b'{"a":"' + b"a" * 5000 + b'"') == b"}"
    assert completer.completed(b'{"a":"' + b"a" * 5000 + b'!"') is None
    assert completer.completed(b'{"' + b"b" * 5000 + b'":') == b'null,"a":"a"}'


def test_no_text_breaks_a_guess() -> None:
    completer, draw = Completer(PERSON), random.Random(0)
    for _ in range(400):
        text = list(SHORTEST[: draw.randrange(len(SHORTEST))].decode())
        for _ in range(draw.randrange(6)):
            text.insert(draw.randrange(len(text) + 1), draw.choice('{}[]",:\\u019-+.eE \té'))
        guess = completer.completed("".join(text).encode())
        assert guess is None or isinstance(guess, bytes)


def test_schemas_in_other_constraints() -> None:
    thought = After("</think>", JSONSchema({"type": "boolean"}))
    assert thought.completion(b"I think") == b"</think>true"
    assert thought.completion(b"I think</think>f") == b"alse"
    assert After("regex:x+", JSONSchema({"type": "boolean"})).completion(b"xf") is None
    assert After("x", Regex("a")).completion(b"x") is None
    either = AnyOf(JSONSchema({"type": "boolean"}), JSONSchema({"type": "string", "minLength": 1}), Regex("x"))
    assert either.completion(b"") == b'"a"'
    assert either.completion(b"t") == b"rue"
    assert either.completion(b"x") is None


def test_other_constraints_guess_nothing() -> None:
    assert Regex("a+").completion(b"a") is None
    assert json.loads(JSONSchema({"type": "null"}).completion(b"") or b"0") is None
