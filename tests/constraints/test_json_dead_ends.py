"""Beginnings of JSON documents: each one that is allowed can be completed, with escapes too."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

from textguide.constraints import JSONSchema, Vocabulary
from textguide.constraints.json_schema.escapes import characters_after, escaped

from .json_documents import SCHEMAS

BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))
CLOSED = {
    "type": "object",
    "properties": {"né": {"type": "null"}, 'a"b': {"type": "null"}, "\U0001d54f": {"type": "null"}},
    "patternProperties": {"^[ß-ã]x$": {"type": "null"}},
    "required": ["né"],
    "additionalProperties": False,
}
VALUES = {"enum": ["ü", "\U0001f600!", "ab", "\t"]}
PATTERN = {"type": "string", "pattern": "^[\U0001f600-\U0001f64f]é?$", "maxLength": 2}


def written(code: int) -> str:
    return json.dumps(chr(code))[1:-1]


@pytest.mark.parametrize(
    "text", ["\\u00", "\\u0", "\\u2", "\\uD7f", "\\udb", "\\ud83d", "\\ud83d\\", "\\ud83d\\u", "\\ud83d\\ude4", "\\uff"]
)
def test_the_characters_of_an_unfinished_escape_are_those_that_json_reads(text: str) -> None:
    expected = set()
    for code in [*range(0xD800), *range(0xE000, 0x110000)]:
        units = chr(code).encode("utf-16-be").hex()
        spelled = "".join("\\u" + units[start : start + 4] for start in range(0, len(units), 4))
        if spelled.startswith(text.lower()):
            expected.add(code)
    assert {code for low, high in characters_after(text.encode()) for code in range(low, high + 1)} == expected
    assert escaped(text.encode()) == ""


@pytest.mark.parametrize("schema", [CLOSED, VALUES, PATTERN], ids=["names", "values", "pattern"])
def test_every_beginning_can_be_completed(schema: Any) -> None:
    """Random walks that prefer escapes never reach a text after which nothing is allowed."""
    spelled = 0
    for seed in range(25):
        rng = random.Random(seed)
        session = JSONSchema(schema, whitespace="").start(BYTES)
        for _ in range(400):
            mask = session.mask()
            assert mask is not None
            assert mask.any(), session.text
            tokens = [token for token in mask.nonzero().flatten().tolist() if token]
            if mask[0]:
                break
            escapes = [token for token in tokens if token == ord("\\") + 1]
            session.advance(rng.choice(escapes or tokens))
        else:
            pytest.fail(f"{session.text!r} did not end")
        spelled += b"\\u" in session.text
        json.loads(session.text)
    assert spelled > 5


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (b'{"n\\u00e9', True),
        (b'{"n\\u00e', True),
        (b'{"n\\u00f', False),
        (b'{"a\\', True),
        (b'{"a\\"b":', True),
        (b'{"a\\u0022b":', True),
        (b'{"a\\u0023', False),
        (b'{"n\\ud', False),
        (b'{"\\ud835\\udd4f":', True),
        (b'{"\\ud835\\udd5', False),
        (b'{"\\u00e2x":', True),
        (b'{"\\u006e', False),  # as it is: n
    ],
)
def test_names_with_escapes(text: bytes, allowed: bool) -> None:
    assert JSONSchema(CLOSED).start(BYTES).is_prefix(text) is allowed


NO_DEAD_ENDS = ["any order", "not", "uniqueItems", "propertyNames", "format email", "format date", "decimal range"]


@pytest.mark.parametrize("name", NO_DEAD_ENDS)
def test_walks_end(name: str) -> None:
    """Names, numbers and formats that would leave nothing are not begun."""
    finished = 0
    for seed in range(12):
        rng = random.Random(seed)
        session = JSONSchema(SCHEMAS[name], whitespace="none").start(BYTES)
        for _ in range(120):
            mask = session.mask()
            assert mask is not None
            assert mask.any(), session.text
            tokens = [token for token in mask.nonzero().flatten().tolist() if token]
            if mask[0]:
                finished += 1
                break
            usual = [token for token in tokens if chr(token - 1) in '"}],:0123459abcdnx']
            session.advance(rng.choice(usual if usual and rng.random() < 0.9 else tokens))
    assert finished > 6


def test_needless_escapes_are_allowed_in_values_and_not_in_names() -> None:
    session = JSONSchema({"type": "object"}).start(BYTES)
    assert session.is_complete(b'{"a":"\\u0061"}')
    assert not session.is_prefix(b'{"\\u0061')
    assert session.is_complete(b'{"\\u00fc\\n\\/":1}')
    listed = JSONSchema({"enum": ["end", "é"]}).start(BYTES)
    assert not listed.is_prefix(b'"\\u0065')
    assert listed.is_complete(b'"\\u00e9"')
