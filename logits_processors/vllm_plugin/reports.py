"""Each answer with the report of what guidance did to it: of all choices, and in streams too.

vLLM's answers have room for one report, ``kv_transfer_params``, and its streams for none. Runs in the front end. Knows
no vLLM but the names of what it hands over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from .extras import OURS

CHOICES = "choices"
"""The key of a report under which those of all choices stand, in their order; null for one that has not ended."""
# Below vLLM's logger, whose handlers and format it has.
logger = logging.getLogger("vllm.textguide")


def carry(outputs: Any) -> None:
    """Let answers with several choices carry the report of each.

    Args:
        outputs: vLLM's class ``OutputProcessor``.
    """
    process = outputs.process_outputs
    if getattr(process, "carries", False):
        return

    @functools.wraps(process)
    def process_outputs(self: Any, engine_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        for output in engine_outputs:
            state = self.request_states.get(output.request_id)
            if state is not None and state.parent_req is not None:
                _gather(state, output)
        return process(self, engine_outputs, *args, **kwargs)

    process_outputs.carries = True  # type: ignore[attr-defined]
    outputs.process_outputs = process_outputs


def _gather(state: Any, output: Any) -> None:
    """Put what is known of all choices into one choice's output: vLLM keeps that of the latest alone."""
    parent = state.parent_req
    known: dict[int, Mapping[str, Any]] = parent.__dict__.setdefault(OURS, {})
    report = (output.kv_transfer_params or {}).get(OURS)
    if report is not None:
        known[state.request_index] = report
    if known:
        choices = [known.get(number) for number in range(parent.n)]
        latest = report if report is not None else next(iter(known.values()))
        output.kv_transfer_params = {**(output.kv_transfer_params or {}), OURS: {**latest, CHOICES: choices}}


def reports_of(params: Mapping[str, Any] | None) -> list[Mapping[str, Any] | None]:
    """The report of each choice, None where there is none, from the ``kv_transfer_params`` of an answer."""
    report = (params or {}).get(OURS)
    if report is None:
        return []
    return list(report[CHOICES]) if CHOICES in report else [report]


def in_streams(serving: Any, method: str) -> None:
    """Let the last event of each choice of a stream carry its report, where an answer that is no stream has it.

    Args:
        serving: a class of vLLM's that answers requests.
        method: its generator of events, which takes the request, and somewhere vLLM's outputs.
    """
    write = getattr(serving, method)
    if getattr(write, "carries", False):
        return

    @functools.wraps(write)
    async def events(self: Any, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        seen: dict[int, Mapping[str, Any]] = {}
        copies = getattr(request, "n", None) or 1

        def watched(one: Any) -> Any:
            return _watched(one, seen, copies) if hasattr(one, "__anext__") else one

        named = {name: watched(one) for name, one in kwargs.items()}
        async with contextlib.aclosing(write(self, request, *map(watched, args), **named)) as stream:
            async for event in stream:
                yield _with_report(event, seen) if seen else event

    events.carries = True  # type: ignore[attr-defined]
    setattr(serving, method, events)


async def _watched(results: Any, seen: dict[int, Mapping[str, Any]], copies: int) -> AsyncIterator[Any]:
    """``results`` as they are; what they report goes into ``seen``, by the number of the choice."""
    async with contextlib.aclosing(results):
        async for result in results:
            # Where there may be several prompts, each result comes with the number of its prompt.
            prompt, output = result if isinstance(result, tuple) else (0, result)
            for number, report in enumerate(reports_of(output.kv_transfer_params)):
                if report is not None:
                    seen[prompt * copies + number] = report
            yield result


def _with_report(event: str, seen: Mapping[int, Mapping[str, Any]]) -> str:
    if not event.startswith("data: {"):
        return event
    values = json.loads(event.removeprefix("data: "))
    for choice in values.get("choices") or ():
        report = seen.get(choice.get("index"))
        if choice.get("finish_reason") is not None and report is not None:
            values["kv_transfer_params"] = {OURS: report}
            return f"data: {json.dumps(values, ensure_ascii=False, separators=(',', ':'))}\n\n"
    return event


def of_all_prompts(serving: Any) -> None:
    """Let an answer to several prompts carry the reports of all of them, where vLLM keeps those of the first.

    Args:
        serving: vLLM's class that answers completions.
    """
    make = serving.request_output_to_completion_response
    if getattr(make, "carries", False):
        return

    @functools.wraps(make)
    def respond(self: Any, results: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        answer = make(self, results, request, *args, **kwargs)
        copies = request.n or 1
        rows = [reports_of(result.kv_transfer_params) or [None] * copies for result in results]
        reports = [report for row in rows for report in row]
        latest = next((report for report in reversed(reports) if report is not None), None)
        if len(rows) > 1 and latest is not None:
            answer.kv_transfer_params = {OURS: {**latest, CHOICES: reports}}
        return answer

    respond.carries = True  # type: ignore[attr-defined]
    serving.request_output_to_completion_response = respond
