"""Sudoku of 4×4, 6×6 and 9×9: grids, puzzles with one solution, and the check of an answer.

A grid is a text of digits, row by row; in a puzzle ``0`` is an empty cell. Boxes are 2×2, 2 rows by 3
columns, and 3×3.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from textguide.constraints.sudoku import BOX_WIDTH, EMPTY, peers

HELD_OUT = 6
"""One grid in so many is held out: no training puzzle has it as its solution."""


TEST_CLUES = {4: (4, 8), 6: (10, 16), 9: (32, 42)}
TEST_SEED = 1000


def side_of(grid: str) -> int:
    """4, 6 or 9, by the number of cells.

    Raises:
        ValueError: it is none of them.
    """
    side = {side * side: side for side in BOX_WIDTH}.get(len(grid))
    if side is None:
        raise ValueError(f"puzzle={grid!r} has {len(grid)} cells; a puzzle has 16, 36 or 81, with 0 for an empty one")
    return side


def solutions(puzzle: str, limit: int = 2, shuffle: random.Random | None = None) -> list[str]:
    """Grids that agree with the clues of a puzzle.

    Args:
        puzzle: the grid, with 0 for an empty cell.
        limit: largest number of grids.
        shuffle: tries digits in a random order; None: in ascending order.
    """
    side = side_of(puzzle)
    others = peers(side)
    cells = [int(digit) for digit in puzzle]
    grids: list[str] = []
    for cell, digit in enumerate(cells):
        if digit > side or (digit and any(cells[peer] == digit for peer in others[cell])):
            return []

    def fill() -> None:
        cell, digits = _most_constrained(cells, others)
        if cell is None:
            grids.append("".join(map(str, cells)))
            return
        if shuffle is not None:
            shuffle.shuffle(digits)
        for digit in digits:
            cells[cell] = digit
            fill()
            if len(grids) >= limit:
                break
        cells[cell] = 0

    fill()
    return grids


def _most_constrained(cells: Sequence[int], others: Sequence[Sequence[int]]) -> tuple[int | None, list[int]]:
    """The first empty cell with the fewest digits that its peers allow, and these digits; no cell if all are filled."""
    best: int | None = None
    best_digits: list[int] = []
    for cell, digit in enumerate(cells):
        if digit:
            continue
        taken = {cells[peer] for peer in others[cell]}
        digits = [digit for digit in range(1, math.isqrt(len(cells)) + 1) if digit not in taken]
        if best is None or len(digits) < len(best_digits):
            best = cell
            best_digits = digits
            if len(digits) <= 1:  # no other cell can have fewer, except in a dead end, which is found next
                break
    return best, best_digits


def held_out(grid: str) -> bool:
    """Whether a solution grid is kept for tests: a sixth of all grids, by a hash of the grid."""
    return hashlib.sha256(grid.encode()).digest()[0] % HELD_OUT == 0


def puzzles(
    side: int, count: int, clues: tuple[int, int], seed: int, wanted: Callable[[str], bool] = held_out
) -> list[tuple[str, str]]:
    """Different puzzles with exactly one solution, each with its solution.

    Args:
        side: 4, 6 or 9.
        clues: least and greatest number of clues, both included; every number is drawn equally often before puzzles
            with several solutions are thrown away.
        seed: the same seed gives the same puzzles.
        wanted: which grids may be solutions.

    Raises:
        ValueError: so many different puzzles were not found.
    """
    chance = random.Random(seed)
    found: dict[str, str] = {}
    for _ in range(400 * count):
        if len(found) == count:
            break
        grid = solutions(EMPTY * side * side, 1, chance)[0]
        if not wanted(grid):
            continue
        shown = set(chance.sample(range(side * side), chance.randint(*clues)))
        puzzle = "".join(digit if place in shown else EMPTY for place, digit in enumerate(grid))
        if puzzle not in found and len(solutions(puzzle)) == 1:
            found[puzzle] = grid
    if len(found) < count:
        raise ValueError(f"count={count}: only {len(found)} puzzles with {clues[0]} to {clues[1]} clues were found")
    return list(found.items())


def is_solution(puzzle: str, answer: str) -> bool:
    """Whether ``answer`` is a filled grid that keeps every clue."""
    answer = answer.strip()
    if len(answer) != len(puzzle) or not answer.isdecimal() or EMPTY in answer:
        return False
    kept = all(clue in (EMPTY, digit) for clue, digit in zip(puzzle, answer, strict=True))
    return kept and bool(solutions(answer, 1))


def correct_cells(solution: str, answer: str) -> float:
    """Share of the cells that are right."""
    return sum(a == b for a, b in zip(solution, answer.strip(), strict=False)) / len(solution)


def dataset(side: int, count: int = 200) -> dict[str, Any]:
    """Held-out puzzles as a dataset for lm-eval: ``puzzle``, ``solution``."""
    import datasets

    rows = puzzles(side, count, TEST_CLUES[side], TEST_SEED)
    table = datasets.Dataset.from_list([{"puzzle": puzzle, "solution": solution} for puzzle, solution in rows])
    return {"test": table}


def four(**_: Any) -> dict[str, Any]:
    """The task ``sudoku4``."""
    return dataset(4)


def six(**_: Any) -> dict[str, Any]:
    """The task ``sudoku6``."""
    return dataset(6)


def results(doc: dict[str, str], answers: list[str]) -> dict[str, float]:
    """Whether the answer solves the puzzle, and the share of right cells."""
    return {
        "solved": float(is_solution(doc["puzzle"], answers[0])),
        "cells": correct_cells(doc["solution"], answers[0]),
    }
