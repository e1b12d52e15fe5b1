"""Reports of all choices, in answers and in streams, with stand-ins for vLLM's front end."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from textguide.logits_processors.vllm_plugin import operations, reports

OURS = "textguide"


class Parent:
    """vLLM's request for several choices."""

    def __init__(self, n: int) -> None:
        self.n = n


def output(name: str, report: dict[str, Any] | None = None, ends: bool = False) -> Any:
    return SimpleNamespace(
        request_id=name,
        ends=ends,
        finish_reason="stop" if ends else None,
        kv_transfer_params=None if report is None else {OURS: report, "others": 1},
    )


def outputs() -> Any:
    """A class like vLLM's, which remembers the latest output of each request and forgets those that ended."""

    class Outputs:
        def __init__(self) -> None:
            self.request_states: dict[str, Any] = {}
            self.latest: dict[Any, Any] = {}

        def process_outputs(self, engine_outputs: list[Any], *args: Any) -> tuple[Any, ...]:
            for one in engine_outputs:
                state = self.request_states.get(one.request_id)
                if state is not None:
                    self.latest[state.parent_req or one.request_id] = one.kv_transfer_params
                    if one.ends:
                        del self.request_states[one.request_id]
            return args

    return Outputs


def test_every_choice_has_its_report_whoever_ends_last() -> None:
    kind = outputs()
    reports.gather_reports(kind)
    reports.gather_reports(kind)  # a second time changes nothing
    found, parent = kind(), Parent(3)
    for number in range(3):
        name = f"{number}_a"
        found.request_states[name] = SimpleNamespace(parent_req=parent, request_index=number, external_req_id="a")
    found.request_states["b"] = SimpleNamespace(parent_req=None, request_index=0, external_req_id="b")
    assert found.process_outputs([output("0_a"), output("b", {"k": 9})], 1, 2) == (1, 2)
    assert found.latest[parent] is None
    assert reports.reports_of(found.latest["b"]) == [{"k": 9}]
    found.process_outputs([output("2_a", {"k": 2}), output("gone", {"k": 7})])
    # vLLM merges outputs that nobody fetched, and keeps what the later one says.
    found.process_outputs([output("0_a"), output("1_a")])
    assert reports.reports_of(found.latest[parent]) == [None, None, {"k": 2}]
    found.process_outputs([output("0_a", {"k": 0}), output("1_a", {"k": 1})])
    assert reports.reports_of(found.latest[parent]) == [{"k": 0}, {"k": 1}, {"k": 2}]
    assert found.latest[parent][OURS]["k"] == 1
    assert found.latest[parent]["others"] == 1
    assert reports.reports_of(None) == reports.reports_of({}) == []


def test_answers_without_guidance_say_so() -> None:
    """With the last output, or with each one if a text may end the request in the front end."""
    kind = outputs()
    reports.gather_reports(kind)
    found = kind()
    for name, stop in (("a", []), ("b", ["\n"])):
        detokenizer = SimpleNamespace(stop=stop)
        found.request_states[name] = SimpleNamespace(parent_req=None, request_index=0, detokenizer=detokenizer)
    found.process_outputs([output("a"), output("b")])
    assert found.latest == {"a": None, "b": {OURS: {"guided": False}}}
    found.process_outputs([output("a", None, True), output("b", {"guided": True}, True)])
    assert found.latest["a"] == {OURS: {"guided": False}}
    assert found.latest["b"][OURS] == {"guided": True}


def result(report: Any, prompt: int | None = None) -> Any:
    one = SimpleNamespace(kv_transfer_params=None if report is None else {OURS: report})
    return one if prompt is None else (prompt, one)


def event(index: int, reason: str | None, text: str = "x") -> str:
    choice = {"index": index, "text": text, "finish_reason": reason}
    return f"data: {json.dumps({'id': 'c', 'choices': [choice]})}\n\n"


async def written(serving: Any, request: Any, results: list[Any]) -> list[Any]:
    async def results_of() -> Any:
        for one in results:
            yield one

    found = []
    async for line in serving().stream(request, results_of(), "id"):
        data = line.removeprefix("data: ").strip()
        found.append(json.loads(data) if data.startswith("{") else data)
    return found


def serving(*batches: list[str]) -> Any:
    """A class that writes a batch of events for each result that comes."""

    class Serving:
        async def stream(self, request: Any, results: Any, name: str) -> Any:
            todo = list(batches)
            async for _ in results:
                for one in todo.pop(0):
                    yield one
            for one in todo[0]:
                yield one

    reports.stream_reports(Serving, "stream")
    reports.stream_reports(Serving, "stream")
    return Serving


def test_the_last_event_of_a_choice_carries_its_report() -> None:
    kind = serving(
        [event(0, None), event(1, None)],
        [event(1, "stop", 'é"\n{}'), event(0, None)],
        [event(0, "length")],
        [f"data: {json.dumps({'choices': [], 'usage': {}})}\n\n", "data: [DONE]\n\n"],
    )
    both = {"choices": [{"k": 0}, {"k": 1}], "k": 0}
    results = [result(None), result({"choices": [None, {"k": 1}], "k": 1}), result(both)]
    found = asyncio.run(written(kind, SimpleNamespace(n=2), results))
    ends = {one["choices"][0]["index"]: one for one in found[:5] if one["choices"][0]["finish_reason"]}
    assert {index: one["kv_transfer_params"] for index, one in ends.items()} == {
        0: {OURS: {"k": 0}},
        1: {OURS: {"k": 1}},
    }
    assert ends[1]["choices"][0]["text"] == 'é"\n{}'
    assert sum("kv_transfer_params" in one for one in found[:-1]) == 2
    assert found[-1] == "[DONE]"


def test_several_prompts_count_their_choices_on() -> None:
    kind = serving([event(3, "stop")], [event(0, "stop")], ["data: [DONE]\n\n"])
    results = [result({"choices": [None, {"k": "b"}]}, 1), result({"choices": [{"k": "a"}, None]}, 0)]
    found = asyncio.run(written(kind, SimpleNamespace(n=2), results))
    assert [one["kv_transfer_params"][OURS]["k"] for one in found[:2]] == ["b", "a"]


def test_a_plain_stream_says_that_it_is_in_its_last_event_and_keeps_its_other_bytes() -> None:
    lines = [event(0, None), event(0, "stop"), "data: [DONE]\n\n"]
    kind = serving(lines[:1], lines[1:2], lines[2:])

    async def raw() -> list[str]:
        async def results() -> Any:
            yield result(None)
            yield result(None)

        return [line async for line in kind().stream(SimpleNamespace(n=None), results(), "id")]

    found = asyncio.run(raw())
    assert [found[0], found[2]] == [lines[0], lines[2]]
    last = json.loads(found[1].removeprefix("data: "))
    assert last.pop("kv_transfer_params") == {OURS: {"guided": False}}
    assert last == json.loads(lines[1].removeprefix("data: "))


def test_a_stream_that_is_left_closes_what_it_reads() -> None:
    closed = []

    async def results() -> Any:
        try:
            while True:
                yield result(None)
        finally:
            closed.append("results")

    kind = serving(*[[event(0, None)]] * 9)

    async def leave() -> None:
        stream = kind().stream(SimpleNamespace(n=1), results(), "id")
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert closed == ["results"]


@pytest.mark.parametrize("guided", [(0, 1), (1,), ()])
def test_an_answer_to_several_prompts_has_all_reports(guided: tuple[int, ...]) -> None:
    class Serving:
        def request_output_to_completion_response(self, results: Any, request: Any) -> Any:
            return SimpleNamespace(kv_transfer_params=results[0].kv_transfer_params)

    reports.gather_reports_of_prompts(Serving)
    results = [result({"k": n} if n in guided else None) for n in range(2)]
    answer = Serving().request_output_to_completion_response(results, SimpleNamespace(n=1))
    expected = [{"k": n} if n in guided else None for n in range(2)]
    assert reports.reports_of(answer.kv_transfer_params) == (expected if guided else [])
    alone = Serving().request_output_to_completion_response(results[1:], SimpleNamespace(n=1))
    assert reports.reports_of(alone.kv_transfer_params) == [one for one in expected[1:] if one]


def test_requests_that_end_leave_a_line(caplog: pytest.LogCaptureFixture) -> None:
    found = outputs()()
    for name in "abc":
        found.request_states[name] = SimpleNamespace(parent_req=None, request_index=0, external_req_id=f"out-{name}")
    operations.log_ends(found)
    with caplog.at_level(logging.INFO, logger="vllm.textguide"):
        # c goes on: every one of its tokens may be the last.
        found.process_outputs([output("a", {"guided_steps": 3}, True), output("b", None, True), output("c", {"k": 1})])
        operations.log_refusal(ValueError("guidance_scale='high'"))
    first, second = caplog.records
    assert first.textguide == {"request": "out-a", "choice": 0, "guided_steps": 3}  # type: ignore[attr-defined]
    assert '"guided_steps": 3' in first.getMessage()
    assert "guidance_scale='high'" in second.getMessage()
