"""lm-eval's layout of results, so that tools that read its files read ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import RunResult, TaskResult

DERIVED = ("results", "samples", "sweep", "date", "textguide")
"""Top-level keys that have another home in a run; all others of lm-eval's are passed through."""


def top_level(run: RunResult) -> dict[str, Any]:
    """``results`` of the plain setting (else of the first), ``sweep`` with all of them where there are
    several."""
    first = run.plain_label or run.labels[0]
    by_label = {label: _results(run, label) for label in run.labels}
    higher: dict[str, dict[str, bool]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for result in run.tasks:
        for name, value in result.metrics.items():
            higher.setdefault(result.task, {})[name.split(",")[0]] = value.higher_is_better
            sizes.setdefault(result.task, {"original": value.n, "effective": value.n})
    theirs = {key: value for key, value in run.lm_eval.items() if key not in DERIVED}
    defaults: dict[str, Any] = {"configs": {}, "versions": {}, "config": {}, "git_hash": None}
    values = {
        "results": by_label[first],
        **defaults,
        **theirs,
        "n-samples": {**sizes, **theirs.get("n-samples", {})},
        "higher_is_better": {**higher, **theirs.get("higher_is_better", {})},
        "date": run.date,
    }
    if len(by_label) > 1:
        values["sweep"] = by_label
    return values


def _results(run: RunResult, label: str) -> dict[str, Any]:
    return {
        task: result.raw or _entry(result) for task in run.task_names if (result := run.get(task, label)) is not None
    }


def _entry(result: TaskResult) -> dict[str, Any]:
    values: dict[str, Any] = {"alias": result.task}
    for name, value in result.metrics.items():
        metric, _, filter_name = name.partition(",")
        suffix = filter_name or "none"
        values[f"{metric},{suffix}"] = value.value
        values[f"{metric}_stderr,{suffix}"] = "N/A" if value.stderr is None else value.stderr
    return values
