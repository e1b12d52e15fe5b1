"""Documents that SmolLM2-135M writes under AWRS for schemas that no engine masks, and for Python types.

They are judged by ``jsonschema``, and by pydantic.

``python -m tests.constraints.json_documents --json FILE`` writes ten documents for each of twenty schemas and types.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import enum
import json
import time
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pydantic

import textguide
from textguide import AWRS
from textguide.constraints import JSONSchema

WORD = {"type": "string", "pattern": "^[a-z]{1,6}$"}
SMALL = {"type": "integer", "minimum": 0, "maximum": 99}
PAIR = {"type": "object", "properties": {"a": SMALL, "b": WORD}, "required": ["a", "b"], "additionalProperties": False}
SCHEMAS: dict[str, dict[str, Any]] = {
    "any order": PAIR,
    "minProperties": {"type": "object", "minProperties": 2, "maxProperties": 3, "additionalProperties": SMALL},
    "uniqueItems": {"type": "array", "items": SMALL, "uniqueItems": True, "minItems": 3, "maxItems": 5},
    "contains": {"type": "array", "items": SMALL, "contains": {"minimum": 50}, "minContains": 1, "maxItems": 4},
    "if": {**PAIR, "if": {"properties": {"a": {"maximum": 9}}}, "then": {"properties": {"b": {"maxLength": 3}}}},
    "oneOf": {"oneOf": [{"type": "integer", "multipleOf": 2}, {"type": "integer", "minimum": 10}, WORD]},
    "anyOf": {"anyOf": [PAIR, {"type": "array", "items": SMALL, "maxItems": 2}]},
    "not": {"type": "object", "properties": {"n": {**SMALL, "not": {"const": 1}}}, "required": ["n"],
            "maxProperties": 1},
    "dependentSchemas": {**PAIR, "required": [], "minProperties": 1, "dependentSchemas": {"a": {"required": ["b"]}}},
    "dependentRequired": {**PAIR, "required": [], "minProperties": 1, "dependentRequired": {"b": ["a"]}},
    "dependencies": {**PAIR, "required": [], "minProperties": 1, "dependencies": {"b": ["a"]}},
    "unevaluatedProperties": {"allOf": [{"properties": {"x": SMALL}, "required": ["x"]}], "properties": {"y": WORD},
                              "type": "object", "unevaluatedProperties": False},
    "patternProperties": {"type": "object", "patternProperties": {"^a": SMALL, "b$": {"multipleOf": 5}},
                          "minProperties": 1, "maxProperties": 2, "additionalProperties": False},
    "propertyNames": {"type": "object", "propertyNames": {"enum": ["red", "green"]}, "minProperties": 1,
                      "additionalProperties": SMALL},
    "decimal multipleOf": {"type": "object", "properties": {"price": {"type": "number", "minimum": 0, "maximum": 9,
                           "multipleOf": 0.25}}, "required": ["price"], "additionalProperties": False},
    "decimal range": {"type": "number", "minimum": 0.1, "maximum": 0.15, "multipleOf": 0.01},
    "$dynamicRef": {"$id": "https://example.com/tree", "$dynamicAnchor": "node", "type": "object", "properties":
                    {"v": SMALL, "next": {"$dynamicRef": "#node"}}, "required": ["v"], "additionalProperties": False},
    "$ref with siblings": {"$defs": {"n": SMALL}, "type": "array", "minItems": 2, "maxItems": 3,
                           "items": {"$ref": "#/$defs/n", "minimum": 20}},
    "format date": {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"],
                    "additionalProperties": False},
    "format email": {"type": "array", "items": {"type": "string", "format": "email", "maxLength": 20}, "minItems": 1,
                     "maxItems": 1},
}  # fmt: skip


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    GREEN = "green"


class Point(pydantic.BaseModel):
    """Constrained numbers, no other properties."""

    model_config = pydantic.ConfigDict(extra="forbid")
    x: Annotated[int, pydantic.Field(ge=0, lt=10)]
    y: Annotated[int, pydantic.Field(multiple_of=5, ge=0, le=50)]


class Circle(pydantic.BaseModel):
    """One kind of a union."""

    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["circle"]
    radius: Annotated[int, pydantic.Field(ge=1, le=9)]


class Square(pydantic.BaseModel):
    """The other kind."""

    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["square"]
    corner: Point


class Shape(pydantic.BaseModel):
    """A union that a field decides."""

    model_config = pydantic.ConfigDict(extra="forbid")
    shape: Annotated[Circle | Square, pydantic.Field(discriminator="kind")]


class Order(pydantic.BaseModel):
    """Optional and nested values."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: Annotated[str, pydantic.Field(min_length=1, max_length=6, pattern="^[a-z]+$")]
    colour: Colour | None = None
    points: Annotated[list[Point], pydantic.Field(min_length=1, max_length=2)]


SHORT = Annotated[str, pydantic.Field(max_length=4, pattern="^[a-z]*$")]
TYPES: dict[str, Any] = {
    "constrained numbers": Point,
    "Enum": Colour,
    "Literal": Literal["yes", "no", 3],
    "union by a field": Shape,
    "nested, optional": Order,
    "list of models": Annotated[list[Point], pydantic.Field(min_length=1, max_length=2)],
    "set": Annotated[set[Annotated[int, pydantic.Field(ge=0, le=20)]], pydantic.Field(min_length=2, max_length=4)],
    "dict": Annotated[dict[SHORT, bool], pydantic.Field(min_length=1, max_length=2)],
    "dict of choices": dict[Literal["a", "b"], Annotated[int, pydantic.Field(ge=0, le=9)]],
    "tuple": tuple[bool, Annotated[int, pydantic.Field(ge=0, le=99)], Literal["end"]],
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "UUID": uuid.UUID,
    "Decimal": Annotated[decimal.Decimal, pydantic.Field(ge=0, le=9, decimal_places=2)],
    "positive float": Annotated[float, pydantic.Field(gt=0, lt=1)],
    "bool or None": bool | None,
    "union of types": Annotated[int, pydantic.Field(ge=10, le=99)] | SHORT,
    "list of literals": Annotated[list[Literal["x", "y"]], pydantic.Field(min_length=2, max_length=3)],
    "frozenset of choices": Annotated[frozenset[Literal["a", "b", "c"]], pydantic.Field(min_length=2)],
}


def documents(model: Any, tokenizer: Any, schema: dict[str, Any], count: int) -> tuple[list[str], int]:
    """``count`` finished documents, and the number of texts that were started for them."""
    guidance = AWRS(JSONSchema(schema, whitespace="none"), particles=count)
    found: list[str] = []
    started = 0
    for seed in range(6):
        prompt = f"Here is a short JSON document for the schema {json.dumps(schema)}:\n"
        out = textguide.generate(model, tokenizer, prompt, guidance, max_new_tokens=40, seed=seed, temperature=0.8)
        started += count
        assert out.finished is not None
        found += [text for text, is_done in zip(out.texts, out.finished.tolist(), strict=True) if is_done]
        if len(found) >= count:
            break
    return found[:count], started


def is_valid(schema: dict[str, Any], text: str) -> bool:
    """Whether ``jsonschema`` accepts a document, whose keys must be unique.

    For a schema without ``$schema``, ``dependencies`` has the meaning of draft 7.
    """
    kind = jsonschema.Draft7Validator if "dependencies" in schema else jsonschema.Draft202012Validator
    value = json.loads(text, object_pairs_hook=_unique)
    return bool(kind(schema, format_checker=kind.FORMAT_CHECKER).is_valid(value))


def is_value(kind: Any, text: str) -> bool:
    """Whether pydantic reads a document as a value of a type."""
    try:
        pydantic.TypeAdapter(kind).validate_json(text)
    except pydantic.ValidationError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def main() -> None:
    """Write the documents and print how many are valid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    arguments = parser.parse_args()
    model, tokenizer = textguide.load("smollm2")
    rows: dict[str, Any] = {}
    schemas = SCHEMAS | {name: json.loads(JSONSchema(kind).schema) for name, kind in TYPES.items()}
    for name, schema in schemas.items():
        begun = time.monotonic()
        texts, started = documents(model, tokenizer, schema, arguments.count)
        valid = sum(is_valid(schema, text) and (name not in TYPES or is_value(TYPES[name], text)) for text in texts)
        seconds = round(time.monotonic() - begun, 1)
        rows[name] = {"finished": len(texts), "started": started, "valid": valid, "seconds": seconds, "texts": texts}
        print(name, {key: value for key, value in rows[name].items() if key != "texts"}, texts[:2], flush=True)
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    total = sum(row["finished"] for row in rows.values())
    print(f"{sum(row['valid'] for row in rows.values())} of {total} finished documents are valid")


if __name__ == "__main__":
    main()
