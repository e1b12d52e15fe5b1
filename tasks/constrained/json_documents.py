"""A JSON document that a schema allows: schemas from JSONSchemaBench (Geng et al., arXiv 2501.10868)."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

from textguide.constraints import Constraint, JSONSchema
from textguide.constraints.json_schema.constraint import UnknownFormatWarning
from textguide.support.errors import MissingExtraError

from ..loaders import json_lines, local_file
from .base import ConstrainedTask, Item, conversation

FILE = "jsonschemabench/sample.jsonl"
INSTRUCTION = "Write one JSON document that is valid under the JSON schema. Give the document and nothing else."
EXAMPLES = (
    (
        '{"type": "object", "properties": {"city": {"type": "string"}, "population": {"type": "integer"}}, '
        '"required": ["city"]}',
        '{"city": "Lyon", "population": 522250}',
    ),
    (
        '{"type": "array", "items": {"type": "object", "properties": {"id": {"type": "string", "pattern": '
        '"^[a-z]{2}$"}, "on": {"type": "boolean"}}, "required": ["id", "on"]}, "minItems": 2}',
        '[{"id": "fr", "on": true}, {"id": "nl", "on": false}]',
    ),
)


class JSONDocuments(ConstrainedTask):
    """Schemas of ``jsonschemabench/sample.jsonl`` that the engine can hold to.

    Args:
        data: as for every task.
        longest: leave out schemas of more characters than this.
        whitespace: what may stand between the parts of a document, as for :class:`JSONSchema`; one space at most by
            default, as the examples have it.
    """

    name = "json"
    measures = ("valid", "parses")
    max_new_tokens = 192

    def __init__(self, data: str | os.PathLike[str] | None = None, longest: int = 1500, whitespace: str = " ?") -> None:
        super().__init__(data)
        self.longest = longest
        self.whitespace = whitespace

    def items(self) -> Sequence[Item]:
        _jsonschema()  # before documents are written, which takes long
        rows = json_lines(local_file(FILE, self.data), ("id", "schema"))
        found = []
        for row in rows:
            text = json.dumps(row["schema"], ensure_ascii=False)
            if len(text) <= self.longest and usable(self._schema(row["schema"])):
                found.append(Item(row["id"], conversation(INSTRUCTION, EXAMPLES, text), row["schema"]))
        return found

    def constraint(self, item: Item) -> Constraint:
        return self._schema(item.answer)

    def _schema(self, schema: Any) -> JSONSchema:
        with warnings.catch_warnings():
            # Collected schemas have formats of their own making, which no judge knows either.
            warnings.simplefilter("ignore", UnknownFormatWarning)
            return JSONSchema(schema, self.whitespace)

    def check(self, item: Item, text: str) -> dict[str, float]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return {"valid": 0.0, "parses": 0.0}
        return {"valid": float(validates(item.answer, document)), "parses": 1.0}


def usable(constraint: JSONSchema) -> bool:
    """Whether the engine's mask holds to the whole schema, so that the items stay the same."""
    from textguide.constraints import Vocabulary
    from textguide.constraints.engines.llguidance_engine import complaint_about_schema

    if complaint_about_schema(constraint.schema):
        return False
    try:
        constraint.start(Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0])))
    except ValueError:
        return False
    return True


def _jsonschema() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise MissingExtraError("jsonschema", "eval", "checking JSON documents") from error
    return jsonschema


def validates(schema: Any, document: Any) -> bool:
    """Whether a document is valid, by the package ``jsonschema`` under the schema's own draft."""
    jsonschema = _jsonschema()
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(validator(schema).is_valid(document))
