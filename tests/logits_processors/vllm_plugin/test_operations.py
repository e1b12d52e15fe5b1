"""Figures, draining and refusals at start, with stand-ins for vLLM."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from textguide.guidance import CFG
from textguide.logits_processors.vllm_plugin import operations, startup, validation
from textguide.logits_processors.vllm_plugin.borrowed_fields import PREFIX
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import Request
from textguide.logits_processors.vllm_plugin.totals import COUNTERS, GAUGES, Totals

DASHBOARD = Path(__file__).parents[3] / "docker" / "grafana-dashboard.json"


def state(**counted: int) -> RequestState:
    return RequestState(Request(CFG(2.0), ((1,),), ((1, ""),)), **counted)


def test_what_ended_stays_counted() -> None:
    totals = Totals()
    totals.received = 3
    totals.failed = 1
    one = state(guided=5, branch_tokens=9)
    other = state(guided=1, discarded=4, preemptions=1)
    both = totals.changes([one, other], 1, 1)
    assert both["guided_requests"] == 3
    assert both["guided_steps"] == 6
    assert both["discarded_steps"] == 4
    assert set(both) == {*COUNTERS, *GAUGES}
    one.guided += 2
    totals.end(one)
    other.branch_tokens += 5
    changes = {name: value for name, value in totals.changes([other], 0, 1).items() if value}
    assert changes == {"guided_steps": 2, "branch_tokens": 5, "groups_waiting": 1}


def test_figures_of_several_engines_add_up_and_leave_vllms_alone() -> None:
    prometheus = pytest.importorskip("prometheus_client", reason="vLLM brings it")
    from textguide.logits_processors.vllm_plugin.metrics import GuidanceMetrics

    registry = prometheus.CollectorRegistry()
    figures = GuidanceMetrics([0, 1], registry)
    figures.record(None, None)
    figures.record(SimpleNamespace(num_kv_fetch_reqs_by_stage={}), None)

    def step(engine: int, **values: int) -> dict[str, int]:
        carried = {"queued": 2, **{f"{PREFIX}{name}": value for name, value in values.items()}}
        figures.record(SimpleNamespace(num_kv_fetch_reqs_by_stage=carried), None, engine_idx=engine)
        return carried

    assert step(0, guided_steps=5, groups_waiting=2) == {"queued": 2}
    step(1, guided_steps=3, groups_waiting=1)
    step(0, guided_steps=7, groups_waiting=0)
    step(1, guided_steps=1, groups_waiting=4)
    figures.refuse()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"{PREFIX}{name}", labels)

    assert value("guided_steps_total", engine="0") == 12
    assert value("guided_steps_total", engine="1") == 4
    assert (value("groups_waiting", engine="0"), value("groups_waiting", engine="1")) == (0, 4)
    assert value("discarded_steps_total", engine="1") == 0  # shown before anything happened
    assert value("refused_requests_total") == 1


def test_the_dashboard_shows_what_is_counted() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    named = set(re.findall(r"textguide:(\w+)", queries))
    counted = {f"{name}_total" for name in (*COUNTERS, "refused_requests")} | set(GAUGES)
    assert named <= counted
    assert named >= {f"{name}_total" for name in ("guided_steps", "unguided_steps", "discarded_steps")}
    assert named >= {"refused_requests_total", "groups_waiting"}
    assert all(panel["gridPos"]["w"] for panel in panels)


def test_refusals_of_requests_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(validation, "refusal_listeners", [lambda error: heard.append(str(error))])

    class VLLMError(Exception):
        def __init__(self, message: str, parameter: str | None) -> None:
            super().__init__(message)
            self.parameter = parameter

    def check(**extra: Any) -> None:
        with validation.refusing(VLLMError):
            validation.validate(SimpleNamespace(extra_args=extra, logprobs=None))

    with pytest.raises(VLLMError, match="arrived before textguide was loaded"):
        check(guidance_scale=2.0)
    with pytest.raises(VLLMError, match="'guidence' is not an argument of guidance; use guidance") as caught:
        check(guidence="cfg")
    assert caught.value.parameter == "guidence"
    check(other=1)
    assert len(heard) == 2


def test_the_key_guards_the_figures_once() -> None:
    module = SimpleNamespace(GUARDED_PREFIX=("/v1",))
    operations.guard(module)
    operations.guard(module)
    assert module.GUARDED_PREFIX == ("/v1", "/metrics")


def asked(gate: Any, path: str, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate({"type": kind, "path": path}, None, send))
    return sent


def test_a_server_that_drains_takes_nothing_more() -> None:
    waited = []
    client = SimpleNamespace(shutdown=lambda timeout: waited.append(timeout))
    drains = operations.draining(client)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send("served")

    gate = operations.Gate(app, drains)
    assert asked(gate, "/v1/completions") == ["served"]
    client.shutdown(timeout=7)
    assert waited == [7]
    assert asked(gate, "/metrics") == asked(gate, "/v1/completions", "lifespan") == ["served"]
    for path in ("/v1/completions", "/health"):
        head, body = asked(gate, path)
        assert head["status"] == 503
        assert (b"retry-after", b"5") in head["headers"]
        assert "about to stop" in json.loads(body["body"])["error"]["message"]


def refuse(reason: str) -> None:
    with startup.refusing():
        raise ValueError(reason)


def test_what_an_engines_process_refuses_is_told_where_it_was_started(capfd: pytest.CaptureFixture[str]) -> None:
    def start() -> None:
        process = multiprocessing.get_context("spawn").Process(target=refuse, args=("max_model_len=9: ü.",))
        process.start()
        process.join()
        assert process.exitcode == 1
        raise RuntimeError("Engine core initialization failed.")

    with pytest.raises(ValueError, match=r"^max_model_len=9: ü\.$"), startup.starting():
        start()
    assert "Traceback" not in capfd.readouterr().err
    assert startup.VARIABLE not in os.environ


def test_what_is_no_refusal_stays_as_it_is() -> None:
    with pytest.raises(ValueError, match="here"), startup.starting():  # in this very process
        refuse("here")
    with pytest.raises(RuntimeError, match="out of memory"), startup.starting():
        raise RuntimeError("out of memory")
    with startup.starting(), startup.starting():
        pass
    assert startup.VARIABLE not in os.environ
