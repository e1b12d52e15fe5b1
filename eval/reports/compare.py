"""Several runs next to each other, with paired tests on the items that they share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textguide.support.files import plain
from textguide.support.showing import Block, Line, Shown
from textguide.support.showing import table as shown_table
from textguide.support.tables import in_blocks

from ..results.run import RunResult, TaskResult, aligned
from ..statistics.measures import MetricValue
from ..statistics.paired import Comparison, adjust, compare_items
from .markdown import COMPARISON_HEADER, comparison_cells, interval, metric_name, table
from .run_folder import read_run

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One metric in all runs.

    Args:
        task: name of the task.
        metric: name of the metric.
        label: the guidance; empty if every run has only one guidance.
        values: one entry per run; None if the run does not have this metric.
    """

    task: str
    metric: str
    label: str
    values: tuple[MetricValue | None, ...]


@dataclass(frozen=True)
class RunComparison(Shown):
    """Several runs next to each other.

    Args:
        runs: the runs' names; the first one is the baseline.
        rows: the metrics.
        comparisons: each other run against the first, on shared items. ``label`` and ``baseline`` are names of runs,
            followed by the guidance if runs have several.
        notes: what could not be compared, with the reasons.
        confidence: coverage of the intervals.
    """

    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = []
        for row in self.rows:
            by_run = dict(zip(self.runs, row.values, strict=True))
            entries = {run: None if value is None else value.to_dict() for run, value in by_run.items()}
            rows.append({"task": row.task, "metric": row.metric, "label": row.label, "values": entries})
        values: dict[str, Any] = plain(
            {
                "runs": self.runs,
                "rows": rows,
                "comparisons": [comparison.to_dict() for comparison in self.comparisons],
                "notes": self.notes,
                "confidence": self.confidence,
            }
        )
        return values

    def to_markdown(self) -> str:
        """Two tables and the notes."""
        header, lines = self._value_table()
        parts = [table(header, lines, "l" * self._names)]
        if self.comparisons:
            header, lines = self._comparison_table()
            parts.append(table(header, lines, "llll"))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def to_rich(self, width: int = 80) -> list[Table]:
        """The two tables for a terminal of ``width`` characters; a table that is wider is cut into several."""
        header, lines = self._value_table()
        tables = in_blocks(f"values with {self.confidence:.0%} intervals", header, lines, self._names, width)
        if self.comparisons:
            header, lines = self._comparison_table()
            tables += in_blocks(f"against {self.runs[0]}, on the same items", header, lines, 4, width)
        return tables

    def _shown(self) -> tuple[str, Sequence[Block]]:
        blocks: list[Block] = [Line(f"values with {self.confidence:.0%} intervals", quiet=True)]
        header, lines = self._value_table()
        blocks.append(shown_table(header, lines, "l" * self._names + "r" * len(self.runs)))
        if self.comparisons:
            header, lines = self._comparison_table()
            blocks.append(Line(f"against {self.runs[0]}, on the same items", quiet=True))
            blocks.append(shown_table(header, lines, "llll" + "r" * len(COMPARISON_HEADER)))
        return f"{len(self.runs)} runs", [*blocks, *map(Line, self.notes)]

    @property
    def _names(self) -> int:
        """Number of columns that name a row."""
        return 3 if any(row.label for row in self.rows) else 2

    def _value_table(self) -> tuple[list[str], list[list[str]]]:
        header = ["task", "metric", "guidance"][: self._names]
        lines = []
        for row in self.rows:
            better = next((value.higher_is_better for value in row.values if value), None)
            names = [row.task, metric_name(row.metric, better), row.label][: self._names]
            lines.append([*names, *(interval(value) for value in row.values)])
        return [*header, *self.runs], lines

    def _comparison_table(self) -> tuple[list[str], list[list[str]]]:
        lines = [
            [entry.task, metric_name(entry.metric), entry.label, entry.baseline, *comparison_cells(entry)]
            for entry in self.comparisons
        ]
        return ["task", "metric", "run", "against", *COMPARISON_HEADER], lines


def compare_folders(folders: Sequence[str | os.PathLike[str]]) -> RunComparison:
    """Read runs and compare each with the first one on the items that both have.

    If every run has only one guidance, these are compared, whatever their names are; otherwise the guidances of the
    same name are. Items are the same if their ids are the same; if one run has more items, the shared ones are
    compared.

    Args:
        folders: results folders, two or more.

    Raises:
        ValueError: there are fewer than two folders, one is named twice, or one was not written by textguide.
        FileNotFoundError: a folder does not have a finished run.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ValueError(f"folders= has {len(paths)} run; name two results folders or more")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("a results folder is named twice; name each run once")
    return compare_runs([read_run(path) for path in paths], _names_of(paths))


def compare_runs(runs: Sequence[RunResult], names: Sequence[str]) -> RunComparison:
    """Compare runs in memory; see :func:`compare_folders`.

    Args:
        runs: two or more.
        names: the names of the runs.
    """
    rows = []
    comparisons: list[Comparison] = []
    notes: list[str] = []
    for task, label, metric in _keys(runs):
        entries = [run.get(task, label or run.labels[0]) for run in runs]
        values = [None if entry is None else entry.metrics.get(metric) for entry in entries]
        rows.append(Row(task, metric, label, tuple(values)))
        first = entries[0]
        for name, entry in zip(names[1:], entries[1:], strict=True):
            if first is None or entry is None:
                continue
            comparison, note = _compare(entry, first, metric, label, (name, names[0]), runs[0])
            if comparison is not None:
                comparisons.append(comparison)
            if note:
                notes.append(f"{task}, {metric_name(metric)}: {name} and {names[0]} {note}.")
    return RunComparison(
        tuple(names), tuple(rows), tuple(adjust(comparisons)), tuple(dict.fromkeys(notes)), runs[0].confidence
    )


def _keys(runs: Sequence[RunResult]) -> list[tuple[str, str, str]]:
    """Task, label and metric of every row; labels are empty if every run has only one guidance."""
    single = all(len(run.labels) == 1 for run in runs)
    keys: dict[tuple[str, str, str], None] = {}  # a set in order of insertion
    for run in runs:
        for result in run.tasks:
            for metric in result.metrics:
                keys[result.task, "" if single else result.label, metric] = None
    return list(keys)


def _compare(
    entry: TaskResult, first: TaskResult, metric: str, label: str, names: tuple[str, str], settings: RunResult
) -> tuple[Comparison | None, str]:
    """One metric of a run against the first run's, and a note if the items are not all compared."""
    pair = aligned(entry, first, metric)
    if pair is None:
        return None, _reason(entry, first, metric)
    suffix = f", {label}" if label else ""
    comparison = compare_items(
        *pair,
        task=entry.task,
        metric=metric,
        label=names[0] + suffix,
        baseline=names[1] + suffix,
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    size = len(entry.items[metric])
    first_size = len(first.items[metric])
    if comparison.n == max(size, first_size):
        return comparison, ""
    return comparison, f"are compared on the {comparison.n} items that both have, of {size} and {first_size}"


def _reason(entry: TaskResult, first: TaskResult, metric: str) -> str:
    """Why no paired test is possible."""
    if metric not in entry.items or metric not in first.items:
        return "do not have values per item for it, so there is no paired test"
    if not (np.isfinite(entry.items[metric]).all() and np.isfinite(first.items[metric]).all()):
        return "have an item of infinite value, so there is no paired test"
    return "do not share items that are known to be the same, so there is no paired test"


def _names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that are all different."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
