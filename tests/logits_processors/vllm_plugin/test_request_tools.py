"""OpenAI's tools in requests as a constraint."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from textguide.constraints import Grammar, JSONSchema, Regex, Tag, Tags, from_dict
from textguide.guidance import AWRS
from textguide.logits_processors.vllm_plugin.constraint_arguments import awrs_as_json, awrs_of, short_arguments
from textguide.logits_processors.vllm_plugin.request_fields import gather_tools

pytest.importorskip("xgrammar")

TOOLS = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}]
CHAT: dict[str, Any] = {"messages": [], "tools": TOOLS, "awrs_tools": True}


def gathered(**fields: Any) -> dict[str, Any]:
    body = copy.deepcopy({**CHAT, **fields})
    gather_tools(body)
    return body


def test_tools_become_tags_and_vllm_makes_no_mask() -> None:
    body = gathered(tool_choice="required", parallel_tool_calls=False)
    assert body["tool_choice"] == "auto"
    assert "parallel_tool_calls" not in body
    assert body["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    tags = from_dict(body["awrs_tags"])
    assert isinstance(tags, Tags)
    assert (tags.at_least, tags.at_most, tags.free) == (1, 1, False)
    guidance = awrs_of({"awrs_tags": body["awrs_tags"]}, {})
    assert guidance is not None
    assert from_dict(dict(guidance.constraint)) == tags
    assert short_arguments(guidance)["awrs_tags"] == json.dumps(body["awrs_tags"])


@pytest.mark.parametrize("fields", [{"awrs_tools": False}, {"awrs_tools": None}, {"tool_choice": "none"}], ids=str)
def test_without_tags(fields: dict[str, Any]) -> None:
    body = gathered(**fields)
    assert "awrs_tags" not in body
    assert "awrs_tools" not in body
    assert body["tools"] == TOOLS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"awrs_tools": "yes"}, "awrs_tools='yes' must be true or false"),
        ({"messages": None}, "awrs_tools needs a chat"),
        ({"tools": None}, "awrs_tools: tools="),
        ({"tool_choice": "never"}, "tool_choice='never'"),
    ],
)
def test_tools_that_cannot_be_used(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gathered(**fields)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object with the field tags"),
        ({"tags": [3]}, "each tag is an object"),
        ({"tags": [{"begin": "<", "constraint": "python:os:getcwd"}]}, "does not travel with a request"),
        ({"tags": [{"begin": "<", "constraint": {"kind": "sql", "schema": {}}}]}, "does not travel"),
        ({"tags": [{"begin": "<", "constraint": "grammar:/etc/passwd"}]}, "does not travel"),
        ({"tags": [{"begin": "", "constraint": "regex:a"}]}, "begin=''"),
    ],
)
def test_tags_that_requests_cannot_bring(tags: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        awrs_of({"awrs_tags": tags}, {})


def test_tags_of_the_engine_in_python() -> None:
    tags = Tags([Tag("<", Regex("a", engine="xgrammar"), ">"), Tag("{", JSONSchema(True, engine="xgrammar"), "}")])
    assert from_dict(awrs_as_json(AWRS(tags), {})["constraint"]) == tags
    with pytest.raises(ValueError, match="does not travel"):
        awrs_as_json(AWRS(Tags(Tag("<", Grammar('start: "a"'), ">"))), {})
