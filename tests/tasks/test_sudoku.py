"""Sudoku: grids, unique solutions, the split, and the task's results."""

from __future__ import annotations

import itertools

import pytest

from textguide.tasks import sudoku


def plain_check(grid: str, side: int, width: int) -> bool:
    """Rows, columns and boxes written out."""
    cells = [grid[i * side : (i + 1) * side] for i in range(side)]
    digits = set("123456"[:side])
    columns = ["".join(row[c] for row in cells) for c in range(side)]
    boxes = [
        "".join(cells[r + i][c + j] for i in range(2) for j in range(width))
        for r in range(0, side, 2)
        for c in range(0, side, width)
    ]
    return all(set(unit) == digits for unit in [*cells, *columns, *boxes])


def test_all_grids_of_four() -> None:
    found = sudoku.solutions("0" * 16, limit=1000)
    assert len(found) == len(set(found)) == 288
    assert all(plain_check(grid, 4, 2) for grid in found)
    assert 30 < sum(map(sudoku.held_out, found)) < 70


@pytest.mark.parametrize(("side", "width"), [(4, 2), (6, 3)])
def test_puzzles_have_one_solution(side: int, width: int) -> None:
    pairs = sudoku.puzzles(side, 20, sudoku.TEST_CLUES[side], seed=3)
    assert len({puzzle for puzzle, _ in pairs}) == 20
    for puzzle, grid in pairs:
        assert plain_check(grid, side, width)
        assert sudoku.held_out(grid)
        assert sudoku.solutions(puzzle, limit=5) == [grid]
        assert sudoku.is_solution(puzzle, grid)
    training = sudoku.puzzles(side, 20, sudoku.TEST_CLUES[side], 3, lambda grid: not sudoku.held_out(grid))
    assert not any(sudoku.held_out(grid) for _, grid in training)


def test_wrong_answers() -> None:
    puzzle, grid = sudoku.puzzles(4, 1, (6, 6), seed=0)[0]
    for wrong in ("", "1", grid[:-1], grid[1:] + grid[0], "1" * 16, grid.replace("1", "x"), puzzle):
        assert not sudoku.is_solution(puzzle, wrong)
    other = next(g for g in map("".join, itertools.permutations(["1234", "3412", "2143", "4321"])) if g != grid)
    assert not sudoku.is_solution(puzzle, other)
    assert sudoku.results({"puzzle": puzzle, "solution": grid}, [grid]) == {"solved": 1.0, "cells": 1.0}
    assert sudoku.correct_cells("1234", "1243") == 0.5


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="has 3 cells; a puzzle has 16, 36 or 81"):
        sudoku.solutions("000")
    with pytest.raises(ValueError, match="only 0 puzzles with 0 to 0 clues"):
        sudoku.puzzles(4, 1, (0, 0), seed=0)
    assert sudoku.solutions("11" + "0" * 14) == []
