"""An explanation as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .token_texts import percent, visible
from .values import ExplainedStep, ExplainedText, TokenMove

LONGEST_TOKEN = 18
LONGEST_NAME = 20
ARROW = "plain → guided"
RAISED, LOWERED = ("▲", "blue"), ("▼", "red")


def show(
    explanation: ExplainedText,
    *,
    top: int | None = None,
    first: int | None = None,
    changed: bool = False,
    console: Console | None = None,
) -> None:
    """Print an explanation: one line per token that moved, with its probabilities.

    The probabilities are those in plain decoding, under guidance and in each extra branch. In a wide terminal, raised
    and lowered tokens are next to each other. In one that is too narrow for all branches, the last branches are left
    out, with a line that names them.

    Args:
        explanation: the explanation to print.
        top: number of tokens at each end of the ranking; None: all that the explanation has.
        first: the largest number of steps; None: all.
        changed: only print steps at which another token became the most likely one.
        console: the console to print to; None: standard output.
    """
    console = Console() if console is None else console
    steps = explanation.selected(first, changed)
    names = explanation.branches
    shown = len(names)
    if steps:
        table, shown = _fitting(console, steps, names, top)
        console.print(table)
    elif explanation.steps:
        console.print(Text("Guidance did not change the most likely token at any step."))
    console.print(Text(f"\n{explanation.text.strip()}\n"))
    for number, name in enumerate(names[:shown], 1):
        if _header(number, name) != name:
            console.print(Text(f"branch {number}: {name}"), style="dim")
    if shown < len(names):
        hidden = ", ".join(names[shown:])
        console.print(Text(f"the terminal is too narrow for: {hidden}; --json and --html show all"), style="dim")
    if len(steps) < len(explanation.steps):
        console.print(Text(f"{len(steps)} of {len(explanation.steps)} steps"), style="dim")
    console.print(Text(explanation.summary), style="dim")
    if explanation.note:
        console.print(Text(explanation.note), style="bold")


def _fitting(
    console: Console, steps: Sequence[ExplainedStep], names: Sequence[str], top: int | None
) -> tuple[Table, int]:
    """The widest table that fits, and how many branches it shows."""
    unbounded = console.options.update(width=10_000)
    for shown in range(len(names), -1, -1):
        for layout in (_side_by_side, _stacked, _compact):
            table = layout(steps, names[:shown], top)
            if Measurement.get(console, unbounded, table).maximum <= console.width:
                return table, shown
    return table, 0


def _side_by_side(steps: Sequence[ExplainedStep], names: Sequence[str], top: int | None) -> Table:
    """Raised tokens on the left and lowered ones on the right."""
    table = _table(["#", "written", "KL", "raised", *_values(names), "lowered", *_values(names)])
    empty = [Text()] * (2 + len(names))
    for step in steps:
        up, down = _moves(step, len(names), top)
        _add(table, step, [[*a, *b] for a, b in zip_longest(up, down, fillvalue=empty)])
    return table


def _stacked(steps: Sequence[ExplainedStep], names: Sequence[str], top: int | None) -> Table:
    """Raised tokens above lowered ones."""
    table = _table(["#", "written", "KL", "raised, lowered", *_values(names)])
    for step in steps:
        up, down = _moves(step, len(names), top)
        _add(table, step, [*up, *down])
    return table


def _compact(steps: Sequence[ExplainedStep], names: Sequence[str], top: int | None) -> Table:
    """The new token on its own lines, above the tokens that moved."""
    table = _table(["written", *_values(names)])
    for step in steps:
        left = _left(step)
        table.add_row(Text(f"{step.index + 1} {left[0][1]}", style="bold"), Text(f"KL {left[0][2]}"))
        for _, line, _ in left[1:]:
            table.add_row(line)
        up, down = _moves(step, len(names), top)
        for cells in (*up, *down):
            table.add_row(*cells)
    return table


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    left = ("written", "raised", "lowered", "raised, lowered", ARROW)
    for name in columns:
        table.add_column(Text(name), justify="left" if name in left else "right", no_wrap=True)
    return table


def _values(names: Sequence[str]) -> list[str]:
    return [ARROW, *(_header(number, name) for number, name in enumerate(names, 1))]


def _add(table: Table, step: ExplainedStep, moves: Sequence[list[Text]]) -> None:
    for start, cells in zip_longest(_left(step), moves):
        table.add_row(*(start or [Text()] * 3), *(cells or []))


def _left(step: ExplainedStep) -> list[list[Text]]:
    """Number, new token and KL; below the token, what it is compared with."""
    kl = f"{step.kl:.3f}" if step.guided else "–"
    lines = [Text(visible(step.chosen.text, LONGEST_TOKEN))]
    if step.changed:
        lines.append(Text(f"plain: {visible(step.plain_top.text, LONGEST_TOKEN)}", style="dim"))
    if step.guided and step.chosen.token != step.guided_top.token:
        lines.append(Text(f"{percent(step.chosen.plain)} → {percent(step.chosen.guided)}", style="dim"))
    return [[Text(str(step.index + 1)), lines[0], Text(kl)], *([Text(), line, Text()] for line in lines[1:])]


def _moves(step: ExplainedStep, branches: int, top: int | None) -> tuple[list[list[Text]], list[list[Text]]]:
    up = [_cells(move, *RAISED, branches) for move in step.raised[:top]]
    return up, [_cells(move, *LOWERED, branches) for move in step.lowered[:top]]


def _cells(move: TokenMove, mark: str, style: str, branches: int) -> list[Text]:
    guided = "forbidden" if move.forbidden else percent(move.guided)
    values = [percent(value) for value in move.branches[:branches]] or [""] * branches
    return [
        Text(f"{mark} {visible(move.text, LONGEST_TOKEN)}", style=style),
        Text(f"{percent(move.plain):>6} → {guided:>6}", style=style),
        *(Text(value) for value in values),
    ]


def _header(number: int, name: str) -> str:
    return name if cell_len(name) <= LONGEST_NAME else f"branch {number}"
