"""A run as ``results.json`` holds it: lm-eval's layout, so that tools that read its files read ours, and what is ours
under ``textguide``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from textguide.support.files import plain

from ..statistics.intervals import Interval, PairedDifference, Selection
from ..statistics.measures import MetricValue
from ..statistics.paired import Comparison
from .folder import FORMAT
from .run import RunResult, TaskResult
from .storage import Arrays

DERIVED = ("results", "samples", "sweep", "date", "textguide")
"""Top-level keys that have another home in a run; all others of lm-eval's are passed through."""


def run_to_dict(run: RunResult) -> dict[str, Any]:
    """lm-eval's schema, with everything of ours under ``textguide``; plain JSON values. Analyses the run.

    Raises:
        ValueError: see :meth:`RunResult.analyse`.
    """
    run.analyse()
    ours = {
        "format": FORMAT,
        "identity": run.identity,
        "guidances": [{"label": label, "guidance": guidance} for label, guidance in run.guidances.items()],
        "fingerprints": run.fingerprints,
        "versions": run.versions,
        "machine": run.machine,
        "command": run.command,
        "seed": run.seed,
        "statistics": {
            "confidence": run.confidence,
            "resamples": run.resamples,
            "intervals": "Wilson for 0/1 values, else bootstrap (bias-corrected and accelerated)",
            "comparisons": "paired bootstrap; McNemar's exact test; Holm over the settings of a task",
            "select_on": run.select_on,
        },
        "tasks": [_task_to_dict(result) for result in run.tasks],
        "comparisons": [comparison.to_dict() for comparison in run.comparisons or ()],
        "selections": {task: _selection_to_dict(choice) for task, choice in (run.selections or {}).items()},
        "notes": run.notes,
    }
    # lm-eval's configurations hold functions.
    values: dict[str, Any] = plain({**_top_level(run), "textguide": ours}, fallback=str)
    return values


def run_from_dict(values: Mapping[str, Any], arrays: Arrays) -> RunResult:
    """The run that :func:`run_to_dict` made ``values`` of.

    Args:
        values: what ``results.json`` holds.
        arrays: the per-item values, as :func:`textguide.eval.results.storage.load` reads them.
    """
    ours = values["textguide"]
    statistics = ours["statistics"]
    return RunResult(
        tasks=[_task_from_dict(entry, arrays) for entry in ours["tasks"]],
        guidances={entry["label"]: entry["guidance"] for entry in ours["guidances"]},
        lm_eval={key: value for key, value in values.items() if key not in DERIVED},
        select_on=statistics["select_on"],
        confidence=statistics["confidence"],
        resamples=statistics["resamples"],
        date=values["date"],
        comparisons=[Comparison(**entry) for entry in ours["comparisons"]],
        selections={task: _selection_from_dict(entry) for task, entry in ours["selections"].items()},
        **{key: ours[key] for key in ("identity", "fingerprints", "seed", "versions", "machine", "command", "notes")},
    )


def _top_level(run: RunResult) -> dict[str, Any]:
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
    return {task: _full(result) for task in run.task_names if (result := run.get(task, label)) is not None}


def _full(result: TaskResult) -> dict[str, Any]:
    """lm-eval's entry, with our standard errors where it was not asked for any; without one ours."""
    ours, raw = _entry(result), result.raw
    if not raw:
        return ours
    errors = {key: value for key, value in ours.items() if "_stderr," in key and raw.get(key, "N/A") == "N/A"}
    return {"alias": result.task, **raw, **{key: errors[key] for key in errors if key.replace("_stderr", "") in raw}}


def _entry(result: TaskResult) -> dict[str, Any]:
    values: dict[str, Any] = {"alias": result.task}
    for name, value in result.metrics.items():
        metric, _, filter_name = name.partition(",")
        suffix = filter_name or "none"
        values[f"{metric},{suffix}"] = value.value
        values[f"{metric}_stderr,{suffix}"] = "N/A" if value.stderr is None else value.stderr
    return values


def _task_to_dict(result: TaskResult) -> dict[str, Any]:
    scalars = {key: getattr(result, key) for key in ("task", "label", "scale", "truncated", "raw", "extra")}
    return {**scalars, "metrics": {name: value.to_dict() for name, value in result.metrics.items()}}


def _task_from_dict(entry: Mapping[str, Any], arrays: Arrays) -> TaskResult:
    metrics = {name: MetricValue(**value) for name, value in entry["metrics"].items()}
    stored = arrays.get((entry["task"], entry["label"]), {})
    return TaskResult(**{**entry, "metrics": metrics, **stored})


def _selection_to_dict(choice: Selection) -> dict[str, Any]:
    values = {entry.name: getattr(choice, entry.name) for entry in fields(choice)}
    difference = choice.difference and choice.difference._asdict()
    return {**values, "reported": choice.reported._asdict(), "difference": difference}


def _selection_from_dict(entry: Mapping[str, Any]) -> Selection:
    reported = Interval(**{key: math.nan if value is None else value for key, value in entry["reported"].items()})
    difference = PairedDifference(**entry["difference"]) if entry["difference"] else None
    return Selection(**{**entry, "reported": reported, "difference": difference})
