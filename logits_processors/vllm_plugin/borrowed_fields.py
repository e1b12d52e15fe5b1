"""Fields of vLLM that textguide uses for something else, with the reason for each.

vLLM gives a scheduler and a front end of its own no channel for their data. These three fields travel already, and
vLLM leaves them empty in an engine with guidance: the connectors that fill the first two are refused at start
(``refusals.py``), and the third holds the requests that vLLM itself fails. Knows no vLLM but their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .extras import OURS

PREFIX = "textguide:"
"""Starts the names of textguide's figures, in vLLM's statistics and in Prometheus."""

# -- kv_transfer_params: the report of a guided request --------------------------------------------------------------
#
# Nothing else in an answer is free. `EngineCoreOutput`, `RequestOutput` and the HTTP answers of completions, chats and
# responses all have this field and copy it from one to the next; it is meant for engines that hand over caches.
# vLLM 0.33 puts it into the last chunk of a stream too, which 0.32 does not (`reports.py`).

REPORT_FIELD = "kv_transfer_params"


def report_of(params: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The report in the ``kv_transfer_params`` of an output or an answer; None if there is none."""
    return (params or {}).get(OURS)


def with_report(params: Mapping[str, Any] | None, report: Mapping[str, Any]) -> dict[str, Any]:
    """``kv_transfer_params`` that carry a report, besides what they carry already."""
    return {**(params or {}), OURS: report}


# -- num_kv_fetch_reqs_by_stage: figures of all guided requests ------------------------------------------------------
#
# `SchedulerStats` travels from every engine to the front end, and its other fields are numbers with a meaning. This one
# is a dict from names to numbers, which vLLM prints and exports for names that it knows.


def put_figures(stats: Any, figures: Mapping[str, int]) -> None:
    """Add figures to vLLM's ``SchedulerStats``; their names get :data:`PREFIX`."""
    for name, value in figures.items():
        stats.num_kv_fetch_reqs_by_stage[f"{PREFIX}{name}"] = value


def take_figures(stats: Any) -> dict[str, int]:
    """Remove figures from vLLM's ``SchedulerStats``, or None, so that vLLM does not log them as its own."""
    carried = getattr(stats, "num_kv_fetch_reqs_by_stage", None) or {}
    names = [name for name in carried if name.startswith(PREFIX)]
    return {name.removeprefix(PREFIX): carried.pop(name) for name in names}


# -- grammar_compile_error_reqs: requests that end with an error -----------------------------------------------------
#
# `finish_requests` alone tells the client nothing. For the requests in this field, vLLM finishes them and sends the
# client an output with the reason "error", in the next `update_from_output`. It is meant for grammars that cannot be
# compiled. vLLM 0.32 has a set of ids there, and 0.33 a dict from ids to errors whose message reaches the client.


def fail_request(scheduler: Any, request: str, message: str, code: str = "validation_error") -> None:
    """End a request with an error.

    Args:
        scheduler: vLLM's.
        request: its id.
        message: why; only vLLM 0.33 sends it to the client.
        code: ``validation_error`` if the request cannot be served, which the client receives as HTTP 400; anything else
            if it failed while it was running.
    """
    failed = scheduler.grammar_compile_error_reqs
    if isinstance(failed, dict):
        from vllm.outputs import RequestError

        failed[request] = RequestError(code=code, message=message)
    else:
        failed.add(request)


def is_failed(scheduler: Any, request: str) -> bool:
    """Whether a request will end with an error in this step."""
    return request in scheduler.grammar_compile_error_reqs
