"""A server of a masked diffusion model: answers are those of offline runs, bad requests say why, nothing is lost."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from textguide import diffusion
from textguide.diffusion import denoiser
from textguide.diffusion.pass_pool import PassPool

from . import tiny

HAS_SERVER = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "httpx"))
NEEDS = pytest.mark.skipif(not HAS_SERVER, reason="the extra playground, or httpx, is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette")
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def test_joint_passes_are_those_of_each_run_alone() -> None:
    """Runs of several lengths in threads, with and without guidance: the same texts, in fewer passes."""
    made = denoiser(*tiny.build("llada"))
    pool = PassPool(made)
    settings: list[Any] = [None, "cfg:scale=1.5", "acfg:scale=2", None, "cfg:scale=0.5", None]
    found: dict[int, list[str]] = {}

    def run(number: int) -> None:
        with pool.run() as model:
            out = diffusion.generate(
                model, None, ["abce", "l"][: 1 + number % 2], gen_length=4 + number, guidance=settings[number],
                temperature=0.7, seed=number, warn=False,
            )  # fmt: skip
            found[number] = out.texts

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    for number in range(6):
        expected = diffusion.generate(
            made, None, ["abce", "l"][: 1 + number % 2], gen_length=4 + number, guidance=settings[number],
            temperature=0.7, seed=number, warn=False,
        )  # fmt: skip
        assert found[number] == expected.texts
    assert pool.passes < pool.joined
    with pytest.raises(RuntimeError, match="closed"), pool.run():
        pass


def test_an_error_of_a_pass_reaches_its_run_and_no_other() -> None:
    made = denoiser(*tiny.build("llada"))
    pool = PassPool(made)
    with pool.run() as model:
        with pytest.raises(IndexError):
            model(torch.tensor([[10**6]]), torch.ones(1, 1, dtype=torch.bool))
        assert diffusion.generate(model, None, "ab", gen_length=2, warn=False).texts

    def leave() -> None:
        raise KeyError("gone")

    with pool.run(leave) as model, pytest.raises(KeyError, match="gone"):
        diffusion.generate(model, None, "ab", gen_length=2)
    pool.close()


@pytest.fixture(scope="module")
def served() -> Any:
    from textguide.diffusion.serving.server import CanvasService

    model, words = tiny.build("llada")
    words = copy.deepcopy(words)
    words.chat_template = CHAT
    return CanvasService("tiny", model, words, {"amateur": tiny.build("llada", seed=1)}, runs=4, waiting=60)


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    from textguide.diffusion.serving.server import application
    from textguide.serving.limits import Limits
    from textguide.serving.rules import Rules

    with TestClient(application(served, Rules(Limits(canvas=12, prompt_tokens=8)))) as made:
        yield made


def complete(client: Any, path: str = "/v1/completions", **body: Any) -> Any:
    return client.post(path, json={"prompt": "abce", "max_tokens": 6, **body} if path.endswith("/completions") and
                       "chat" not in path else {"max_tokens": 6, **body})  # fmt: skip


@NEEDS
def test_answers_are_those_of_offline_runs(client: Any) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    model, words = tiny.build("llada")
    options: dict[str, Any] = {"temperature": 0.8, "seed": 3, "steps": 3, "order": "random"}
    for guidance in (None, "cfg:scale=1.5", {"method": "acfg", "scale": 2.0}, [
        {"method": "cfg", "scale": 1.5},
        {"method": "particle-gibbs", "predictor": "sentiment", "target": "positive", "particles": 2},
    ]):  # fmt: skip
        found = complete(client, prompt=["abce", "l"], guidance=guidance, **options).json()
        expected = diffusion.generate(
            model, words, ["abce", "l"], gen_length=6, guidance=guidance, warn=False, **options
        )
        assert [choice["text"] for choice in found["choices"]] == expected.texts
        assert found["usage"]["prompt_tokens"] == 5
    options |= {"constraint": "regex:[a-f]{2,6}", "sampler": "eb:gamma=0.5"}
    formed = complete(client, guidance="cfg:scale=1.5", **options).json()["choices"][0]["text"]
    alone = diffusion.generate(model, words, "abce", gen_length=6, guidance="cfg:scale=1.5", warn=False, **options)
    assert formed == alone.texts[0]
    further = complete(client, guidance="contrastive:alpha=0,beta=0.5").json()["choices"][0]["text"]
    models = {"amateur": tiny.build("llada", seed=1)[0]}
    alone = diffusion.generate(
        model, words, "abce", gen_length=6, guidance="contrastive:alpha=0,beta=0.5", models=models, warn=False
    )
    assert further == alone.texts[0]
    for cache in (True, "delayed:refresh=2"):
        for stream in (False, True):
            kept = complete(client, guidance="cfg:scale=1.5", block_length=3, cache=cache, stream=stream)
            alone = diffusion.generate(
                model, words, "abce", gen_length=6, block_length=3, guidance="cfg:scale=1.5", cache=cache, warn=False
            )
            assert json.dumps(alone.texts[0]) in kept.text
    filled = client.post("/v1/completions", json={"prompt": "a[MASK]b[MASK]", "infill": True, "seed": 1}).json()
    assert filled["choices"][0]["text"] == diffusion.infill(model, words, "a[MASK]b[MASK]", seed=1).texts[0]
    chat = complete(client, "/v1/chat/completions", messages=[{"role": "user", "content": "abce"}], n=2).json()
    assert [choice["message"]["content"] for choice in chat["choices"]] == [
        diffusion.generate(model, words, "abce", gen_length=6, warn=False).texts[0]
    ] * 2


@NEEDS
def test_a_stream_is_the_canvas_step_by_step(client: Any) -> None:
    body = {"prompt": "abce", "max_tokens": 6, "seed": 1, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [one[6:] for one in response.text.splitlines() if one.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(one) for one in lines[:-1]]
    canvases = [event["canvas"] for event in events if "canvas" in event]
    assert [canvas["step"] for canvas in canvases] == list(range(len(canvases)))
    assert [sum(token is None for token in canvas["rows"][0]) for canvas in canvases][-1] == 0
    whole = complete(client, seed=1).json()
    assert [event["choices"][0]["text"] for event in events if event["choices"]] == [whole["choices"][0]["text"]]
    assert events[-1]["usage"] == whole["usage"]
    stop = whole["choices"][0]["text"][2]
    cut = complete(client, seed=1, stop=[stop]).json()["choices"][0]
    assert cut["text"] == whole["choices"][0]["text"].split(stop)[0]
    assert cut["finish_reason"] == "stop"


@NEEDS
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "other"}, 404, "'other' does not exist"),
        ({"prompt": None}, 400, "prompt is missing"),
        ({"prompt": []}, 400, "prompt must be"),
        ({"prompt": "abceabceabce"}, 400, "12 tokens; 8 at most"),
        ({"prompt": [99]}, 400, "token id 99"),
        ({"max_tokens": 13}, 400, "between 1 and 12"),
        ({"temperature": "hot"}, 400, "temperature='hot'"),
        ({"top_p": 0.9}, 400, "top_p=0.9 cannot be honoured"),
        ({"logprobs": 3}, 400, "logprobs=3"),
        ({"colour": "red"}, 400, "'colour' is not a field"),
        ({"order": "sideways"}, 400, "order='sideways' is unknown"),
        ({"cache": 3}, 400, "cache=3 must be true, false or a text"),
        ({"cache": "always"}, 400, "cache='always' is unknown"),
        ({"cache": True, "guidance": "acfg:scale=2"}, 400, "A-CFG masks parts of the prompt again"),
        ({"steps": 1, "block_length": 2}, 400, "steps=1 is fewer than the 3 blocks"),
        ({"steps": 1, "block_length": 2, "stream": True}, 400, "steps=1 is fewer than the 3 blocks"),
        ({"guidance": "cfg:scale=nan"}, 400, "must be a finite number"),
        ({"guidance": "dola"}, 400, "a denoiser is any module"),
        ({"guidance": "tfg:predictor=hf:x,target=1"}, 400, "is not offered here"),
        ({"guidance": "/etc/guidance.json"}, 400, "names a file"),
        ({"guidance": {"method": "particle-gibbs", "predictor": "sentiment", "target": "positive"}}, 400,
         "temperature=0 fills every canvas alike"),
        ({"constraint": "python:os:getcwd"}, 400, "write regex:PATTERN"),
        ({"constraint": "regex:z{9}"}, 400, "has no text that fits"),
        ({"sampler": "sideways"}, 400, "sampler="),
        ({"stream": True, "infill": True}, 400, "leave it out with infill"),
        ({"n": 65}, 400, "n=65"),
        ({"stop": [""]}, 400, "stop="),
        ({"seed": 1.5}, 400, "seed=1.5"),
        ({"guidance": "formula:" + "+".join(["cond"] * 900)}, 400, "expression="),
        ({"guidance": [{"method": "formula", "expression": "+".join(["cond"] * 900)}]}, 400, "expression="),
        ({"constraint": {"kind": "regex", "pattern": "a" * 200_000}}, 400, "constraint has 200,"),
        ({"constraint": "regex:" + "(" * 3000 + "a" + ")" * 3000}, 400, "constraint: "),
        ({"guidance": "x" * 7000}, 400, "guidance"),
    ],
)  # fmt: skip
def test_bad_requests_say_why(client: Any, body: dict[str, Any], status: int, said: str) -> None:
    response = complete(client, **body)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]
    assert client.post("/v1/completions", content=b"{").status_code == 400
    assert len(response.json()["error"]["message"]) < 1000


@NEEDS
def test_the_server_answers_while_a_constraint_compiles(served: Any) -> None:
    from fastapi.testclient import TestClient

    from textguide.diffusion.serving.server import CanvasService, application
    from textguide.serving.limits import Limits
    from textguide.serving.rules import Rules

    slow = {"kind": "regex", "pattern": "abcdefgh" * 12_000}  # half a minute
    rules_of_server = Rules(Limits(canvas=12, prompt_tokens=8, characters=100_000, constraint_seconds=1.0))
    model, words = tiny.build("llada")
    own = CanvasService("tiny", model, words)
    with TestClient(application(own, rules_of_server)) as client, ThreadPoolExecutor(1) as pool:
        assert complete(client, constraint="regex:[a-h]{6}").status_code == 200  # until the processes are there
        pending = pool.submit(complete, client, constraint=slow)
        healthy = 0
        while not pending.done():
            assert client.get("/health").status_code == 200
            healthy += 1
        error = pending.result().json()["error"]
    assert healthy > 10  # thousands; a server that waits answers one
    assert error["code"] == 400
    assert error["param"] == "constraint"
    assert "takes more than the 1 s of this server (--constraint-seconds)" in error["message"]


@NEEDS
@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"guidance_scale": 2}, "guidance_scale", "write it into guidance"),
        ({"guidence": "cfg"}, "guidence", "use guidance"),
        ({"cfg_scale": 2}, "cfg_scale", "write it into guidance"),
        ({"stepps": 2}, "stepps", "did you mean steps?"),
        ({"vllm_xargs": {"guidance": "cfg"}}, "vllm_xargs", "is not a field"),
        ({"stream": True, "stream_options": {"guidance": "cfg"}}, "stream_options.guidance", "is not a field"),
        ({"guidance": []}, "guidance", "guidance=[] names no method"),
        ({"guidance": {}}, "guidance", "guidance={} names no method"),
        ({"guidance": "cfg:scale=nan"}, "guidance", "must be a finite number"),
        ({"guidance": {"method": "cfg", "scale": True}}, "guidance", "scale=True"),
        ({"temperature": True}, "temperature", "temperature=True must be a number"),
        ({"constraint": "python:os:getcwd"}, "constraint", "write regex:PATTERN"),
        ({"constraint": {"kind": "json-schema", "schema": {"$ref": "file:///x"}}}, "constraint", "leads nowhere"),
        ({"max_tokens": 13}, "max_tokens", "between 1 and 12"),
        ({"stop": [""]}, "stop", "stop="),
        ({"model": "other"}, "model", "does not exist"),
    ],
)
def test_refusals_carry_the_field(client: Any, body: dict[str, Any], field: str, said: str) -> None:
    error = complete(client, **body).json()["error"]
    assert (error["param"], said in error["message"]) == (field, True), error


@NEEDS
def test_fields_in_the_address_are_refused(client: Any) -> None:
    error = complete(client, "/v1/completions?guidance=cfg:scale=2").json()["error"]
    assert (error["code"], error["param"]) == (400, "guidance")


@NEEDS
def test_answers_report_whether_they_are_guided(client: Any) -> None:
    for values, guided in (
        ({}, False),
        ({"guidance": None}, False),
        ({"guidance": "plain"}, False),
        ({"guidance": "cfg:scale=1"}, False),
        ({"guidance": "cfg:scale=2"}, True),
        ({"guidance": {"method": "acfg", "scale": 2.0}}, True),
        ({"constraint": "regex:[a-f]{2,6}"}, True),
    ):
        report = {"textguide": {"guided": guided}}
        assert complete(client, **values).json()["kv_transfer_params"] == report
        chat = {"messages": [{"role": "user", "content": "ab"}], **values}
        assert complete(client, "/v1/chat/completions", **chat).json()["kv_transfer_params"] == report
        lines = complete(client, stream=True, **values).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        ends = [event for event in events if event["choices"]]
        assert [event["kv_transfer_params"] for event in ends] == [report]


@NEEDS
def test_a_key_and_too_many_requests() -> None:
    from fastapi.testclient import TestClient

    from textguide.diffusion.serving.server import CanvasService, application
    from textguide.serving.errors import BusyError
    from textguide.serving.rules import Rules

    own = CanvasService("tiny", *tiny.build("llada"))
    with TestClient(application(own, Rules(), api_key="secret")) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/health").status_code == 200

    async def crowd() -> None:
        full = CanvasService("full", *tiny.build("llada"), runs=1, waiting=1)
        hold = threading.Event()
        futures = [full.start(lambda left: hold.wait(5))[0] for _ in range(2)]
        with pytest.raises(BusyError, match="2 runs are in progress"):
            full.start(lambda left: None)
        hold.set()
        await asyncio.gather(*futures)
        full.close()

    asyncio.run(crowd())


@NEEDS
def test_a_small_load_loses_nothing() -> None:
    """A small load of ``scripts/bench/diffusion_serve.py``: aborts, streams, bad requests, answers as offline."""
    import uvicorn

    from textguide.diffusion.serving.server import CanvasService, application
    from textguide.serving.rules import Rules
    from textguide.serving.sockets import listen

    folder = str(Path(__file__).parents[2] / "scripts" / "bench")
    sys.path.insert(0, folder)
    try:
        import diffusion_serve
    finally:
        sys.path.remove(folder)
    model, words = tiny.build("llada")
    own = CanvasService("tiny", model, words, runs=4, waiting=60)
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(own, Rules()), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    asked = diffusion_serve.requests_of(["abce", "l"], 30, 6)
    came = asyncio.run(diffusion_serve.load(f"http://127.0.0.1:{sock.getsockname()[1]}", asked, 6))
    server.should_exit = True
    thread.join()
    expected = [
        diffusion_serve.offline(model, words, one["body"]) if one["kind"] in ("plain", "stream") else None
        for one in asked
    ]
    found = diffusion_serve.report(asked, came, expected)
    assert found["wrong"] == []
    assert found["compared"] == found["equal"] == 24
