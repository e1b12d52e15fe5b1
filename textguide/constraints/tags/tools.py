"""Calls of tools in the form that Hermes and Qwen models write: JSON between ``<tool_call>`` and ``</tool_call>``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...support.checks import brief
from ..json_schema import JSONSchema
from .constraint import Tag, Tags

BEGIN = "<tool_call>"
END = "</tool_call>"
CHOICES = ("auto", "required")


def tool_calls(tools: Sequence[Any], tool_choice: Any = "auto", parallel: bool = True, **options: Any) -> Tags:
    """Texts that call tools as OpenAI's ``tools`` and ``tool_choice`` define it, in the form of Hermes and Qwen models.

    A call is ``<tool_call>``, a line with ``{"name": …, "arguments": {…}}``, and ``</tool_call>``.

    Args:
        tools: descriptions of functions, ``{"type": "function", "function": {"name": …, "parameters": SCHEMA}}``.
        tool_choice: ``auto``: free text with any number of calls; ``required``: only calls, at least one; or
            ``{"type": "function", "function": {"name": …}}``: one call of this function.
        parallel: whether there may be several calls.
        **options: of :class:`~textguide.constraints.JSONSchema`, for the arguments.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> AWRS(tool_calls(tools, "required"))
    """
    if not isinstance(tools, Sequence) or not tools:
        raise ValueError(f"tools={brief(tools)} must be a list of at least one function")
    named = [_function(tool) for tool in tools]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"tools contains two functions of the same name, among {', '.join(names)}")
    at_least, at_most = 0, None if parallel else 1
    if tool_choice != "auto":
        at_least = 1
    if tool_choice not in CHOICES:
        wanted = _chosen(tool_choice)
        if wanted not in names:
            raise ValueError(f"tool_choice names {wanted!r}, which is not among tools: {', '.join(names)}")
        named = [(name, schema) for name, schema in named if name == wanted]
        at_most = 1
    tags = []
    for name, schema in named:
        begin = f'{BEGIN}\n{{"name": {json.dumps(name)}, "arguments": '
        tags.append(Tag(begin, JSONSchema(schema, **options), f"}}\n{END}"))
    return Tags(tags, [BEGIN], at_least, at_most, free=tool_choice == "auto")


def _function(tool: Any) -> tuple[str, dict[str, Any]]:
    """The name of a function and the schema of its arguments."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(
            f"tools contains {brief(tool)}; each is an object such as "
            '{"type": "function", "function": {"name": "f", "parameters": {}}}'
        )
    schema = function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, Mapping):
        raise ValueError(f"parameters={brief(schema)} of the tool {function['name']!r} must be a JSON schema")
    return function["name"], {"type": "object", **schema}


def _chosen(tool_choice: Any) -> str:
    """The function that ``tool_choice`` names."""
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(
            f"tool_choice={brief(tool_choice)} must be 'auto', 'required', or an object that names a function; for "
            "'none', leave the constraint out"
        )
    return str(function["name"])
