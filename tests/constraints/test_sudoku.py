"""The rules of Sudoku, against rows, columns and boxes written out."""

from __future__ import annotations

import random

import pytest

from textguide.constraints.sudoku import BOX_WIDTH, conflict, peers


def plain_conflict(grid: str, side: int) -> bool:
    """Whether two cells of one row, column or box have the same digit."""
    width = BOX_WIDTH[side]
    height = side // width
    for a in range(side * side):
        for b in range(a):
            rows, columns = {a // side, b // side}, {a % side, b % side}
            boxes = {(row // height, column // width) for row, column in (divmod(a, side), divmod(b, side))}
            if grid[a] == grid[b] != "0" and 1 in (len(rows), len(columns), len(boxes)):
                return True
    return False


@pytest.mark.parametrize("side", [4, 6, 9])
def test_a_conflict_is_a_digit_twice_in_a_row_a_column_or_a_box(side: int) -> None:
    chance = random.Random(side)
    seen = set()
    for _ in range(400):
        cells = ["0"] * side * side
        for cell in chance.sample(range(side * side), chance.randint(1, 5)):
            cells[cell] = str(chance.randint(1, side))
        grid = "".join(cells)
        found = conflict(grid, side)
        assert (found is not None) == plain_conflict(grid, side), grid
        seen.add(found if found is None else found.split()[0])
    assert seen == {None, "row", "column", "box"}


def test_a_conflict_names_the_row_and_the_digit() -> None:
    assert conflict("1111222233334444", 4) == "row 1 has 1 more than once"
    assert conflict("1000010000000000", 4) == "box 1 has 1 more than once"
    assert conflict("0000000000000000", 4) is None


@pytest.mark.parametrize(("side", "others"), [(4, 7), (6, 12), (9, 20)])
def test_the_peers_of_a_cell(side: int, others: int) -> None:
    for cell, its in enumerate(peers(side)):
        assert len(set(its)) == len(its) == others
        assert cell not in its
