"""What pictures are drawn with: one look, curves that carry their names, intervals as bands, labels beside each other.

Pictures are at most :data:`WIDTH` inches wide, so that their texts can be read where a page shows them 600 pixels wide.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from textguide.support.errors import MissingExtraError
from textguide.support.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's colours, told apart with any kind of colour vision; the markers tell them apart in grey.
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
    "svg.hashsalt": "textguide",
    # A task's name may hold a dollar sign.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Point:
    """A value with its interval.

    Args:
        x: where it stands.
        value: what was measured.
        low, high: ends of the interval; None where it has none.
        name: what is written beside it.
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
        """The interval, or the value twice."""
        return (self.value if self.low is None else self.low), (self.value if self.high is None else self.high)


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


def grid(count: int, height: float, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of ``height`` inches, at most two beside each other where ``columns`` is None."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(count, 2) if columns is None else columns
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=(WIDTH, height * rows + 0.25), layout=layout)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def draw_level(axes: Axes, value: float, low: float | None, high: float | None) -> None:
    """What is compared with, as a dashed line with its interval; :func:`name_lines` writes its name."""
    axes.axhline(value, color=GREY, linestyle="--", linewidth=1.2)
    if low is not None and high is not None:
        axes.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)


def draw_curve(axes: Axes, points: Sequence[Point], index: int, band: float = 0.18) -> None:
    """A line through ``points``, with a band through the ends of their intervals.

    Args:
        index: chooses colour and marker.
        band: how opaque the band is.
    """
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    x = [point.x for point in points]
    low, high = zip(*(point.ends for point in points), strict=True)
    axes.plot(x, [point.value for point in points], color=colour, marker=marker, markersize=4.5, linewidth=1.7)
    axes.fill_between(x, low, high, color=colour, alpha=band, linewidth=0)


def name_lines(axes: Axes, names: Iterable[tuple[str, float, str]], size: float = 9.5) -> None:
    """Write the names of lines to the right of the panel, at the height of their ends and never on each other.

    Args:
        names: name, height of the end in data coordinates, colour.
        size: of the font, in points.
    """
    bottom, top = axes.get_ylim()
    height = axes.get_figure().get_size_inches()[1] * 72 * axes.get_position().height  # type: ignore[union-attr]
    step = 1.25 * size / max(height, 1.0)
    ordered = sorted(names, key=lambda one: one[1])
    places = [min(1.0, max(0.0, (value - bottom) / (top - bottom))) for _, value, _ in ordered]
    for place, (name, _, colour) in zip(spread(places, step), ordered, strict=True):
        axes.annotate(
            name, (1.0, place), xycoords="axes fraction", xytext=(5, 0), textcoords="offset points", va="center",
            color=colour, fontsize=size, annotation_clip=False,
        )  # fmt: skip


def spread(places: Sequence[float], step: float) -> list[float]:
    """Heights close to ``places``, which are in order, that are ``step`` apart.

    Neighbours that are too close form a group whose middle stays where it is.
    """
    groups: list[tuple[float, int]] = []  # middle, members
    for place in places:
        middle, members = place, 1
        while groups:
            before, count = groups[-1]
            if middle - before >= step * (members + count) / 2:
                break
            groups.pop()
            middle = (middle * members + before * count) / (members + count)
            members += count
        groups.append((middle, members))
    return [middle + step * (n - (members - 1) / 2) for middle, members in groups for n in range(members)]


def set_ticks(axes: Axes, places: Iterable[float], inches: float, size: float = 9.5) -> None:
    """Ticks at all of ``places``, with numbers at those that have room for one; the ends come first.

    Args:
        inches: how wide the axis is, about.
        size: of the font, in points.
    """
    ordered = sorted(set(places))
    if not ordered:
        return
    width = (ordered[-1] - ordered[0]) or 1.0
    kept: list[float] = []

    def fits(place: float) -> bool:
        room = [(len(f"{place:g}") + len(f"{other:g}")) / 2 * 0.62 * size + 5 for other in kept]
        return all(abs(place - other) / width * inches * 72 >= need for other, need in zip(kept, room, strict=True))

    # The first and the last, then whole and half numbers, then the others.
    for place in [ordered[0], ordered[-1], *sorted(ordered[1:-1], key=lambda one: (one * 2 % 1 != 0, one))]:
        if fits(place):
            kept.append(place)
    axes.set_xticks(sorted(kept), [f"{place:g}" for place in sorted(kept)])
    axes.set_xticks([place for place in ordered if place not in kept], minor=True)


def set_log_ticks(axes: Axes) -> None:
    """A logarithmic x axis whose numbers are few, round and of one size."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    wide: tuple[float, ...] = (1,) if high / low > 300 else (1, 3) if high / low > 20 else (1, 1.5, 2, 3, 5, 7)
    steps = wide if high / low > 2 else (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    round_numbers = [base * 10.0**power for power in range(-4, 7) for base in steps]
    axes.xaxis.set_major_locator(FixedLocator([number for number in round_numbers if low <= number <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_fronts(axes: Axes, families: Mapping[str, Sequence[Point]], log: bool = False) -> None:
    """Two measures against each other: a line a family, a pale cross of intervals and a name at every point.

    Args:
        families: the name of each line → its points; the name is written beside its last point.
        log: x on a logarithmic axis.
    """
    labels: list[tuple[Point, str, str]] = []
    for index, (family, points) in enumerate(families.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        for point in points:
            axes.plot([point.x, point.x], point.ends, color=colour, alpha=0.3, linewidth=2.2, solid_capstyle="butt")
            if point.across is not None:
                y = [point.value, point.value]
                axes.plot(point.across, y, color=colour, alpha=0.3, linewidth=2.2, solid_capstyle="butt")
            labels.append((point, point.name, colour))
        x, y = [point.x for point in points], [point.value for point in points]
        axes.plot(x, y, color=colour, marker=marker, markersize=5.5, linewidth=1.7, label=family)
    if log:
        set_log_ticks(axes)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), fontsize=9.5, ncols=2 if max(map(len, families)) < 24 else 1
    )
    _place_labels(axes, labels)


def _place_labels(axes: Axes, labels: Sequence[tuple[Point, str, str]], size: float = 8.5) -> None:
    """Write each label beside its point, where it hides the fewest points and other labels."""
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure()
    assert figure is not None
    figure.draw_without_rendering()  # type: ignore[union-attr]
    to_pixels, scale = axes.transData.transform, figure.dpi / 72
    points = [tuple(to_pixels((point.x, point.value))) for point, _, _ in labels]
    taken: list[tuple[float, float, float, float]] = []
    for (point, text, colour), (x, y) in zip(labels, points, strict=True):
        if not text:
            continue
        wide, high = 0.6 * size * len(text) * scale, 1.1 * size * scale
        best: tuple[float, tuple[float, float], tuple[float, float, float, float]] | None = None
        for number, (dx, dy) in enumerate(_AROUND):
            left = x + dx * scale - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            low = y + dy * scale - high / 2
            box = (left, low, left + wide, low + high)
            hidden: float = sum(_overlap(box, other) for other in taken)
            near = 4 * scale
            hidden += sum(
                60.0 * scale
                for px, py in points
                if box[0] - near < px < box[2] + near and box[1] - near < py < box[3] + near
            )
            if best is None or hidden + 0.01 * number < best[0]:
                best = (hidden + 0.01 * number, (dx, dy), box)
        assert best is not None
        _, (dx, dy), box = best
        taken.append(box)
        axes.annotate(
            text, (point.x, point.value), xytext=(dx, dy), textcoords="offset points", fontsize=size, color=colour,
            ha="right" if dx < 0 else "center" if dx == 0 else "left", va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


_AROUND: tuple[tuple[float, float], ...] = (
    (6, 8),
    (6, -8),
    (-6, 8),
    (-6, -8),
    (0, 12),
    (0, -12),
    (8, 0),
    (-8, 0),
    (6, 18),
    (-6, 18),
    (6, -18),
    (-6, -18),
)
"""Where a label may stand beside its point, in points."""


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def draw_rows(
    axes: Axes, rows: Sequence[tuple[str, Point | None]], level: Point | None, colour: str = COLOURS[0]
) -> None:
    """Settings below each other, a value and its interval on each row; a row without a point stays empty.

    Args:
        rows: name of the setting and its value; ``x`` is not used.
        level: what they are compared with, as a dashed line.
    """
    if level is not None:
        axes.axvline(level.value, color=GREY, linestyle="--", linewidth=1.2)
        axes.axvspan(*level.ends, color=GREY, alpha=0.12, linewidth=0)
    for place, (_, point) in enumerate(rows):
        if point is not None:
            axes.plot(point.ends, [place, place], color=colour, alpha=0.35, linewidth=4, solid_capstyle="butt")
            axes.plot([point.value], [place], marker="o", markersize=4, color=colour)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def short(text: str, most: int = 36) -> str:
    """``text``, cut to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
