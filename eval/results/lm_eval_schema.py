"""A run as the content of ``results.json``: lm-eval's layout, so that tools that read its files also read these, with
the additions of textguide under the key ``textguide``."""

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
"""Top-level keys that are made from other fields of a run; all other keys of lm-eval are copied."""


def run_to_dict(run: RunResult) -> dict[str, Any]:
    """Convert a run to plain JSON values in lm-eval's schema, with the additions under ``textguide``.

    The run is analysed first.

    Raises:
        ValueError: see :meth:`RunResult.analyse`.
    """
    run.analyse()
    additions = {
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
    # lm-eval's configurations contain functions, which are written as text.
    values: dict[str, Any] = plain({**_top_level(run), "textguide": additions}, fallback=str)
    return values


def run_from_dict(values: Mapping[str, Any], arrays: Arrays) -> RunResult:
    """Convert the values of :func:`run_to_dict` back to a run.

    Args:
        values: the content of ``results.json``.
        arrays: the per-item values, as :func:`textguide.eval.results.storage.load` reads them.
    """
    additions = values["textguide"]
    statistics = additions["statistics"]
    unchanged = ("identity", "fingerprints", "seed", "versions", "machine", "command", "notes")
    return RunResult(
        tasks=[_task_from_dict(entry, arrays) for entry in additions["tasks"]],
        guidances={entry["label"]: entry["guidance"] for entry in additions["guidances"]},
        lm_eval={key: value for key, value in values.items() if key not in DERIVED},
        select_on=statistics["select_on"],
        confidence=statistics["confidence"],
        resamples=statistics["resamples"],
        date=values["date"],
        comparisons=[Comparison(**entry) for entry in additions["comparisons"]],
        selections={task: _selection_from_dict(entry) for task, entry in additions["selections"].items()},
        **{key: additions[key] for key in unchanged},
    )


def _top_level(run: RunResult) -> dict[str, Any]:
    """lm-eval's keys: ``results`` of the plain setting (or of the first one, if there is no plain setting), and
    ``sweep`` with all settings if there are several."""
    first = run.plain_label or run.labels[0]
    by_label = {}
    for label in run.labels:
        entries = {task: run.get(task, label) for task in run.task_names}
        by_label[label] = {task: _lm_eval_entry(entry) for task, entry in entries.items() if entry is not None}
    higher: dict[str, dict[str, bool]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for result in run.tasks:
        for name, value in result.metrics.items():
            higher.setdefault(result.task, {})[name.split(",")[0]] = value.higher_is_better
            sizes.setdefault(result.task, {"original": value.n, "effective": value.n})
    copied = {key: value for key, value in run.lm_eval.items() if key not in DERIVED}
    defaults: dict[str, Any] = {"configs": {}, "versions": {}, "config": {}, "git_hash": None}
    values = {
        "results": by_label[first],
        **defaults,
        **copied,
        "n-samples": {**sizes, **copied.get("n-samples", {})},
        "higher_is_better": {**higher, **copied.get("higher_is_better", {})},
        "date": run.date,
    }
    if len(by_label) > 1:
        values["sweep"] = by_label
    return values


def _lm_eval_entry(result: TaskResult) -> dict[str, Any]:
    """lm-eval's own entry, completed by standard errors that it did not compute; an entry in its layout if there is
    none."""
    values: dict[str, Any] = {"alias": result.task, **result.raw}
    for name, value in result.metrics.items():
        metric, _, filter_name = name.partition(",")
        suffix = filter_name or "none"
        figure = f"{metric},{suffix}"
        error = f"{metric}_stderr,{suffix}"
        stderr = "N/A" if value.stderr is None else value.stderr
        if not result.raw:
            values[figure] = value.value
            values[error] = stderr
        elif figure in result.raw and result.raw.get(error, "N/A") == "N/A":
            values[error] = stderr
    return values


def _task_to_dict(result: TaskResult) -> dict[str, Any]:
    scalars = {key: getattr(result, key) for key in ("task", "label", "scale", "truncated", "raw", "extra")}
    return {**scalars, "metrics": {name: value.to_dict() for name, value in result.metrics.items()}}


def _task_from_dict(entry: Mapping[str, Any], arrays: Arrays) -> TaskResult:
    metrics = {name: MetricValue(**value) for name, value in entry["metrics"].items()}
    stored = arrays.get((entry["task"], entry["label"]), {})
    return TaskResult(**{**entry, "metrics": metrics, **stored})


def _selection_to_dict(choice: Selection) -> dict[str, Any]:
    values = {field.name: getattr(choice, field.name) for field in fields(choice)}
    difference = None if choice.difference is None else choice.difference._asdict()
    return {**values, "reported": choice.reported._asdict(), "difference": difference}


def _selection_from_dict(entry: Mapping[str, Any]) -> Selection:
    reported = Interval(**{key: math.nan if value is None else value for key, value in entry["reported"].items()})
    difference = PairedDifference(**entry["difference"]) if entry["difference"] else None
    return Selection(**{**entry, "reported": reported, "difference": difference})
