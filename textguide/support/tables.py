"""Tables that fit a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_BETWEEN = 3
"""Characters that a border takes beside every column."""


def in_blocks(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], names: int, width: int) -> list[Table]:
    """One table, or several below each other where its columns do not fit: each has the first columns again.

    Args:
        title: of the first.
        header: names of the columns, which may have several lines.
        rows: the cells.
        names: how many columns, from the left, say what a row is; where they are wide they become one column, a line
            each, and are broken between words. The others are never broken.
        width: of the terminal, in characters.
    """
    from rich.table import Table

    sizes = [
        max(len(line) for cell in (header[column], *(row[column] for row in rows)) for line in cell.split("\n"))
        for column in range(len(header))
    ]
    most = max((size + _BETWEEN for size in sizes[names:]), default=0)
    natural, room = sum(sizes[:names]) + _BETWEEN * names + 1, max(width - 2 * most, width // 3)
    if names > 1 and natural > room:
        header, *rows = [["\n".join(line[:names]), *line[names:]] for line in (header, *rows)]
        return in_blocks(title, header, rows, 1, width)
    head = min(natural, room)
    blocks: list[list[int]] = [[]]
    used = head
    for column in range(names, len(header)):
        if blocks[-1] and used + sizes[column] + _BETWEEN > width:
            blocks.append([])
            used = head
        blocks[-1].append(column)
        used += sizes[column] + _BETWEEN
    tables = []
    for number, block in enumerate(blocks):
        shown = Table(title=None if number else title)
        for column in (*range(names), *block):
            is_name = column < names
            shown.add_column(
                header[column],
                justify="left" if is_name else "right",
                overflow="fold",
                no_wrap=not is_name,
                max_width=head - 1 - _BETWEEN if is_name and names == 1 else None,
            )
        for row in rows:
            shown.add_row(*(row[column].replace("[", "\\[") for column in (*range(names), *block)))
        tables.append(shown)
    return tables


def of_plan(
    title: str, names: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[float]]], total: str
) -> Table:
    """What work takes, and the sum over all of it.

    Args:
        title: of the table.
        names: of the first columns.
        rows: for each piece of work what it is, and its passes, tokens and hours; none where it is done.
        total: what the last line is called.
    """
    from rich.table import Table

    table = Table(*names, title=title)
    for name in ("passes", "tokens", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for said, numbers in rows:
        table.add_row(*said, *_numbers(numbers))
    left = [numbers for _, numbers in rows if numbers]
    table.add_section()
    table.add_row(total, *[""] * (len(names) - 1), *_numbers([sum(column) for column in zip(*left, strict=True)]))
    return table


def _numbers(values: Sequence[float]) -> list[str]:
    """Passes, tokens and hours as they are printed."""
    if not values:
        return ["–", "–", "–"]
    passes, tokens, hours = values
    return [f"{passes:,.0f}", f"{tokens:,.0f}", f"{hours:.2f}" if hours >= 0.1 else f"{hours:.1g}"]
