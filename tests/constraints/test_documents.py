"""JSON schemas and grammars: masks against enumerated documents, refusals, the 244 schemas of the benchmark."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from textguide.constraints import Call, Grammar, JSONSchema, UnsatisfiableError, Vocabulary, from_dict
from textguide.constraints.grammars.rules import unproductive

from .walks import BYTES, SMALL, compare

pytest.importorskip("llguidance")

KEYS: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": [True, None, "b"]}, "b": {"type": "array", "items": {"const": 1}, "maxItems": 2}},
    "required": ["a"],
    "additionalProperties": False,
}


def keys_documents() -> set[bytes]:
    """Every compact document of ``KEYS``, by hand."""
    firsts, seconds = ['{"a":true', '{"a":null', '{"a":"b"'], ["", ',"b":[]', ',"b":[1]', ',"b":[1,1]']
    return {f"{first}{second}}}".encode() for first, second in product(firsts, seconds)}


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
@pytest.mark.parametrize("seed", range(8))
def test_masks_of_a_finite_schema(seed: int, engine: str) -> None:
    pytest.importorskip(engine)
    documents = keys_documents()
    session = JSONSchema(KEYS, whitespace="none", engine=engine, order="schema").start(SMALL)
    compare(
        session, SMALL, lambda t: any(d.startswith(t) for d in documents), documents.__contains__, steps=20, seed=seed
    )


def expression(depth: int) -> set[str]:
    """Every text of ``x: "a" | "(" x "-" x ")"`` up to a depth."""
    if depth == 0:
        return {"a"}
    inner = expression(depth - 1)
    return {"a"} | {f"({left}-{right})" for left, right in product(inner, inner)}


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
@pytest.mark.parametrize("seed", range(6))
def test_masks_of_a_grammar_that_is_not_regular(seed: int, engine: str) -> None:
    pytest.importorskip(engine)
    tokens = (b"", b"a", b"(", b")", b"-", b"(a", b"a-", b"-(", b"a)", b"))", b"((", b"a-a)", b"b")
    vocabulary = Vocabulary(tokens, frozenset([0]))
    members = {text.encode() for text in expression(3)}

    def is_prefix(text: bytes) -> bool:  # by counting, for texts deeper than the enumeration
        return any(member.startswith(text) for member in members)

    session = Grammar('start: x\nx: "a" | "(" x "-" x ")"', engine=engine).start(vocabulary)
    # Three steps write at most two opening brackets more than the enumeration can close.
    compare(session, vocabulary, is_prefix, members.__contains__, steps=1, seed=seed)
    for member in sorted(members)[:40]:
        assert session.is_complete(member)
        assert session.is_prefix(member[:-1])
        assert not session.is_prefix(member + b")")
        assert session.is_complete(member[:-1]) == (member[:-1] in members)


@pytest.mark.parametrize(
    ("whitespace", "allowed", "refused"),
    [
        (
            "flexible",
            ['{"a":true}', '{"a": true}', '{\n  "a": true\n}', '{\r\n\t"a": true\r\n}', '{ "a" : true }'],
            ['{"a":  true}', '{\n\n"a":true}', '{\n                     "a":true}'],
        ),
        ("any", ['{"a":true}', '{ "a" :\n true }'], ['{"a":true} ', ' {"a":true}']),
        ("none", ['{"a":true}'], ['{"a": true}']),
        (" ?", ['{"a":true}', '{"a": true}'], ['{"a":  true}', '{"a":\ntrue}']),
    ],
)
def test_whitespace(whitespace: str, allowed: list[str], refused: list[str]) -> None:
    session = JSONSchema(KEYS, whitespace=whitespace).start(BYTES)
    assert [session.is_complete(text.encode()) for text in allowed] == [True] * len(allowed)
    assert [session.is_complete(text.encode()) for text in refused] == [False] * len(refused)


def test_every_way_in_which_json_is_written_is_flexible() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"}}}}
    session = JSONSchema(schema).start(BYTES)
    for indent in (None, 0, 1, 2, 4, "\t"):
        assert session.is_complete(json.dumps({"a": [{"b": [1, 2]}, {}]}, indent=indent).encode()), indent
    assert JSONSchema(schema, "compact") == JSONSchema(schema, "none")


def test_what_whitespace_costs() -> None:
    """Against masks counted by hand: with every token as likely, the cost is the log of a ratio of counts."""
    constraint = JSONSchema({"const": [1, 1]}, whitespace="none", order="schema")
    text = b"[1,1]"
    log_probs = torch.full((len(text) + 1, BYTES.size), -math.log(BYTES.size))
    costs = constraint.whitespace_cost(BYTES, [*(byte + 1 for byte in text), 0], log_probs)
    # Behind a bracket, a comma and a number JSON allows four more bytes, behind the last bracket none.
    wanted = [0.0, math.log(1 / 5), math.log(1 / 5), math.log(1 / 5), math.log(1 / 5), 0.0]
    assert costs.tolist() == pytest.approx(wanted, abs=1e-6)
    free = replace(constraint, whitespace="any").whitespace_cost(BYTES, [byte + 1 for byte in text], log_probs[:-1])
    assert free.tolist() == [0.0] * len(text)
    with pytest.raises(ValueError, match="log_probs has the shape"):
        constraint.whitespace_cost(BYTES, [1], log_probs)


def test_strings_are_bounded() -> None:
    schema = {
        "type": "object", "properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"], "pattern": "^x*$"}},
        "additionalProperties": False,
    }  # fmt: skip
    constraint = JSONSchema(schema, longest_string=3)
    assert constraint.held.bounded == ("whitespace", "strings")
    assert JSONSchema(schema, whitespace="any").held.bounded == ()
    session = constraint.start(BYTES)
    assert session.is_complete('{"a": "éé\\n"}'.encode())
    assert not session.is_prefix(b'{"a": "abcd')
    assert session.is_complete(b'{"b": "xxxxx"}')
    with pytest.raises(ValueError, match="longest_string=0 must be"):
        JSONSchema(schema, longest_string=0)


def test_properties_come_in_the_order_of_the_schema() -> None:
    schema = {"type": "object", "properties": {"b": {"const": 1}, "a": {"const": 2}}, "required": ["a", "b"]}
    session = JSONSchema(schema, order="schema").start(BYTES)
    assert session.is_complete(b'{"b":1,"a":2}')
    assert not session.is_complete(b'{"a":2,"b":1}')
    assert session.is_complete(b'{"b":1,"a":2,"more":[null]}')
    session = JSONSchema(schema).start(BYTES)
    assert session.is_complete(b'{"a":2,"more":[null],"b":1}')


def test_characters_split_over_tokens() -> None:
    session = JSONSchema({"enum": ["é", "😀"]}).start(SMALL)
    for token in (b'"', b"\xf0\x9f", b"\x98\x80", b'"'):
        session.advance(SMALL.tokens.index(token))
    assert session.is_complete('"😀"'.encode())


@pytest.mark.parametrize("given", [KEYS, json.dumps(KEYS), json.dumps(KEYS, indent=2), True, "true"])
def test_forms_of_a_schema(given: Any) -> None:
    constraint = JSONSchema(given)
    assert json.loads(constraint.schema) == (KEYS if given not in (True, "true") else True)
    assert hash(constraint) == hash(JSONSchema(given))
    assert JSONSchema(constraint.schema) == constraint


def test_schemas_and_grammars_from_files(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(KEYS), encoding="utf-8-sig")
    assert JSONSchema(tmp_path / "schema.json") == JSONSchema(str(tmp_path / "schema.json")) == JSONSchema(KEYS)
    (tmp_path / "g.lark").write_text('start: "a"')
    assert Grammar(tmp_path / "g.lark") == Grammar(str(tmp_path / "g.lark")) == Grammar('start: "a"')
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"schema='.*bad.json' is not UTF-8"):
        JSONSchema(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"schema='.*none.json' cannot be read \(No such file"):
        JSONSchema(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"grammar='.*none.lark' cannot be read"):
        Grammar(str(tmp_path / "none.lark"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1]", "must be a JSON object"),
        (3, "must be a JSON object"),
        ({"a": {1, 2}}, "no JSON form"),
        ({"a": float("nan")}, "no JSON form"),
    ],
)
def test_what_is_no_schema(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"schema=.*{message}"):
        JSONSchema(schema)


@pytest.mark.parametrize(
    ("values", "name"),
    [({"whitespace": 3}, "whitespace=3"), ({"lenient": 1}, "lenient=1"), ({"engine": "x"}, "engine='x'"),
     ({"engine": "xgrammar", "lenient": True}, "lenient")],
)  # fmt: skip
def test_wrong_fields(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        JSONSchema(KEYS, **values)


@pytest.mark.parametrize(
    ("schema", "construct"),
    [
        ({"type": "string", "pattern": "(a"}, r"pattern='\(a' cannot be read"),
    ],
)
def test_refusals_name_the_construct(schema: Any, construct: str) -> None:
    with pytest.raises(ValueError, match=construct) as caught:
        JSONSchema(schema).start(BYTES)
    assert str(caught.value).startswith("schema=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "file:///etc/passwd"},
        {"$ref": "https://example.com/x"},
        {"$ref": "#/nowhere"},
        {"$ref": "nowhere"},
        {"$ref": ""},
        {"$ref": 3},
        {"properties": {"a": {"items": {"$ref": "#/$defs/Citty"}}}, "$defs": {"City": {"type": "string"}}},
        {"$ref": "#/parts/a", "parts": {"a": {"$ref": "#/parts/b"}}},  # reached through another reference only
        {"$ref": "#/enum/0", "enum": ["a"]},
        {"$ref": "#/$defs/a%20b", "$defs": {"a%20b": {"type": "integer"}}},
        {"anyOf": [{"type": "null"}, {"$dynamicRef": "#node"}]},
    ],
)
def test_references_that_lead_nowhere_are_refused(schema: Any, engine: str) -> None:
    """An engine would allow any document in their place."""
    reasons = r"(\$ref|\$dynamicRef) .* leads nowhere .* nothing is fetched|requires itself|3 is not of type 'string'"
    with pytest.raises(ValueError, match=rf"^schema=.*({reasons})"):
        JSONSchema(schema, engine=engine)


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "integer"}}},
        {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "integer"}}},
        {"$ref": "#/$defs/a%2520b", "$defs": {"a%20b": {"type": "integer"}}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"$ref": "#/$defs/c~0d"}, "c~d": {"type": "integer"}}},
        {"$ref": "#one", "$defs": {"a": {"$anchor": "one", "type": "integer"}}},
        {"$id": "https://example.com/top", "$ref": "part", "$defs": {"a": {"$id": "part", "type": "integer"}}},
        {"$ref": "#/parts/a", "parts": {"a": {"type": "integer"}}},
    ],
)
def test_references_inside_a_schema_hold(schema: Any, engine: str) -> None:
    session = JSONSchema(schema, engine=engine).start(BYTES)
    assert session.is_complete(b"12")
    assert not session.is_prefix(b'"')


def test_data_that_looks_like_a_reference_is_none() -> None:
    schema = {"properties": {"$ref": {"const": {"$ref": "file:///x"}}}, "required": ["$ref"], "type": "object"}
    assert JSONSchema(schema).start(BYTES).is_complete(b'{"$ref": {"$ref": "file:///x"}}')


def test_lenient_leaves_out_what_cannot_be_held_to() -> None:
    session = JSONSchema({"type": "string", "format": "nothing"}, lenient=True).start(BYTES)
    assert session.is_complete(b'"a"')


@pytest.mark.parametrize(
    "schema",
    [False, {"type": "string", "enum": [1]}, {"allOf": [{"type": "string"}, {"type": "number"}]},
     {"type": "integer", "minimum": 3, "maximum": 1}, {"type": "array", "items": False, "minItems": 1}],
)  # fmt: skip
def test_what_nothing_satisfies_ends_at_once(schema: Any) -> None:
    with pytest.raises(UnsatisfiableError, match=r"schema=.* nothing satisfies it"):
        JSONSchema(schema).start(BYTES)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('start: "a', 'grammar=start: "a cannot be used'),
        ("start: missing", "missing"),
        ('other: "a"', "start"),
        ("start: /a(?=b)/", "look-around"),
        ('start: "a" <|call|>', r"<\|call\|>"),
    ],
)
def test_grammars_that_are_refused(grammar: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar(grammar).start(BYTES)


def test_terminals_are_greedy() -> None:
    """What the documentation warns of."""
    assert not Grammar('start: /a+/ "a"').start(BYTES).is_complete(b"aa")
    assert Grammar("start: /a+a/").start(BYTES).is_complete(b"aa")


@pytest.mark.parametrize(
    ("grammar", "endless"),
    [
        ('start: a\na: "x" a', ["start", "a"]),
        ('start: "y" | a\na: "x" a', ["a"]),
        ('start: "y" | a\n\na: "x" b // b: "z"\nb: a\n | a "z"', ["a", "b"]),
        ('start: a?\na: "x" a', ["a"]),
        ('start: a\na: "x" a | "y"', []),
        ('start: a\na: "x"\n | "y" a', []),
        ('start: a\na: "x" a?', []),
        ('start: a\na: "x" [a]', []),
        ('start: a\na: "x" (a "b")*', []),
        ('start: a\na: "x" a{0,3}', []),
        ('start: a\na: "x" a{2}', ["start", "a"]),
        ('start: a\na: "x" a~0..2', []),
        ("start: a\na: /x:|y/ -> name | a", []),
        ('start: a\n?a: (a | "y") "z"', []),
        ('start: %json {"a": "}", "b": {}} a\na: "x"', []),
        ('%import common.NUMBER\n%ignore " "\nstart: NUMBER', []),
        ('start: A\nA: "x" | "y" # a: a', []),
        ("start[lazy]: /.*x/", []),
    ],
)
def test_rules_without_a_text_are_found(grammar: str, endless: list[str]) -> None:
    assert unproductive(grammar) == endless
    if endless:
        with pytest.raises(ValueError, match=f"no text ends the rule {endless[0]}"):
            Grammar(grammar)
    else:
        assert Grammar(grammar).start(BYTES).is_prefix(b"")


def test_grammars_too_large_for_the_engine_say_so() -> None:
    with pytest.raises(ValueError, match="grammar="):
        Grammar("start: " + "(" * 400 + '"a"' + ")?{50}" * 400).start(BYTES)


@pytest.mark.filterwarnings("ignore:schema uses formats")
def test_the_schemas_of_the_benchmark_load() -> None:
    data = os.environ.get("TEXTGUIDE_DATA")
    if not data:
        pytest.skip("TEXTGUIDE_DATA is not set: the schemas are not there")
    lines = (Path(data) / "jsonschemabench" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    checked = []
    for line in lines:
        constraint = JSONSchema(json.loads(line)["schema"])
        assert constraint.start(BYTES).is_prefix(b"")
        checked += [constraint.held.checked] if constraint.held.checked else []
    assert len(lines) == 244
    assert {name for names in checked for name in names} == {
        "oneOf", "dependencies", "format", "not", "patternProperties", "then"
    }  # fmt: skip


def test_schemas_of_types() -> None:
    pytest.importorskip("pydantic")
    from dataclasses import make_dataclass

    person = make_dataclass("Person", [("name", str), ("age", int, 3)])
    session = JSONSchema(person).start(BYTES)
    assert session.is_complete(b'{"name": "Ada", "age": 36}')
    assert session.is_complete(b'{"name": "Ada"}')
    assert not session.is_prefix(b'{"name": 1')
    assert JSONSchema(list[int]).start(BYTES).is_complete(b"[1, 2]")
    with pytest.raises(ValueError, match=r"schema=.* has no JSON schema"):
        JSONSchema(type("Odd", (), {}))


def weather(city: str, days: int = 3) -> None:
    """A tool."""


def test_calls_of_functions() -> None:
    pytest.importorskip("pydantic")
    from dataclasses import make_dataclass

    place = make_dataclass("Place", [("x", int), ("y", int)])

    def move(to: Any, fast: bool = False) -> None: ...

    move.__annotations__["to"] = place
    session = Call(weather, move).start(BYTES)
    assert session.is_complete(b'{"name": "weather", "arguments": {"city": "Paris", "days": 2}}')
    assert session.is_complete(b'{"name": "move", "arguments": {"to": {"x": 1, "y": 2}}}')
    assert session.is_prefix(b'{"arguments": {"days": 2, "city": "Rome"}, "name": "weather"')
    assert not session.is_prefix(b'{"arguments": {"days": 2, "city": "Rome"}, "name": "move"')
    assert not session.is_prefix(b'{"name": "weather", "arguments": {"to"')
    assert not session.is_prefix(b'{"name": "move", "arguments": {"city"')
    assert not session.is_prefix(b'{"name": "stop"')
    assert from_dict(Call(weather).to_dict()) == Call(weather)
    with pytest.raises(ValueError, match="must be functions of different names"):
        Call(weather, weather)
    with pytest.raises(ValueError, match="whose arguments have no names"):
        Call(lambda *values: None)
