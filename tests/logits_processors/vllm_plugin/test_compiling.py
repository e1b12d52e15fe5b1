"""Constraints of requests are compiled by another process, and neither the front end nor the engine does so again."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("xgrammar")

from textguide.constraints import JSONSchema, Regex
from textguide.logits_processors.vllm_plugin import compiling, constraint_arguments
from textguide.logits_processors.vllm_plugin.arguments import ARGUMENTS, parse, unpacked
from textguide.logits_processors.vllm_plugin.constraints import EngineConstraints
from textguide.logits_processors.vllm_plugin.request_guidance import RequestPrompt
from textguide.logits_processors.vllm_plugin.requests import Limits
from textguide.logits_processors.vllm_plugin.validation import refusing
from textguide.serving.errors import RefusedError
from textguide.serving.limits import Limits as ServerLimits

from ...tiny_folder import make_tokenizer

TOKENIZER = make_tokenizer()
SIZE = len(TOKENIZER)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}


class Here:
    """Compilers that call the handler in this process."""

    limits = ServerLimits(constraint_bytes=400)

    def __init__(self) -> None:
        setup = json.loads(json.dumps(compiling.setup(TOKENIZER, SIZE)))
        self.handle = compiling.handler(setup)
        self.jobs: list[Any] = []

    def check_size(self, field: str, text: str) -> None:
        if len(text) > self.limits.constraint_bytes:
            raise RefusedError(f"{field} is too long", field)

    async def check(self, field: str, job: Any, others: Any = ()) -> Any:
        self.jobs.append(job)
        return self.handle(json.loads(json.dumps(job)))


@pytest.fixture(scope="module")
def compilers() -> Here:
    return Here()


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, compilers: Here) -> None:
    monkeypatch.setattr(constraint_arguments, "_compiled", type(constraint_arguments._compiled)())
    compilers.jobs.clear()


def send(compilers: Any, **arguments: Any) -> None:
    body = {"prompt": "A", "vllm_xargs": {ARGUMENTS: json.dumps(arguments)}}
    asyncio.run(compiling.compile_constraint(body, compilers))


def params(**given: Any) -> SimpleNamespace:
    fields = {"stop_token_ids": [], "n": 1, "output_kind": None, "max_tokens": 8}
    return SimpleNamespace(extra_args=given, logprobs=None, temperature=1.0, **fields)


def limits() -> Limits:
    constraints = EngineConstraints({}, lambda: TOKENIZER, SIZE)
    return Limits(TOKENIZER, vocabulary=SIZE, longest=64, constraints=constraints)


REQUESTS = [
    {"awrs_regex": "[ab]+c"},
    {"awrs_json_schema": json.dumps(SCHEMA), "awrs_particles": 4},
    {"awrs_grammar": 'start: "a" | "b"'},
    {"awrs_regex": "[ab]+c", "awrs_after": "."},
    {"guidance": {"method": "awrs", "constraint": {"kind": "json-schema", "schema": SCHEMA, "engine": "xgrammar"}}},
    {"guidance": "awrs:constraint=regex:[ab]+c"},
    {"guidance": '{"method": "awrs", "\\u0063onstraint": "regex:[ab]+c"}'},
]


@pytest.mark.parametrize("arguments", REQUESTS, ids=str)
def test_the_front_end_does_not_compile(
    compilers: Here, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = parse(params(**arguments), limits(), RequestPrompt((5,), "A"))
    send(compilers, **arguments)
    assert len(compilers.jobs) == 1

    def compiled_here(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled in the front end")

    monkeypatch.setattr(EngineConstraints, "start", compiled_here)
    monkeypatch.setattr(Regex, "__post_init__", compiled_here)
    monkeypatch.setattr(JSONSchema, "__post_init__", compiled_here)
    request = parse(params(**arguments), limits(), RequestPrompt((5,), "A"))
    monkeypatch.undo()
    assert request is not None
    assert plain is not None
    awrs, expected = (one.awrs or one.population for one in (request, plain))
    assert awrs is not None
    assert expected is not None
    session, vocabulary = EngineConstraints({}, lambda: TOKENIZER, SIZE).start(awrs, [2])
    same, _ = EngineConstraints({}, lambda: TOKENIZER, SIZE).start(expected, [2])
    assert session.is_complete(b"abc") == same.is_complete(b"abc")
    for text in (b"a", b"b", b'{"a": "x"}', b"abc", b".abc", b"zz"):
        assert session.is_prefix(text) == same.is_prefix(text)
    assert vocabulary.size == SIZE


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"awrs_regex": "(a"}, "awrs_regex: pattern='.a' cannot be used"),
        ({"awrs_regex": r"(a)\1"}, "--constraint NAME=regex:PATTERN"),
        ({"awrs_json_schema": "{"}, "awrs_json_schema='{' is not JSON"),
        ({"awrs_json_schema": '{"$ref": "#/x"}'}, r"awrs_json_schema: schema=.*\$ref"),
        ({"awrs_json_schema": "[" * 100_000}, "awrs_json_schema is too long"),
        ({"guidance": {"method": "awrs", "constraint": "regex:(a"}}, "guidance: constraint: pattern='.a'"),
    ],
)
def test_what_cannot_be_compiled_is_refused(compilers: Here, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        send(compilers, **arguments)
    assert not constraint_arguments._compiled


@pytest.mark.parametrize("arguments", [{}, {"guidance_scale": 2.0}, {"guidance": "cfg:scale=2"}, {"awrs_regex": None}])
def test_other_requests_start_no_job(compilers: Here, arguments: dict[str, Any]) -> None:
    send(compilers, **arguments)
    assert not compilers.jobs


def test_stop_tokens_and_sampling_parameters_reach_the_job(compilers: Here) -> None:
    body = {"sampling_params": {"extra_args": {"awrs_regex": "[ab]"}, "stop_token_ids": [7, 5, 7]}}
    asyncio.run(compiling.compile_constraint(body, compilers))  # type: ignore[arg-type]
    assert compilers.jobs == [{"arguments": {"awrs_regex": "[ab]"}, "ends": [5, 7]}]


def test_few_hashes_are_kept() -> None:
    for number in range(constraint_arguments.MOST_COMPILED + 10):
        constraint_arguments.note_compiled(constraint_arguments.compiled_digest("awrs_regex", str(number)))
    assert len(constraint_arguments._compiled) == constraint_arguments.MOST_COMPILED
    assert not constraint_arguments.is_compiled("awrs_regex", "3")
    assert constraint_arguments.is_compiled("awrs_regex", "20")
    assert not constraint_arguments.is_compiled("awrs_json_schema", "20")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"negative_messages": "[" * 1000 + "]" * 1000}, "negative_messages="),
        ({"guidance_scale": 2.0, "negative_messages": "[" * 100_000}, "negative_messages="),
        ({"guidance": "[" * 100_000}, "guidance="),
        ({"guidance": "formula:" + "+".join(["cond"] * 5000)}, "expression="),
        ({"guidance": "formula:" + "(" * 5000 + "cond" + ")" * 5000}, "formula"),
        ({"guidance": "cfg:scale=2", "guidance_branch_token_ids": "[" * 100_000}, "guidance_branch_token_ids="),
        ({"guidance_scale": 2.0, "negative_prompt": "a" * 100_000}, "negative_prompt has 100,000 characters"),
        ({"guidance": {"method": "cfg", "scale": 2.0, "negative_prompt": "a" * 100_000}}, "guidance has 100,000"),
        ({"guidance": "x" * 100_000}, "guidance"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_deep_and_long_arguments_are_refused_in_few_words(arguments: dict[str, Any], reason: str) -> None:
    class ClientError(ValueError):
        def __init__(self, message: str, parameter: str | None) -> None:
            super().__init__(message)

    with pytest.raises(ClientError, match=reason) as caught, refusing(ClientError):
        parse(params(**arguments), limits(), RequestPrompt((5,), "A"))
    assert len(str(caught.value)) < 1000


def test_arguments_that_are_nested_too_deeply_are_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        unpacked({ARGUMENTS: "[" * 100_000})
