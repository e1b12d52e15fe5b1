"""Pictures of a run: its primary metrics against γ, what flipped, calibration. Drawn without a display and without
pyplot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results.run import aligned
from ..statistics.intervals import calibration_bins, expected_calibration_error, flip_matrix, is_binary
from . import drawing
from .drawing import COLOURS, GREY, MARKERS, Point, available, require, save, short, styled
from .markdown import MOST_TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..results.run import RunResult, TaskResult

__all__ = ["available", "draw_calibration", "draw_flips", "draw_values", "require", "save", "save_all", "styled"]

MOST = 3
"""Settings whose calibration one picture tells apart."""
FEWEST = 10
"""Items of a bin of the calibration; the accuracy of fewer is noise."""
TITLES = {
    "acc": "accuracy", "acc_norm": "accuracy, length-normalised", "acc_prior_matched": "accuracy, prior matched",
    "exact_match": "exact match", "distinct_2": "distinct-2", "word_perplexity": "perplexity of words",
}  # fmt: skip
"""Metrics as an axis names them."""


def save_all(run: RunResult, folder: Path, svg: bool = False) -> list[str]:
    """Draw what the run has data for; returns the names.

    The primary metrics against γ stand in a file of the metric's name (``accuracy.png``, ``cider.png``; ``values.png``
    where the tasks have different ones), the others in ``flips.png`` and ``calibration.png``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    names = []
    for name, draw in ((_metric_of(run), draw_values), ("flips", draw_flips), ("calibration", draw_calibration)):
        figure = draw(run)
        if figure is None:
            continue
        for kind in ("png", "svg") if svg else ("png",):
            names.append(f"{name}.{kind}")
            save(figure, folder / names[-1])
    return names


def _metric_of(run: RunResult) -> str:
    """What the primary metrics are called in a file's name."""
    metrics = {result.primary.partition(",")[0] for result in run.tasks if result.task in run.task_names[:MOST_TASKS]}
    name = metrics.pop() if len(metrics) == 1 else "values"
    return "accuracy" if name == "acc" else re.sub(r"[^\w-]+", "_", name)


@styled
def draw_values(run: RunResult) -> Figure | None:
    """Each task's primary metric against γ, one panel a task; None for a single setting.

    Settings that differ in γ alone are joined by a line, with a band through their intervals. Where one has no γ, all
    stand below each other under their names.
    """
    tasks = run.task_names[:MOST_TASKS]
    if len(run.labels) < 2 or not tasks:
        return None
    named = any(result.scale is None for result in run.tasks if result.label != run.plain_label)
    return _draw_named(run, tasks) if named else _draw_scales(run, tasks)


def _draw_scales(run: RunResult, tasks: Sequence[str]) -> Figure:
    families = _families(run)
    figure, panels = drawing.grid(len(tasks), 3.3 if len(tasks) == 1 else 2.5)
    for task, axes in zip(tasks, panels, strict=True):
        entries = {result.label: result for result in run.tasks if result.task == task}
        base = entries.get(run.plain_label or "")
        names = []
        if base is not None and (level := _point(base)) is not None:
            drawing.draw_level(axes, level.value, level.low, level.high)
            names.append(("plain", level.value, GREY))
        ticks = {1.0} if base is not None and base.scale == 1.0 else set()
        for index, (family, labels) in enumerate(families.items()):
            members = [entries[label] for label in labels if label in entries]
            if base is not None and base.scale == 1.0:
                members.append(base)  # at γ = 1 every guided curve is the plain setting
            points = sorted(filter(None, map(_point, members)), key=lambda point: point.x)
            if points:
                drawing.draw_curve(axes, points, index)
                names.append((short(family, 22), points[-1].value, COLOURS[index % len(COLOURS)]))
                ticks |= {point.x for point in points}
        drawing.set_ticks(axes, ticks, 4.6 if len(tasks) == 1 else 1.9)
        axes.locator_params(axis="y", nbins=5)
        axes.set_title(_title(next(iter(entries.values()))), fontsize=10.5 if len(tasks) == 1 else 9.5)
        axes.set_xlabel("guidance scale γ")
        axes.set_ylabel(_axis(next(iter(entries.values()))))
        drawing.name_lines(axes, names)
    figure.supxlabel(f"bands: {run.confidence:.0%} intervals", fontsize=8.5, color=GREY, x=0.99, ha="right")
    return figure


def _draw_named(run: RunResult, tasks: Sequence[str]) -> Figure:
    labels = [label for label in run.labels if label != run.plain_label]
    columns = min(len(tasks), 3)
    figure, panels = drawing.grid(len(tasks), 0.8 + 0.185 * len(labels), columns)
    for number, (task, axes) in enumerate(zip(tasks, panels, strict=True)):
        entries = {result.label: result for result in run.tasks if result.task == task}
        base = entries.get(run.plain_label or "")
        rows = [(short(label, 34), _point(entries[label]) if label in entries else None) for label in labels]
        drawing.draw_rows(axes, rows, None if base is None else _point(base))
        axes.tick_params(axis="y", labelsize=8.5)
        if number % columns:
            axes.set_yticklabels([])
        axes.locator_params(axis="x", nbins=4 if columns > 1 else 7)
        title = _title(next(iter(entries.values()))) if columns < 3 else task
        axes.set_title(short(title, 66 // columns), fontsize=9.5 if columns > 1 else 10.5)
        axes.set_xlabel(_axis(next(iter(entries.values()))), fontsize=9)
    note = f"bars: {run.confidence:.0%} intervals" + ("; dashed: plain" if run.plain_label is not None else "")
    figure.supxlabel(note, fontsize=8.5, color=GREY, x=0.99, ha="right")
    return figure


@styled
def draw_flips(run: RunResult, labels: Sequence[str] | None = None) -> Figure | None:
    """How many items guidance made right (to the right) and wrong (to the left); a panel a task, a row a setting.

    Settings that change no answer of a task, such as γ = 1, have no row.

    Args:
        run: the run.
        labels: the settings to show; None: all, or eight from across the sweep where there are more.

    Returns:
        None where no task has a plain setting and items that are right or wrong, or nothing changed.
    """
    found: dict[str, list[tuple[str, int, int, int]]] = {}
    shown = labels if labels is not None else _across([x for x in run.labels if x != run.plain_label], 8)
    for task in run.task_names[:MOST_TASKS]:
        base = run.get(task, run.plain_label) if run.plain_label is not None else None
        for label in shown:
            guided = run.get(task, label)
            pair = aligned(base, guided, guided.primary) if base and guided else None
            if pair is not None and is_binary(pair[0]) and is_binary(pair[1]):
                matrix = flip_matrix(*pair)
                gained, lost = int(matrix[0, 1]), int(matrix[1, 0])
                if guided and (gained or lost):
                    found.setdefault(task + _which(guided), []).append((label, gained, lost, int(matrix.sum())))
    if not found:
        return None
    most = max(len(rows) for rows in found.values())
    figure, panels = drawing.grid(len(found), 0.85 + 0.24 * most)
    for (task, rows), axes in zip(found.items(), panels, strict=True):
        for place, (_, gained, lost, _) in enumerate(rows):
            axes.barh(place, gained, color=COLOURS[0], height=0.62)
            axes.barh(place, -lost, color=COLOURS[1], height=0.62)
            axes.annotate(f"+{gained}", (gained, place), xytext=(3, 0), textcoords="offset points", va="center",
                          fontsize=8.5, color=COLOURS[0])  # fmt: skip
            axes.annotate(f"−{lost}", (-lost, place), xytext=(-3, 0), textcoords="offset points", va="center",
                          ha="right", fontsize=8.5, color=COLOURS[1])  # fmt: skip
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.margins(x=0.45 if len(found) > 1 else 0.2)
        axes.set_ylim(most - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [short(label, 24) for label, *_ in rows], fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_title(f"{short(task, 22 if len(found) > 1 else 40)}, {rows[0][3]:,} items", fontsize=9.5)
    figure.supxlabel("items that guidance made wrong (left) and right (right)", fontsize=9)
    return figure


@styled
def draw_calibration(run: RunResult, bins: int = 10) -> Figure | None:
    """Accuracy against confidence in ``bins`` equal parts, one panel a task; None where confidences are not known.

    A marker's area grows with its share of the items; bins of fewer than :data:`FEWEST` items are left out.
    """
    found: dict[str, list[TaskResult]] = {}
    shown = _across(run.labels, MOST)
    tasks = run.task_names[:MOST_TASKS]
    for result in (entry for entry in run.tasks if entry.task in tasks):
        correct = result.items.get(result.primary)
        if result.label in shown and result.confidences is not None and correct is not None and is_binary(correct):
            found.setdefault(result.task, []).append(result)
    if not found:
        return None
    figure, panels = drawing.grid(len(found), 3.4)
    for (task, entries), axes in zip(found.items(), panels, strict=True):
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        for entry in entries:
            index = shown.index(entry.label)
            correct = entry.items[entry.primary]
            assert entry.confidences is not None
            known = np.isfinite(entry.confidences)
            if not known.any():
                continue
            confidences, correct = entry.confidences[known], correct[known]
            error = expected_calibration_error(confidences, correct, bins)
            colour, marker = COLOURS[index], MARKERS[index]
            parts = [part for part in calibration_bins(confidences, correct, bins) if part[2] >= FEWEST]
            if parts:
                x, y, counts = zip(*parts, strict=True)
                axes.plot(x, y, color=colour, linewidth=1.5)
                axes.scatter(x, y, [10 + 90 * n / len(correct) for n in counts], color=colour, marker=marker, zorder=3)
            axes.annotate(
                f"{short(entry.label, 24)}: ECE {error:.3f}", (0.03, 0.97 - 0.085 * index), xycoords="axes fraction",
                color=colour, fontsize=8.5, va="top",
            )  # fmt: skip
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_title(short(task, 26))
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
    figure.supxlabel(
        f"dashed: as right as it is sure; marker area: share of the items; bins below {FEWEST} items left out",
        fontsize=8, color=GREY,
    )  # fmt: skip
    return figure


def _point(entry: TaskResult) -> Point | None:
    value = entry.metrics.get(entry.primary)
    if value is None or value.value is None:
        return None
    return Point(0.0 if entry.scale is None else entry.scale, value.value, value.low, value.high)


def _title(entry: TaskResult) -> str:
    items = entry.metrics[entry.primary].n
    return f"{short(entry.task, 22)}, {items:,} items" if items else short(entry.task)


def _axis(entry: TaskResult) -> str:
    """The metric in words, with an arrow towards the better."""
    metric = entry.primary.partition(",")[0]
    shown = TITLES.get(metric, metric.replace("_", " ")) + _which(entry)
    return f"{shown} {'↑' if entry.metrics[entry.primary].higher_is_better else '↓'}"


def _which(entry: TaskResult) -> str:
    """How the answers of the primary metric were read, where others of its name read them otherwise."""
    metric, _, read = entry.primary.partition(",")
    several = sum(key.partition(",")[0] == metric for key in entry.metrics) > 1
    return f" ({read})" if several else ""


def _families(run: RunResult) -> dict[str, list[str]]:
    """Names of the curves and the settings on them: those whose guidances differ in scale alone.

    A curve is named by its method, and by the fields in which the curves of that method differ.
    """
    curves: dict[str, list[str]] = {}
    for label, guidance in run.guidances.items():
        if label != run.plain_label:
            rest = {key: value for key, value in (guidance or {}).items() if key != "scale"}
            curves.setdefault(json.dumps(rest, sort_keys=True), []).append(label)
    settings = [json.loads(text) for text in curves]
    names: dict[str, list[str]] = {}
    for values, labels in zip(settings, curves.values(), strict=True):
        alike = [one for one in settings if one.get("method") == values.get("method")]
        differs = [
            f"{key}={_value(value)}"
            for key, value in values.items()
            if key != "method" and value is not None and any(one.get(key) != value for one in alike)
        ]
        names[" ".join([str(values.get("method", "guided")), *differs])] = labels
    return names


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _across(labels: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of the labels, evenly spread, the first and the last among them."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(index * (len(labels) - 1) / (most - 1))] for index in range(most)]
