"""Reports in the answers of a server: of what guidance did to each choice, in streams too.

An answer of vLLM has room for one report (``borrowed_fields.py``), and its streams have none. Runs in the front end.
Knows no vLLM but the names of what it wraps.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from .arguments import has_guidance
from .borrowed_fields import REPORT_FIELD, report_of, with_report
from .extras import OURS
from .wrapping import wrap_once

GUIDED = "guided"
"""The key of a report with whether guidance decoded the request: the engine puts it there, and not what was sent."""
CHOICES = "choices"
"""The key of a report with the reports of all choices in their order; null for one that has not ended."""


_ERROR = 'data: {"error"'
_BEFORE_ENGINE = ("response.created", "response.in_progress")
_ENDS = re.compile(r'"finish_reason": ?"')
PLAIN = {GUIDED: False}
"""The report of a request that was decoded without guidance."""


def gather_reports(output_processor: Any) -> None:
    """Let every answer report whether it was guided, and answers with several choices carry the report of each.

    Args:
        output_processor: vLLM's class ``OutputProcessor``.
    """

    def wrapper(process: Callable[..., Any]) -> Callable[..., Any]:
        def process_outputs(self: Any, engine_outputs: Any, *args: Any, **kwargs: Any) -> Any:
            for output in engine_outputs:
                state = self.request_states.get(output.request_id)
                if state is not None and state.parent_req is not None:
                    _gather(state, output)
                if report_of(output.kv_transfer_params) is None and _may_end(state, output):
                    output.kv_transfer_params = with_report(output.kv_transfer_params, PLAIN)
            return process(self, engine_outputs, *args, **kwargs)

        return process_outputs

    wrap_once(output_processor, "process_outputs", wrapper)


def _may_end(state: Any, output: Any) -> bool:
    """Whether an output may be the last one of its request; a text of ``stop`` ends it in the front end."""
    detokenizer = getattr(state, "detokenizer", None)
    return output.finish_reason is not None or bool(getattr(detokenizer, "stop", None))


def _gather(state: Any, output: Any) -> None:
    """Put the reports of all choices into one choice's output, since vLLM only keeps that of the latest one."""
    parent = state.parent_req
    known: dict[int, Mapping[str, Any]] = parent.__dict__.setdefault(OURS, {})
    report = report_of(output.kv_transfer_params)
    if report is not None:
        known[state.request_index] = report
    if known:
        choices = [known.get(number) for number in range(parent.n)]
        latest = report if report is not None else next(iter(known.values()))
        output.kv_transfer_params = with_report(output.kv_transfer_params, {**latest, CHOICES: choices})


def reports_of(params: Mapping[str, Any] | None) -> list[Mapping[str, Any] | None]:
    """The report of each choice, from the ``kv_transfer_params`` of an answer; None for a choice without one."""
    report = report_of(params)
    if report is None:
        return []
    return list(report[CHOICES]) if CHOICES in report else [report]


def report_beams(serving: Any) -> None:
    """Let answers of beam search report that they are not guided.

    Args:
        serving: vLLM's class with ``beam_search``.
    """

    def wrapper(search: Callable[..., Any]) -> Callable[..., Any]:
        async def beam_search(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async with contextlib.aclosing(search(self, *args, **kwargs)) as outputs:
                async for output in outputs:
                    output.kv_transfer_params = with_report(output.kv_transfer_params, PLAIN)
                    yield output

        return beam_search

    wrap_once(serving, "beam_search", wrapper)


def stream_reports(serving: Any, method: str) -> None:
    """Let the last event of each choice of a stream carry its report, as answers that are not streamed do.

    Args:
        serving: a class of vLLM's that answers requests.
        method: its generator of events. It is called with the request, and with vLLM's outputs among its arguments.
    """

    def wrapper(write: Callable[..., Any]) -> Callable[..., Any]:
        async def events(self: Any, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
            reports: dict[int, Mapping[str, Any]] = {}
            copies = getattr(request, "n", None) or 1

            def watched(argument: Any) -> Any:
                return _watched(argument, reports, copies) if hasattr(argument, "__anext__") else argument

            named = {name: watched(argument) for name, argument in kwargs.items()}
            async with contextlib.aclosing(write(self, request, *map(watched, args), **named)) as stream:
                async for event in stream:
                    # Most events end no choice, and are not worth reading.
                    yield _with_report(event, reports) if _ENDS.search(event) else event

        return events

    wrap_once(serving, method, wrapper)


def refuse_before_streams(serving: Any, method: str, error_class: Any) -> None:
    """Let a guided stream that is refused have the status of its error; vLLM answers 200 and puts the error inside.

    Args:
        serving: a class of vLLM's that answers requests.
        method: its coroutine, which returns an answer or the events of a stream.
        error_class: vLLM's ``ErrorResponse``.
    """

    def wrapper(create: Callable[..., Any]) -> Callable[..., Any]:
        async def respond(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            answer = await create(self, request, *args, **kwargs)
            if not hasattr(answer, "__anext__") or not has_guidance(request.vllm_xargs):
                return answer
            first = []
            async for event in answer:
                first.append(event)
                # The events of a response begin before the engine sees the request, and its error is raised.
                if getattr(event, "type", None) not in _BEFORE_ENGINE:
                    break
            if first and isinstance(first[-1], str) and first[-1].startswith(_ERROR):
                await answer.aclose()
                return error_class.model_validate(json.loads(first[-1].removeprefix("data: ")))
            return _after(first, answer)

        return respond

    wrap_once(serving, method, wrapper)


async def _after(first: Sequence[Any], rest: AsyncGenerator[Any, None]) -> AsyncIterator[Any]:
    async with contextlib.aclosing(rest):
        for one in first:
            yield one
        async for one in rest:
            yield one


async def _watched(results: Any, reports: dict[int, Mapping[str, Any]], copies: int) -> AsyncIterator[Any]:
    """``results`` as they are; their reports are put into ``reports``, by the number of the choice."""
    async with contextlib.aclosing(results):
        async for result in results:
            # If there may be several prompts, each result comes with the number of its prompt.
            prompt, output = result if isinstance(result, tuple) else (0, result)
            for number, report in enumerate(reports_of(output.kv_transfer_params)):
                if report is not None:
                    reports[prompt * copies + number] = report
            yield result


def _with_report(event: str, reports: Mapping[int, Mapping[str, Any]]) -> str:
    if not event.startswith("data: {"):
        return event
    values = json.loads(event.removeprefix("data: "))
    for choice in values.get("choices") or ():
        report = reports.get(choice.get("index"))
        if choice.get("finish_reason") is not None:
            values[REPORT_FIELD] = with_report(None, PLAIN if report is None else report)
            return f"data: {json.dumps(values, ensure_ascii=False, separators=(',', ':'))}\n\n"
    return event


def gather_reports_of_prompts(serving: Any) -> None:
    """Let an answer to several prompts carry the reports of all of them; vLLM keeps those of the first one.

    Args:
        serving: vLLM's class that answers completions.
    """

    def wrapper(make: Callable[..., Any]) -> Callable[..., Any]:
        def respond(self: Any, results: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            answer = make(self, results, request, *args, **kwargs)
            reports: list[Mapping[str, Any] | None] = []
            for result in results:
                reports += reports_of(result.kv_transfer_params) or [None] * (request.n or 1)
            latest = next((report for report in reversed(reports) if report not in (None, PLAIN)), None)
            if len(results) > 1 and latest is not None:
                answer.kv_transfer_params = with_report(None, {**latest, CHOICES: reports})
            return answer

        return respond

    wrap_once(serving, "request_output_to_completion_response", wrapper)
