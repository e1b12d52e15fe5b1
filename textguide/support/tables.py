"""Tables that fit a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_BORDER = 3
"""Characters that the border adds to every column."""


def in_blocks(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], names: int, width: int) -> list[Table]:
    """One table, or several below each other if its columns do not fit; each of them repeats the first columns.

    Args:
        title: title of the first table.
        header: names of the columns; a name may have several lines.
        rows: the cells.
        names: number of columns, from the left, that name a row. If they are wide they are merged into one column, a
            line each, and broken between words. Other columns are never broken.
        width: width of the terminal in characters.
    """
    sizes = _column_sizes(header, rows)
    widest = max((size + _BORDER for size in sizes[names:]), default=0)
    natural = sum(sizes[:names]) + _BORDER * names + 1
    room = max(width - 2 * widest, width // 3)
    if names > 1 and natural > room:
        header, *rows = [["\n".join(row[:names]), *row[names:]] for row in (header, *rows)]
        return in_blocks(title, header, rows, 1, width)
    name_width = min(natural, room)
    tables: list[Table] = []
    for columns in _blocks(sizes, names, name_width, width):
        table = _table(header, rows, names, columns, name_width)
        table.title = None if tables else title
        tables.append(table)
    return tables


def _column_sizes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Characters of the longest line in each column."""
    sizes = []
    for column, name in enumerate(header):
        cells = [name, *(row[column] for row in rows)]
        sizes.append(max(len(line) for cell in cells for line in cell.split("\n")))
    return sizes


def _blocks(sizes: Sequence[int], names: int, name_width: int, width: int) -> list[list[int]]:
    """Columns after the first ``names``, in groups that fit ``width`` next to these."""
    blocks: list[list[int]] = [[]]
    used = name_width
    for column in range(names, len(sizes)):
        size = sizes[column] + _BORDER
        if blocks[-1] and used + size > width:
            blocks.append([])
            used = name_width
        blocks[-1].append(column)
        used += size
    return blocks


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], names: int, columns: Sequence[int], name_width: int
) -> Table:
    from rich.table import Table

    table = Table()
    for column in range(names):
        limit = name_width - 1 - _BORDER if names == 1 else None
        table.add_column(header[column], overflow="fold", max_width=limit)
    for column in columns:
        table.add_column(header[column], justify="right", overflow="fold", no_wrap=True)
    for row in rows:
        # A square bracket would start a markup tag of rich.
        table.add_row(*(row[column].replace("[", "\\[") for column in (*range(names), *columns)))
    return table


def of_plan(
    title: str, names: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[float]]], total: str
) -> Table:
    """A table of the cost of work, with the sum of all rows.

    Args:
        title: title of the table.
        names: names of the first columns.
        rows: for each piece of work the cells of the first columns, and its passes, tokens and hours; without
            numbers if it is done.
        total: name of the last row.
    """
    from rich.table import Table

    table = Table(*names, title=title)
    for name in ("passes", "tokens", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for cells, numbers in rows:
        table.add_row(*cells, *_numbers(numbers))
    costs = [numbers for _, numbers in rows if numbers]
    table.add_section()
    table.add_row(total, *[""] * (len(names) - 1), *_numbers([sum(column) for column in zip(*costs, strict=True)]))
    return table


def _numbers(values: Sequence[float]) -> list[str]:
    """Passes, tokens and hours as they are printed."""
    if not values:
        return ["–", "–", "–"]
    passes, tokens, hours = values
    return [f"{passes:,.0f}", f"{tokens:,.0f}", f"{hours:.2f}" if hours >= 0.1 else f"{hours:.1g}"]
