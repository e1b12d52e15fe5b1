"""Runs side by side, with paired tests on the items that they share."""

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
    """One figure in all runs.

    Args:
        task: name of the task.
        metric: name of the metric.
        label: the guidance; empty where every run has one guidance alone.
        values: one entry a run, None where a run lacks it.
    """

    task: str
    metric: str
    label: str
    values: tuple[MetricValue | None, ...]


@dataclass(frozen=True)
class RunComparison(Shown):
    """Several runs side by side.

    Args:
        runs: the runs' names; the first one is the baseline.
        rows: the figures.
        comparisons: each other run against the first, on shared items. ``label`` and ``baseline`` are run
            names, with the guidance behind them where runs have several.
        notes: what could not be compared, and why.
        confidence: coverage of the intervals.
    """

    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [
            {
                "task": row.task,
                "metric": row.metric,
                "label": row.label,
                "values": {
                    run: value.to_dict() if value else None for run, value in zip(self.runs, row.values, strict=True)
                },
            }
            for row in self.rows
        ]
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
        parts = [table(*self._value_table(), "lll"[: self._names])]
        if self.comparisons:
            parts.append(table(*self._comparison_table(), "llll"))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def to_rich(self, width: int = 80) -> list[Table]:
        """The two tables for a terminal of ``width`` characters, in blocks where they are wider."""
        tables: list[Table] = []
        for title, (header, lines), names in (
            (f"values with {self.confidence:.0%} intervals", self._value_table(), self._names),
            (f"against {self.runs[0]}, on the same items", self._comparison_table(), 4),
        ):
            if not lines:
                continue
            tables += in_blocks(title, header, lines, names, width)
        return tables

    def _shown(self) -> tuple[str, Sequence[Block]]:
        blocks: list[Block] = [Line(f"values with {self.confidence:.0%} intervals", quiet=True)]
        header, lines = self._value_table()
        blocks.append(shown_table(header, lines, "l" * self._names + "r" * len(self.runs)))
        if self.comparisons:
            header, lines = self._comparison_table()
            blocks.append(Line(f"against {self.runs[0]}, on the same items", quiet=True))
            blocks.append(shown_table(header, lines, "llll" + "r" * len(COMPARISON_HEADER)))
        return f"{len(self.runs)} runs side by side", [*blocks, *map(Line, self.notes)]

    @property
    def _names(self) -> int:
        return 3 if any(row.label for row in self.rows) else 2

    def _value_table(self) -> tuple[list[str], list[list[str]]]:
        labelled = self._names == 3
        lines = []
        for row in self.rows:
            better = next((value.higher_is_better for value in row.values if value), None)
            names = [row.task, metric_name(row.metric, better), *([row.label] if labelled else [])]
            lines.append([*names, *(interval(value) for value in row.values)])
        return ["task", "metric", *(["guidance"] if labelled else []), *self.runs], lines

    def _comparison_table(self) -> tuple[list[str], list[list[str]]]:
        lines = [
            [entry.task, metric_name(entry.metric), entry.label, entry.baseline, *comparison_cells(entry)]
            for entry in self.comparisons
        ]
        return ["task", "metric", "run", "against", *COMPARISON_HEADER], lines


def compare_folders(folders: Sequence[str | os.PathLike[str]]) -> RunComparison:
    """Read runs and put them side by side; each is compared with the first on the items that both have.

    Where every run has one guidance alone, those are compared whatever they are called; else the guidances of
    the same name. Items are the same where their ids are; where one run has more of them, the shared ones are
    compared.

    Args:
        folders: results folders, two or more.

    Raises:
        ValueError: there are fewer than two folders, one is named twice, or one is not textguide's.
        FileNotFoundError: one holds no finished run.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} run given; name two results folders or more")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("a results folder is named twice; name each run once")
    return compare_runs([read_run(path) for path in paths], _names_of(paths))


def compare_runs(runs: Sequence[RunResult], names: Sequence[str]) -> RunComparison:
    """:func:`compare_folders` for runs in memory, under these names."""
    single = all(len(run.labels) == 1 for run in runs)
    keys = dict.fromkeys(
        (result.task, "" if single else result.label, metric)
        for run in runs
        for result in run.tasks
        for metric in result.metrics
    )
    rows, found, notes = [], [], list[str]()
    for task, label, metric in keys:
        entries = [run.get(task, label or run.labels[0]) for run in runs]
        rows.append(Row(task, metric, label, tuple(entry.metrics.get(metric) if entry else None for entry in entries)))
        first = entries[0]
        for name, entry in zip(names[1:], entries[1:], strict=True):
            if first is None or entry is None:
                continue
            pair = aligned(entry, first, metric)
            if pair is None:
                notes.append(f"{task}, {metric_name(metric)}: {name} and {names[0]} {_why(entry, first, metric)}.")
                continue
            suffix = f", {label}" if label else ""
            sizes = len(entry.items[metric]), len(first.items[metric])
            comparison = compare_items(
                *pair,
                task=task,
                metric=metric,
                label=name + suffix,
                baseline=names[0] + suffix,
                confidence=runs[0].confidence,
                resamples=runs[0].resamples,
                seed=runs[0].seed,
            )
            found.append(comparison)
            if comparison.n < max(sizes):
                notes.append(
                    f"{task}, {metric_name(metric)}: {name} and {names[0]} are compared on "
                    f"the {comparison.n} items that both have, of {sizes[0]} and {sizes[1]}."
                )
    return RunComparison(
        tuple(names), tuple(rows), tuple(adjust(found)), tuple(dict.fromkeys(notes)), runs[0].confidence
    )


def _why(entry: TaskResult, first: TaskResult, metric: str) -> str:
    if metric not in entry.items or metric not in first.items:
        return "have no values an item for it, so no paired test was made"
    if not (np.isfinite(entry.items[metric]).all() and np.isfinite(first.items[metric]).all()):
        return "have an item of infinite value, so no paired test was made"
    return "share no items that are known to be the same, so no paired test was made"


def _names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
