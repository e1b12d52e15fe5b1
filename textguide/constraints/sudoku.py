"""The rules of Sudoku: what is wrong with a grid.

A grid is a text of digits, row by row, with ``0`` for an empty cell. Boxes are 2×2, 2 rows by 3 columns, and 3×3.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

EMPTY = "0"
BOX_WIDTH = {4: 2, 6: 3, 9: 3}
"""Columns of a box, by the side of the grid."""


@lru_cache(maxsize=3)
def units(side: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """All rows, columns and boxes: the name of each and its cells."""
    width = BOX_WIDTH[side]
    height = side // width
    found: list[tuple[str, tuple[int, ...]]] = []
    for number in range(side):
        top = number // height * height
        left = number % height * width
        box = tuple((top + row) * side + left + column for row in range(height) for column in range(width))
        found.append((f"row {number + 1}", tuple(range(number * side, (number + 1) * side))))
        found.append((f"column {number + 1}", tuple(range(number, side * side, side))))
        found.append((f"box {number + 1}", box))
    return tuple(found)


@lru_cache(maxsize=3)
def peers(side: int) -> tuple[tuple[int, ...], ...]:
    """For every cell the others in its row, column and box, in ascending order."""
    found: list[set[int]] = [set() for _ in range(side * side)]
    for _, cells in units(side):
        for cell in cells:
            found[cell].update(cells)
    return tuple(tuple(sorted(others - {cell})) for cell, others in enumerate(found))


def conflict(grid: str, side: int) -> str | None:
    """A digit that occurs twice in a row, a column or a box, as a sentence; None if there is none."""
    return next(_conflicts(grid, side), None)


def _conflicts(grid: str, side: int) -> Iterator[str]:
    for name, cells in units(side):
        digits = [grid[cell] for cell in cells if grid[cell] != EMPTY]
        twice = next((digit for digit in digits if digits.count(digit) > 1), None)
        if twice is not None:
            yield f"{name} has {twice} more than once"
