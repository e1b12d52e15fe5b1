"""JSON schemas of Python types and functions, by pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ...support.errors import MissingExtraError


@lru_cache(maxsize=1)
def _generator() -> Any:
    """Decimals are numbers: pydantic also reads texts, but its schema for them allows every text."""
    from pydantic.json_schema import GenerateJsonSchema

    class Numbers(GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> Any:
            both = super().decimal_schema(schema)
            number = dict(both["anyOf"][0]) if "anyOf" in both else {"type": "number"}
            places = schema.get("decimal_places")
            if places is not None and "multipleOf" not in number:
                number["multipleOf"] = 10.0**-places
            return number

    return Numbers


def schemas_of(values: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """JSON schemas of types, or of the arguments of functions.

    Args:
        values: the types or functions by name.

    Returns:
        The schemas by name, and the definitions that they share.

    Raises:
        MissingExtraError: the package ``pydantic`` is not installed.
        ValueError: a type or function has no JSON schema.
    """
    try:
        import pydantic
    except ImportError as error:
        raise MissingExtraError("pydantic", "constraints", "a schema from a Python type") from error
    try:
        inputs = [(name, "validation", pydantic.TypeAdapter(value)) for name, value in values.items()]
        schemas, shared = pydantic.TypeAdapter.json_schemas(inputs, schema_generator=_generator())
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticInvalidForJsonSchema, TypeError) as error:
        shown = ", ".join(map(repr, values.values()))
        raise ValueError(f"schema={shown} has no JSON schema: {' '.join(str(error).split())[:200]}") from None
    return {name: schemas[name, "validation"] for name in values}, shared.get("$defs") or {}
