"""Pictures of a run: its primary metrics against γ, what flipped, calibration. Drawn without a display and without
pyplot."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from textguide.support.errors import MissingExtraError
from textguide.support.files import replacing

from ..results.run import aligned
from ..statistics.intervals import calibration_bins, expected_calibration_error, flip_matrix, is_binary
from .markdown import MOST_TASKS, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..results.run import RunResult, TaskResult

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's colours, told apart with any kind of colour vision; the markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
GREY = "#6B6B6B"
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "svg.hashsalt": "textguide",
    # A task's name may hold a dollar sign.
    "text.parse_math": False,
}
MOST = 6
"""Settings that one picture tells apart."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require() -> None:
    """Do nothing where matplotlib is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if not available():
        raise MissingExtraError("matplotlib", "eval", "drawing plots")


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


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, as the ending of ``path`` says; the same figure gives the same bytes."""
    import matplotlib

    kind = path.suffix[1:]
    with matplotlib.rc_context(STYLE), replacing(path) as stream:
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Texts and lines take their looks when they are made, so the whole drawing happens within the style."""

    @functools.wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        require()
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawing


@styled
def draw_values(run: RunResult) -> Figure | None:
    """Each task's primary metric against γ with intervals, one panel a task; None for a single setting.

    Settings that differ in γ alone are joined by a line. Where one has no γ, all stand side by side under
    their names.
    """
    tasks = run.task_names[:MOST_TASKS]
    if len(run.labels) < 2 or not tasks:
        return None
    named = any(result.scale is None for result in run.tasks if result.label != run.plain_label)
    families = _families(run)
    figure, panels = _grid(len(tasks), (4.4, 3.3))
    for task, axes in zip(tasks, panels, strict=True):
        entries = {result.label: result for result in run.tasks if result.task == task}
        places = {label: float(index) if named else entry.scale for index, (label, entry) in enumerate(entries.items())}
        base = entries.get(run.plain_label or "")
        if base is not None:
            _draw_baseline(axes, base, places[base.label] if named else None)
        for index, (family, labels) in enumerate(families.items()):
            members = [label for label in labels if label in entries and label != run.plain_label]
            if not named and base is not None and base.scale is not None and len(families) == 1:
                # At γ = 1 the guided curve is the plain setting.
                members.append(base.label)
            points = [(place, entries[name]) for name in members if (place := places[name]) is not None]
            points.sort(key=lambda point: point[0])
            if not named and len(points) > 1:
                # Curves with the same scales stand a little apart, so that no interval hides another.
                apart = 0.012 * (points[-1][0] - points[0][0]) * (index - (len(families) - 1) / 2)
                points = [(place + apart, entry) for place, entry in points]
            _draw_curve(axes, points, index, family if len(families) > 1 else "guided", joined=not named)
        ticks = sorted({place for place in places.values() if place is not None})
        if named:
            axes.set_xticks(
                ticks,
                [_short(label, 22) for label in entries],
                rotation=30,
                ha="right",
                rotation_mode="anchor",
            )
            axes.set_xlim(-0.5, len(entries) - 0.5)
        elif len(ticks) <= 8:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        first = next(iter(entries.values()))
        axes.set_title(_short(task))
        axes.set_xlabel("guidance" if named else "guidance scale γ")
        axes.set_ylabel(metric_name(first.primary, first.metrics[first.primary].higher_is_better))
    _shared_legend(figure, panels)
    return figure


@styled
def draw_flips(run: RunResult, labels: Sequence[str] | None = None) -> Figure | None:
    """How many items went from wrong or right without guidance to wrong or right with it; a row a task.

    Args:
        run: the run.
        labels: the settings to show, a column each; None: all, or four from across the sweep where there are
            more.

    Returns:
        None where no task has a plain setting and items that are right or wrong.
    """
    cells = []
    for task in run.task_names[:MOST_TASKS]:
        base = run.get(task, run.plain_label) if run.plain_label is not None else None
        for label in labels if labels is not None else _across([x for x in run.labels if x != run.plain_label], 4):
            guided = run.get(task, label)
            pair = aligned(base, guided, guided.primary) if base and guided else None
            if pair is not None and is_binary(pair[0]) and is_binary(pair[1]):
                cells.append((task, label, flip_matrix(*pair)))
    if not cells:
        return None
    columns = max(sum(1 for cell in cells if cell[0] == task) for task in run.task_names)
    figure, panels = _grid(len(cells), (2.8, 2.95), columns)
    for (task, label, matrix), axes in zip(cells, panels, strict=True):
        total = int(matrix.sum())
        axes.imshow(matrix / total, cmap="Blues", vmin=0, vmax=1)
        for row in range(2):
            for column in range(2):
                share = matrix[row, column] / total
                axes.text(
                    column,
                    row,
                    f"{matrix[row, column]}\n{share:.1%}",
                    ha="center",
                    va="center",
                    color="white" if share > 0.6 else "black",
                )
        axes.set_xticks([0, 1], ["wrong", "right"])
        axes.set_yticks([0, 1], ["wrong", "right"], rotation=90, va="center")
        axes.set_xlabel(f"with {_short(label, 26)}")
        axes.set_ylabel("without guidance")
        axes.set_title(_short(task, 26))
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
    return figure


@styled
def draw_calibration(run: RunResult, bins: int = 10) -> Figure | None:
    """Accuracy against confidence in ``bins`` equal parts, one panel a task; None where confidences are not
    known.

    A marker's area grows with its share of the items.
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
    # A legend wider than its panel would squeeze the panel away.
    columns = 2 if max(map(len, shown)) <= 10 else 1
    height = 4.3 + 0.26 * math.ceil(max(map(len, found.values())) / columns)
    figure, panels = _grid(len(found), (4.2, height))
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
            parts = calibration_bins(confidences, correct, bins)
            error = expected_calibration_error(confidences, correct, bins)
            x, y, counts = zip(*parts, strict=True)
            colour, marker = COLOURS[index], MARKERS[index]
            axes.plot(x, y, color=colour, linewidth=1.5)
            axes.scatter(x, y, [12 + 150 * n / len(correct) for n in counts], color=colour, marker=marker, zorder=3)
            axes.plot([], [], color=colour, marker=marker, label=f"{_short(entry.label)} (ECE {error:.3f})")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title=_short(task))
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize=8.5)
    return figure


def _draw_baseline(axes: Axes, base: TaskResult, place: float | None) -> None:
    value = base.metrics[base.primary]
    if value.value is None:
        return
    axes.axhline(value.value, color=GREY, linestyle="--", linewidth=1.2, label="no guidance")
    if value.low is not None and value.high is not None:
        if place is not None:
            ends = [[value.value - value.low], [value.high - value.value]]
            axes.errorbar([place], [value.value], yerr=ends, color=GREY, marker="o", markersize=5, capsize=3)
        axes.axhspan(value.low, value.high, color=GREY, alpha=0.13, linewidth=0)


def _draw_curve(axes: Axes, points: Sequence[tuple[float, TaskResult]], index: int, label: str, joined: bool) -> None:
    drawn = [(x, entry.metrics[entry.primary]) for x, entry in points if entry.primary in entry.metrics]
    drawn = [(x, value) for x, value in drawn if value.value is not None]
    if not drawn:
        return
    values = [value.value or 0.0 for _, value in drawn]
    low = [0.0 if v.low is None else max(0.0, y - v.low) for y, (_, v) in zip(values, drawn, strict=True)]
    high = [0.0 if v.high is None else max(0.0, v.high - y) for y, (_, v) in zip(values, drawn, strict=True)]
    axes.errorbar(
        [x for x, _ in drawn],
        values,
        yerr=[low, high],
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linestyle="-" if joined else "none",
        linewidth=1.6,
        capsize=3,
        label=label,
    )


def _families(run: RunResult) -> dict[str, list[str]]:
    """Names of the curves and the settings on them: those whose guidances differ in scale alone."""
    curves: dict[str, list[str]] = {}
    for label, guidance in run.guidances.items():
        if label != run.plain_label:
            rest = {key: value for key, value in (guidance or {}).items() if key != "scale"}
            curves.setdefault(json.dumps(rest, sort_keys=True), []).append(label)
    settings = [json.loads(text) for text in curves]
    common = {key for key in set().union(*settings) if len({json.dumps(s.get(key)) for s in settings}) == 1}
    names: dict[str, list[str]] = {}
    for values, labels in zip(settings, curves.values(), strict=True):
        differs = [_short(f"{key} {value}") for key, value in values.items() if key not in common and value is not None]
        name = ", ".join(differs) or str(values.get("method", "guided"))
        names[labels[0] if len(labels) == 1 else name] = labels
    return names


def _across(labels: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of the labels, evenly spread, the first and the last among them."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(index * (len(labels) - 1) / (most - 1))] for index in range(most)]


def _grid(count: int, size: tuple[float, float], columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of ``size`` inches, at most three beside each other where ``columns`` is
    None."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(count, 3) if columns is None else columns
    rows = math.ceil(count / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout=layout)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above all panels."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        columns = max(1, round(figure.get_figwidth() / 2.2))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)


def _short(text: str, most: int = 36) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
