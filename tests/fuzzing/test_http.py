"""A fixed sample of requests to the server of canvases, and what the judge of answers finds."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from typing import Any

import pytest

from .canvas_server import DIALECT, serving
from .http import EITHER, PLAIN, REFUSED, Judge, make, run

HAS_SERVER = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "httpx"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.skipif(not HAS_SERVER, reason="the extra playground, or httpx, is not installed")
def test_requests_to_the_server_of_canvases() -> None:
    rows: list[dict[str, Any]] = []
    with serving() as (judge, loop):
        loop.run_until_complete(run(judge, 7, range(80), rows.append, 8))
    assert [row for row in rows if "fault" in row] == []
    assert {row["status"] for row in rows} == {200, 400}


def answer(guided: Any, text: str = "a") -> tuple[int, str]:
    values = {"choices": [{"index": 0, "text": text}], "kv_transfer_params": {"textguide": {"guided": guided}}}
    return 200, json.dumps(values)


def faults(answered: Any, expected: str) -> list[str | None]:
    """What the judge finds wrong if every request gets the same answer."""

    async def post(path: str, body: str) -> tuple[int, str]:
        status, text = answered
        return status, text

    async def judged() -> list[str | None]:
        judge = Judge(DIALECT, post)
        cases = [make(DIALECT, 3, number) for number in range(300)]
        chosen = [case for case in cases if case.expected == expected and not case.request.streams]
        assert len(chosen) > 20
        return [(await judge.fault(case))[1] for case in chosen]

    return asyncio.run(judged())


def test_the_judge_finds_guidance_that_is_lost() -> None:
    assert all(faults(answer(False), REFUSED))
    assert all(faults(answer(True), REFUSED))
    assert all(faults(answer(False), "guided"))
    assert all(faults(answer(None), "guided"))
    assert not any(faults(answer(True), "guided"))
    assert all(faults(answer(True), PLAIN))
    assert not any(faults(answer(False), PLAIN))
    assert all(faults((500, "oh"), EITHER))


def test_the_judge_reads_refusals() -> None:
    error = {"error": {"message": "no", "param": None}}
    assert all(faults((400, json.dumps(error)), REFUSED))
    error["error"]["param"] = "another"
    assert all(faults((400, json.dumps(error)), REFUSED))
    assert all(faults((400, json.dumps(error)), PLAIN))


def test_the_judge_compares_texts() -> None:
    """The answer to a request differs from that to its canonical form."""
    sent = 0

    async def post(path: str, body: str) -> tuple[int, str]:
        nonlocal sent
        sent += 1
        return answer(True, f"text {sent}")

    async def judged() -> str | None:
        case = next(case for case in (make(DIALECT, 1, n) for n in range(99)) if case.expected == "guided")
        return (await Judge(DIALECT, post).fault(case))[1]

    found = asyncio.run(judged())
    assert found is not None
    assert "canonical" in found
