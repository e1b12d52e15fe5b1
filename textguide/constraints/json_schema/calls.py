"""Calls of Python functions as JSON documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .constraint import JSONSchema
from .python_types import schemas_of


def Call(*functions: Callable[..., Any] | Sequence[Callable[..., Any]], whitespace: str = "flexible") -> JSONSchema:
    """Calls of Python functions: ``{"name": …, "arguments": {…}}``, with arguments that fit the signatures.

    Args:
        *functions: functions with annotations, from which pydantic makes the schema of the arguments; or one list of
            them.
        whitespace: as for :class:`JSONSchema`.

    Returns:
        A constraint whose texts call one of the functions.

    Raises:
        MissingExtraError: the package ``pydantic`` is not installed.
        ValueError: there are no functions, two have the same name, or the arguments of one have no JSON form.

    Example:
        >>> def weather(city: str, days: int = 3) -> str: ...
        >>> AWRS(Call(weather), after="<tool_call>")
    """
    if len(functions) == 1 and isinstance(functions[0], Sequence):
        functions = tuple(functions[0])
    names = [getattr(function, "__name__", repr(function)) for function in functions]
    if not functions or len(set(names)) < len(names):
        raise ValueError(f"functions={names} must be functions of different names, at least one")
    arguments, definitions = schemas_of(dict(zip(names, functions, strict=True)))
    calls: list[dict[str, Any]] = []
    for name in names:
        if arguments[name].get("type") != "object":
            raise ValueError(f"functions contains {name}, whose arguments have no names; use named parameters")
        call = {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": arguments[name]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        calls.append(call)
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return JSONSchema({**schema, "$defs": definitions} if definitions else schema, whitespace=whitespace)
