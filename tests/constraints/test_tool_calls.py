"""Calls of tools as OpenAI describes them."""

from __future__ import annotations

from typing import Any

import pytest

from textguide.constraints import Tags, Vocabulary, from_dict, tool_calls

pytest.importorskip("llguidance")

BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "g"}},
]
F = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
G = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize(
    ("choice", "parallel", "members", "others"),
    [
        ("auto", True, ["", "hello", F, f"first {F} then {G} end"], ["<tool_call>", F.replace("1", '"1"')]),
        ("auto", False, ["hello", f"a {F} b"], [f"{F}{G}"]),
        ("required", True, [F, f"{F}\n{G}", f"{F}{G}{F}"], ["", f"a {F}", f"{F}\n\n{G}"]),
        ("required", False, [F, G], [f"{F}\n{G}"]),
        (NAMED, True, [G], [F, f"{G}\n{G}", ""]),
    ],
    ids=str,
)
def test_choices(choice: Any, parallel: bool, members: list[str], others: list[str]) -> None:
    calls = tool_calls(TOOLS, choice, parallel)
    session = calls.start(BYTES)
    assert all(session.is_complete(text.encode()) for text in members)
    assert not any(session.is_complete(text.encode()) for text in others)
    assert from_dict(calls.to_dict()) == calls
    assert isinstance(calls, Tags)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "tools=.* must be a list of at least one"),
        (([{"name": "f"}],), "each is an object such as"),
        (([TOOLS[0], TOOLS[0]],), "two functions of the same name"),
        (([{"function": {"name": "f", "parameters": 3}}],), "parameters=3 of the tool 'f'"),
        ((TOOLS, "none"), "tool_choice='none' must be 'auto', 'required'"),
        ((TOOLS, {"function": {"name": "h"}}), "tool_choice names 'h', which is not among tools: f, g"),
    ],
)
def test_arguments_that_cannot_work(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tool_calls(*arguments)
