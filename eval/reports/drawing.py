"""All pictures of the evaluation room: curves, flips and calibration of a run, captions, and the comparison of methods.

The first half of the file has the parts that every picture is made of. Pictures are at most :data:`WIDTH` inches wide,
so that their texts can be read on a page that shows them 600 pixels wide. They are drawn without pyplot, and so without
a display.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from textguide.support.checks import is_number
from textguide.support.errors import MissingExtraError
from textguide.support.files import replacing

from ..results.run import aligned
from ..statistics.intervals import calibration_bins, expected_calibration_error, flip_matrix, is_binary
from .markdown import MOST_TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..results.run import RunResult, TaskResult

P = ParamSpec("P")
R = TypeVar("R")

# The colours of Okabe and Ito can be distinguished with any kind of colour vision, and the markers in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A66F00", "#3390C4", "#303030")
MARKERS = "osD^vPX"
GREY = "#5F5F5F"
WIDTH = 6.4
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    # matplotlib makes the ids in an SVG file from this text instead of random numbers.
    "svg.hashsalt": "textguide",
    # A task's name may contain a dollar sign.
    "text.parse_math": False,
}


# Parts of pictures


@dataclass(frozen=True)
class Point:
    """A value with its interval.

    Args:
        x: its place on the x axis.
        value: what was measured.
        low, high: ends of the interval; None if there is no interval.
        name: the text next to the point.
        across: ends of an interval of ``x``.
    """

    x: float
    value: float
    low: float | None = None
    high: float | None = None
    name: str = ""
    across: tuple[float, float] | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; the value twice if there is none."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return low, high


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require() -> None:
    """Check that matplotlib is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if not available():
        raise MissingExtraError("matplotlib", "eval", "drawing plots")


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the ending of ``path``; the same figure gives the same bytes."""
    import matplotlib

    kind = path.suffix[1:]
    # Both formats would otherwise contain the date or matplotlib's version.
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE), replacing(path) as stream:
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws, so that it draws in :data:`STYLE`.

    Texts and lines read their style when they are created, so the whole function runs within it.
    """

    @functools.wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        require()
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawing


def grid(count: int, height: float, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with panels.

    Args:
        count: number of panels.
        height: height of a panel in inches.
        columns: panels per row; None: two, or one if there is only one panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(count, 2) if columns is None else columns
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=(WIDTH, height * rows + 0.25), layout=layout)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def short(text: str, most: int = 36) -> str:
    """``text``, cut to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_level(axes: Axes, value: float, low: float | None, high: float | None) -> None:
    """Draw a baseline as a dashed line with its interval; :func:`name_lines` writes its name."""
    axes.axhline(value, color=GREY, linestyle="--", linewidth=1.2)
    if low is not None and high is not None:
        axes.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)


def draw_curve(axes: Axes, points: Sequence[Point], index: int, band: float = 0.18) -> None:
    """Draw a line through ``points``, with a band through the ends of their intervals.

    Args:
        axes: the panel.
        points: from left to right.
        index: chooses colour and marker.
        band: opacity of the band.
    """
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[index % len(MARKERS)]
    x = [point.x for point in points]
    low, high = zip(*(point.ends for point in points), strict=True)
    axes.plot(x, [point.value for point in points], color=colour, marker=marker, markersize=4.5, linewidth=1.7)
    axes.fill_between(x, low, high, color=colour, alpha=band, linewidth=0)


def name_lines(axes: Axes, names: Iterable[tuple[str, float, str]], size: float = 9.5) -> None:
    """Write the names of lines to the right of the panel, at the height of their ends and without overlap.

    Args:
        axes: the panel.
        names: name, height of the end in data coordinates, colour.
        size: of the font, in points.
    """
    bottom, top = axes.get_ylim()
    height = axes.get_figure().get_size_inches()[1] * 72 * axes.get_position().height  # type: ignore[union-attr]
    step = 1.25 * size / max(height, 1.0)
    ordered = sorted(names, key=lambda line: line[1])
    heights = [min(1.0, max(0.0, (value - bottom) / (top - bottom))) for _, value, _ in ordered]
    for share, (name, _, colour) in zip(spread(heights, step), ordered, strict=True):
        axes.annotate(
            name,
            (1.0, share),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=size,
            annotation_clip=False,
        )


def spread(heights: Sequence[float], step: float) -> list[float]:
    """Move heights apart so that they differ by at least ``step``.

    Neighbours that are too close form a group, whose middle stays at the mean of its members.

    Args:
        heights: in ascending order.
        step: least distance.
    """
    groups: list[tuple[float, int]] = []  # middle, members
    for height in heights:
        middle = height
        members = 1
        while groups:
            before, count = groups[-1]
            if middle - before >= step * (members + count) / 2:
                break
            groups.pop()
            middle = (middle * members + before * count) / (members + count)
            members += count
        groups.append((middle, members))
    return [middle + step * (n - (members - 1) / 2) for middle, members in groups for n in range(members)]


def set_ticks(axes: Axes, values: Iterable[float], inches: float, size: float = 9.5) -> None:
    """Set ticks at all of ``values``, with numbers at those that have room for one.

    The first and the last value have priority, then whole and half numbers.

    Args:
        axes: the panel.
        values: on the x axis.
        inches: approximate width of the axis.
        size: of the font, in points.
    """
    ordered = sorted(set(values))
    if not ordered:
        return
    width = (ordered[-1] - ordered[0]) or 1.0
    numbered: list[float] = []

    def fits(value: float) -> bool:
        for other in numbered:
            need = (len(f"{value:g}") + len(f"{other:g}")) / 2 * 0.62 * size + 5
            if abs(value - other) / width * inches * 72 < need:
                return False
        return True

    between = sorted(ordered[1:-1], key=lambda value: (value * 2 % 1 != 0, value))
    for value in [ordered[0], ordered[-1], *between]:
        if fits(value):
            numbered.append(value)
    axes.set_xticks(sorted(numbered), [f"{value:g}" for value in sorted(numbered)])
    axes.set_xticks([value for value in ordered if value not in numbered], minor=True)


def set_log_ticks(axes: Axes) -> None:
    """Make the x axis logarithmic, with a few round numbers of one size."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps: tuple[float, ...] = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    for ratio, fewer in ((2, (1, 1.5, 2, 3, 5, 7)), (20, (1, 3)), (300, (1,))):
        if high / low > ratio:
            steps = fewer
    round_numbers = [base * 10.0**power for power in range(-4, 7) for base in steps]
    axes.xaxis.set_major_locator(FixedLocator([number for number in round_numbers if low <= number <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_fronts(axes: Axes, families: Mapping[str, Sequence[Point]], log: bool = False) -> None:
    """Draw two measures against each other: a line per family, with a pale cross of intervals and a name per point.

    Args:
        axes: the panel.
        families: the points of each line by its name, which the legend shows.
        log: use a logarithmic x axis.
    """
    labels: list[tuple[Point, str, str]] = []
    pale: dict[str, Any] = {"alpha": 0.3, "linewidth": 2.2, "solid_capstyle": "butt"}
    for index, (family, points) in enumerate(families.items()):
        colour = COLOURS[index % len(COLOURS)]
        marker = MARKERS[index % len(MARKERS)]
        for point in points:
            axes.plot([point.x, point.x], point.ends, color=colour, **pale)
            if point.across is not None:
                axes.plot(point.across, [point.value, point.value], color=colour, **pale)
            labels.append((point, point.name, colour))
        x = [point.x for point in points]
        y = [point.value for point in points]
        axes.plot(x, y, color=colour, marker=marker, markersize=5.5, linewidth=1.7, label=family)
    if log:
        set_log_ticks(axes)
    columns = 2 if max(map(len, families)) < 24 else 1
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), fontsize=9.5, ncols=columns)
    _place_labels(axes, labels)


_OFFSETS: tuple[tuple[float, float], ...] = (
    (6, 8), (6, -8), (-6, 8), (-6, -8), (0, 12), (0, -12), (8, 0), (-8, 0), (6, 18), (-6, 18), (6, -18), (-6, -18),
)  # fmt: skip
"""Positions of a label relative to its point, in points; earlier ones are preferred."""
_ALIGNMENTS = {-1.0: ("right", 1.0), 0.0: ("center", 0.5), 1.0: ("left", 0.0)}
"""By the sign of a horizontal offset: the text's alignment, and the share of its width to the left of the anchor."""


def _place_labels(axes: Axes, labels: Sequence[tuple[Point, str, str]], size: float = 8.5) -> None:
    """Write each label next to its point, at the offset at which it hides the fewest points and other labels."""
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure()
    assert figure is not None
    # The layout fixes the size of the panel, and with it the transform to pixels, only when the figure is drawn.
    figure.draw_without_rendering()  # type: ignore[union-attr]
    scale = figure.dpi / 72
    points = [tuple(axes.transData.transform((point.x, point.value))) for point, _, _ in labels]
    boxes: list[Sequence[float]] = []
    for (point, text, colour), position in zip(labels, points, strict=True):
        if not text:
            continue
        best = _best_offset(text, position, boxes, points, size, scale)
        boxes.append(_box(best, text, position, size, scale))
        axes.annotate(
            text,
            (point.x, point.value),
            xytext=_OFFSETS[best],
            textcoords="offset points",
            fontsize=size,
            color=colour,
            ha=_ALIGNMENTS[float(np.sign(_OFFSETS[best][0]))][0],
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _best_offset(
    text: str,
    position: Sequence[float],
    boxes: Sequence[Sequence[float]],
    points: Sequence[Sequence[float]],
    size: float,
    scale: float,
) -> int:
    costs = []
    for number in range(len(_OFFSETS)):
        box = _box(number, text, position, size, scale)
        costs.append(_hidden(box, boxes, points, scale) + 0.01 * number)  # the number breaks ties
    return costs.index(min(costs))


def _box(number: int, text: str, position: Sequence[float], size: float, scale: float) -> Sequence[float]:
    """Left, bottom, right and top of a label at an offset, in pixels; the width of a character is estimated."""
    dx, dy = _OFFSETS[number]
    width = 0.6 * size * len(text) * scale
    height = 1.1 * size * scale
    left = position[0] + dx * scale - _ALIGNMENTS[float(np.sign(dx))][1] * width
    bottom = position[1] + dy * scale - height / 2
    return left, bottom, left + width, bottom + height


def _hidden(
    box: Sequence[float], boxes: Sequence[Sequence[float]], points: Sequence[Sequence[float]], scale: float
) -> float:
    """The area of other labels that a box covers; a point counts as an area of 60."""
    hidden = 0.0
    for other in boxes:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        if width > 0 and height > 0:
            hidden += width * height
    margin = 4 * scale
    for x, y in points:
        if box[0] - margin < x < box[2] + margin and box[1] - margin < y < box[3] + margin:
            hidden += 60.0 * scale
    return hidden


def draw_rows(
    axes: Axes, rows: Sequence[tuple[str, Point | None]], level: Point | None, colour: str = COLOURS[0]
) -> None:
    """Draw settings as rows, each with a value and its interval.

    Args:
        axes: the panel.
        rows: name of the setting and its value, of which ``x`` is not used; None: the row stays empty.
        level: the baseline, as a dashed line; None: there is none.
        colour: of all rows.
    """
    if level is not None:
        axes.axvline(level.value, color=GREY, linestyle="--", linewidth=1.2)
        axes.axvspan(*level.ends, color=GREY, alpha=0.12, linewidth=0)
    for number, (_, point) in enumerate(rows):
        if point is not None:
            axes.plot(point.ends, [number, number], color=colour, alpha=0.35, linewidth=4, solid_capstyle="butt")
            axes.plot([point.value], [number], marker="o", markersize=4, color=colour)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _footnote(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=8.5, color=GREY, x=0.99, ha="right")


# Pictures of a run

MOST_CALIBRATED = 3
"""Settings per picture of calibration; more cannot be told apart."""
FEWEST = 10
"""Items per bin of the calibration; the accuracy of fewer is noise."""
TITLES = {
    "acc": "accuracy",
    "acc_norm": "accuracy, length-normalised",
    "acc_prior_matched": "accuracy, prior matched",
    "exact_match": "exact match",
    "distinct_2": "distinct-2",
    "word_perplexity": "perplexity of words",
}
"""Names of metrics on an axis."""


def save_run(run: RunResult, folder: Path, svg: bool = False) -> list[str]:
    """Draw every picture that the run has data for.

    The primary metrics against γ have a file named after the metric (``accuracy.png``, ``cider.png``; ``values.png`` if
    the tasks have different metrics), the others are ``flips.png`` and ``calibration.png``.

    Args:
        run: the run.
        folder: of the files.
        svg: also write SVG files.

    Returns:
        The names of the files.

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
    """The name of the primary metrics in a file name."""
    tasks = run.task_names[:MOST_TASKS]
    metrics = {result.primary.partition(",")[0] for result in run.tasks if result.task in tasks}
    name = metrics.pop() if len(metrics) == 1 else "values"
    return "accuracy" if name == "acc" else re.sub(r"[^\w-]+", "_", name)


@styled
def draw_values(run: RunResult) -> Figure | None:
    """Draw each task's primary metric against γ, one panel per task; None for a single setting.

    Settings that differ only in γ are joined by a line, with a band through their intervals. If a setting does not have
    a γ, all settings become rows with their names.
    """
    tasks = run.task_names[:MOST_TASKS]
    if len(run.labels) < 2 or not tasks:
        return None
    has_names = any(result.scale is None for result in run.tasks if result.label != run.plain_label)
    return _draw_named(run, tasks) if has_names else _draw_scales(run, tasks)


def _draw_scales(run: RunResult, tasks: Sequence[str]) -> Figure:
    families = _families(run)
    single = len(tasks) == 1
    figure, panels = grid(len(tasks), 3.3 if single else 2.5)
    for task, axes in zip(tasks, panels, strict=True):
        entries = {result.label: result for result in run.tasks if result.task == task}
        names, ticks = _draw_curves(axes, entries, families, entries.get(run.plain_label or ""))
        set_ticks(axes, ticks, 4.6 if single else 1.9)
        axes.locator_params(axis="y", nbins=5)
        first = next(iter(entries.values()))
        axes.set_title(_title(first), fontsize=10.5 if single else 9.5)
        axes.set_xlabel("guidance scale γ")
        axes.set_ylabel(_axis_name(first))
        name_lines(axes, names)
    _footnote(figure, f"bands: {run.confidence:.0%} intervals")
    return figure


def _draw_curves(
    axes: Axes, entries: Mapping[str, TaskResult], families: Mapping[str, Sequence[str]], base: TaskResult | None
) -> tuple[list[tuple[str, float, str]], set[float]]:
    """One task's curves and the level of plain decoding; returns the names of the lines, and the values of γ."""
    names = []
    level = None if base is None else _point(base)
    if level is not None:
        draw_level(axes, level.value, level.low, level.high)
        names.append(("plain", level.value, GREY))
    # At γ = 1 every guided curve passes through the plain setting.
    shared = [base] if base is not None and base.scale == 1.0 else []
    ticks = {1.0} if shared else set()
    for index, (family, labels) in enumerate(families.items()):
        members = [entries[label] for label in labels if label in entries] + shared
        points = sorted(filter(None, map(_point, members)), key=lambda point: point.x)
        if points:
            draw_curve(axes, points, index)
            names.append((short(family, 22), points[-1].value, COLOURS[index % len(COLOURS)]))
            ticks |= {point.x for point in points}
    return names, ticks


def _draw_named(run: RunResult, tasks: Sequence[str]) -> Figure:
    labels = [label for label in run.labels if label != run.plain_label]
    columns = min(len(tasks), 3)
    figure, panels = grid(len(tasks), 0.8 + 0.185 * len(labels), columns)
    for number, (task, axes) in enumerate(zip(tasks, panels, strict=True)):
        entries = {result.label: result for result in run.tasks if result.task == task}
        base = entries.get(run.plain_label or "")
        rows = [(short(label, 34), _point(entries[label]) if label in entries else None) for label in labels]
        draw_rows(axes, rows, None if base is None else _point(base))
        axes.tick_params(axis="y", labelsize=8.5)
        if number % columns:
            axes.set_yticklabels([])
        axes.locator_params(axis="x", nbins=4 if columns > 1 else 7)
        first = next(iter(entries.values()))
        title = _title(first) if columns < 3 else task
        axes.set_title(short(title, 66 // columns), fontsize=9.5 if columns > 1 else 10.5)
        axes.set_xlabel(_axis_name(first), fontsize=9)
    note = f"bars: {run.confidence:.0%} intervals"
    _footnote(figure, note if run.plain_label is None else f"{note}; dashed: plain")
    return figure


@styled
def draw_flips(run: RunResult, labels: Sequence[str] | None = None) -> Figure | None:
    """Draw how many items guidance made right (to the right) and wrong (to the left).

    There is a panel per task and a row per setting. Settings that change no answer of a task, such as γ = 1, do not
    have a row.

    Args:
        run: the run.
        labels: the settings to show; None: all, or eight from across the sweep if there are more.

    Returns:
        The figure; None if no task has a plain setting and items that are right or wrong, or if nothing changed.
    """
    shown = labels if labels is not None else _across([label for label in run.labels if label != run.plain_label], 8)
    flips: dict[str, list[tuple[str, int, int, int]]] = {}
    for task in run.task_names[:MOST_TASKS]:
        for label in shown:
            matrix = _flips(run, task, label)
            guided = run.get(task, label)
            if matrix is None or guided is None:
                continue
            gained = int(matrix[0, 1])
            lost = int(matrix[1, 0])
            if gained or lost:
                rows = flips.setdefault(task + _filter_name(guided), [])
                rows.append((label, gained, lost, int(matrix.sum())))
    if not flips:
        return None
    most = max(len(rows) for rows in flips.values())
    figure, panels = grid(len(flips), 0.85 + 0.24 * most)
    for (task, rows), axes in zip(flips.items(), panels, strict=True):
        _draw_flip_rows(axes, rows)
        axes.margins(x=0.45 if len(flips) > 1 else 0.2)
        # All panels have the height of the one with the most rows.
        axes.set_ylim(most - 0.4, -0.6)
        axes.set_title(f"{short(task, 22 if len(flips) > 1 else 40)}, {rows[0][3]:,} items", fontsize=9.5)
    figure.supxlabel("items that guidance made wrong (left) and right (right)", fontsize=9)
    return figure


def _flips(run: RunResult, task: str, label: str) -> NDArray[np.int64] | None:
    """How a setting's items changed against plain decoding; None if they are not right or wrong, or not the same."""
    base = None if run.plain_label is None else run.get(task, run.plain_label)
    guided = run.get(task, label)
    if base is None or guided is None:
        return None
    pair = aligned(base, guided, guided.primary)
    if pair is None or not is_binary(pair[0]) or not is_binary(pair[1]):
        return None
    return flip_matrix(*pair)


def _draw_flip_rows(axes: Axes, rows: Sequence[tuple[str, int, int, int]]) -> None:
    text: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
    for number, (_, gained, lost, _) in enumerate(rows):
        axes.barh(number, gained, color=COLOURS[0], height=0.62)
        axes.barh(number, -lost, color=COLOURS[1], height=0.62)
        axes.annotate(f"+{gained}", (gained, number), xytext=(3, 0), color=COLOURS[0], **text)
        axes.annotate(f"−{lost}", (-lost, number), xytext=(-3, 0), color=COLOURS[1], ha="right", **text)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [short(label, 24) for label, *_ in rows], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


@styled
def draw_calibration(run: RunResult, bins: int = 10) -> Figure | None:
    """Draw accuracy against confidence, one panel per task; None if confidences are not known.

    The area of a marker grows with its share of the items; bins of fewer than :data:`FEWEST` items are left out.

    Args:
        run: the run.
        bins: number of equal parts of [0, 1].
    """
    shown = _across(run.labels, MOST_CALIBRATED)
    tasks = run.task_names[:MOST_TASKS]
    results: dict[str, list[TaskResult]] = {}
    for result in run.tasks:
        correct = result.items.get(result.primary)
        if result.task not in tasks or result.label not in shown or result.confidences is None:
            continue
        if correct is not None and is_binary(correct):
            results.setdefault(result.task, []).append(result)
    if not results:
        return None
    figure, panels = grid(len(results), 3.4)
    for (task, entries), axes in zip(results.items(), panels, strict=True):
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        for entry in entries:
            _draw_reliability(axes, entry, shown.index(entry.label), bins)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_title(short(task, 26))
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
    note = f"dashed: perfect calibration; marker area: share of the items; bins below {FEWEST} items left out"
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


def _draw_reliability(axes: Axes, entry: TaskResult, index: int, bins: int) -> None:
    """One setting's curve of accuracy over confidence, and its calibration error as text."""
    assert entry.confidences is not None
    known = np.isfinite(entry.confidences)
    if not known.any():
        return
    confidences = entry.confidences[known]
    correct = entry.items[entry.primary][known]
    colour = COLOURS[index]
    parts = [part for part in calibration_bins(confidences, correct, bins) if part[2] >= FEWEST]
    if parts:
        x, y, counts = zip(*parts, strict=True)
        areas = [10 + 90 * count / len(correct) for count in counts]
        axes.plot(x, y, color=colour, linewidth=1.5)
        axes.scatter(x, y, areas, color=colour, marker=MARKERS[index], zorder=3)
    error = expected_calibration_error(confidences, correct, bins)
    axes.annotate(
        f"{short(entry.label, 24)}: ECE {error:.3f}",
        (0.03, 0.97 - 0.085 * index),
        xycoords="axes fraction",
        color=colour,
        fontsize=8.5,
        va="top",
    )


def _point(entry: TaskResult) -> Point | None:
    value = entry.metrics.get(entry.primary)
    if value is None or value.value is None:
        return None
    return Point(0.0 if entry.scale is None else entry.scale, value.value, value.low, value.high)


def _title(entry: TaskResult) -> str:
    items = entry.metrics[entry.primary].n
    return f"{short(entry.task, 22)}, {items:,} items" if items else short(entry.task)


def _axis_name(entry: TaskResult) -> str:
    """The primary metric in words, with an arrow that points to better values."""
    metric = entry.primary.partition(",")[0]
    name = TITLES.get(metric, metric.replace("_", " ")) + _filter_name(entry)
    return f"{name} {'↑' if entry.metrics[entry.primary].higher_is_better else '↓'}"


def _filter_name(entry: TaskResult) -> str:
    """lm-eval's filter in brackets, if several filters read the answers for the primary metric; otherwise empty."""
    metric, _, name = entry.primary.partition(",")
    several = sum(key.partition(",")[0] == metric for key in entry.metrics) > 1
    return f" ({name})" if several else ""


def _families(run: RunResult) -> dict[str, list[str]]:
    """The labels on each curve, by its name: settings that differ only in scale are on one curve.

    A curve's name is its method, followed by the fields in which the curves of this method differ.
    """
    curves: dict[str, list[str]] = {}
    for label, guidance in run.guidances.items():
        if label != run.plain_label:
            rest = {key: value for key, value in (guidance or {}).items() if key != "scale"}
            curves.setdefault(json.dumps(rest, sort_keys=True), []).append(label)
    settings = [json.loads(text) for text in curves]
    return {_family_name(values, settings): labels for values, labels in zip(settings, curves.values(), strict=True)}


def _family_name(values: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> str:
    siblings = [other for other in settings if other.get("method") == values.get("method")]
    parts = [str(values.get("method", "guided"))]
    for key, value in values.items():
        if key == "method" or value is None or all(other.get(key) == value for other in siblings):
            continue
        parts.append(f"{key}={value:g}" if is_number(value) else f"{key}={value}")
    return " ".join(parts)


def _across(labels: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of the labels, evenly spread, including the first and the last."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(index * (len(labels) - 1) / (most - 1))] for index in range(most)]


# Pictures of captions, and of the comparison of methods


def save_trade(run: RunResult, folder: Path) -> list[str]:
    """Draw CIDEr against R@1 into ``trade.png``, one point per setting with its intervals.

    Returns:
        The names of the files: none without a judge or without matplotlib.
    """
    if not available():
        return []
    families: dict[str, list[Point]] = {}
    for result in run.tasks:
        cider = result.metrics.get("cider,none")
        recall = result.metrics.get("recall_at_1,none")
        if cider is None or recall is None or cider.value is None or recall.value is None:
            continue
        across = None if cider.low is None or cider.high is None else (cider.low, cider.high)
        family, strength = _caption_setting(result.label)
        point = Point(cider.value, recall.value, recall.low, recall.high, strength, across)
        families.setdefault(family, []).append(point)
    if not families:
        return []
    save(_draw_trade(families), folder / "trade.png")
    return ["trade.png"]


@styled
def _draw_trade(families: Mapping[str, Sequence[Point]]) -> Figure:
    figure, (axes,) = grid(1, 4.4)
    axes.set_xlabel("CIDEr: likeness to people's captions")
    axes.set_ylabel("R@1: the judge finds the picture by its caption")
    draw_fronts(axes, families)
    _footnote(figure, "pale bars: 95% intervals; γ 1 is plain")
    return figure


_STRENGTH = re.compile(r"alpha=(\S+)|^cfg (\S+)")


def _caption_setting(label: str) -> tuple[str, str]:
    """A setting's label without its strength, which is the name of its line, and the strength by itself."""
    label = "cfg 1" if label == "plain" else label
    match = _STRENGTH.search(label)
    if match is None:
        strength = "α 5" if label.startswith("lm") else ""
    else:
        strength = f"α {match[1]}" if match[1] else f"γ {match[2]}"
    family = _STRENGTH.sub(lambda match: "cfg" if match[2] else "", label).replace("  ", " ").strip()
    if family == "cfg":
        return "CFG, by γ", strength
    prompt = re.match(r"lm\b *(?:prompt=(.*))?", family)
    if prompt is not None:
        text = "language model, by α" + (f" (“{prompt[1]}”)" if prompt[1] else "")
        family = text + family[prompt.end() :]
    return family, strength


@styled
def draw_differences(comparison: Mapping[str, Any]) -> Figure:
    """Draw the differences of all methods to plain decoding with their intervals, a panel per metric.

    A method whose chosen setting changes no item is a grey ring, because there is no interval to draw.

    Args:
        comparison: the content of ``methods.json``.
    """
    columns = list(comparison["plain"])
    names = list(comparison["methods"])
    figure, panels = grid(len(columns), 0.75 + 0.165 * len(names), 3)
    for number, (axes, column) in enumerate(zip(panels, columns, strict=True)):
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
        for row, name in enumerate(names):
            cell = comparison["methods"][name].get(column)
            if cell is not None:
                _draw_difference(axes, row, cell)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names if number % 3 == 0 else [""] * len(names), fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
        task, _, metric = column.partition("/")
        axes.set_title(f"{task}\n{metric.split(',')[0].replace('_', ' ')}", fontsize=8.5)
    note = (
        "difference to plain decoding (dashed: none); bars: 95% intervals; filled: p below .05 after Holm; "
        "grey: no item changed"
    )
    figure.supxlabel(note, fontsize=7.6, color=GREY)
    return figure


def _draw_difference(axes: Axes, row: int, cell: Mapping[str, Any]) -> None:
    if cell["low"] == cell["high"] == 0:
        colour = GREY
    else:
        colour = COLOURS[1] if cell["difference"] < 0 else COLOURS[0]
    significant = cell["p_holm"] is not None and cell["p_holm"] < 0.05
    axes.plot([cell["low"], cell["high"]], [row, row], color=colour, alpha=0.35, linewidth=3.6, solid_capstyle="butt")
    axes.plot(
        cell["difference"],
        row,
        "o",
        markersize=4,
        color=colour,
        markerfacecolor=colour if significant else "white",
    )
