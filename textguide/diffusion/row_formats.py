"""Rows of models that read and fill only one kind of text, such as the bundled Sudoku models.

The configuration of such a model states its format (``textguide_format``), so that every way to run it refuses rows
that it cannot read, and reports whether the filled rows are what they should be. Other models fill any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..constraints.sudoku import BOX_WIDTH, EMPTY, conflict
from .denoisers import Denoiser

Cells = Sequence[str | None]
"""The tokens of a row as texts; None for a mask."""


@dataclass(frozen=True)
class SudokuFormat:
    """Rows of Sudoku.

    Args:
        side: digits per row of a grid: 4, 6 or 9.
        has_puzzle: a row is a puzzle, with 0 for its empty cells, followed by the filled grid; else it is one grid, and
            masks are its empty cells.
    """

    side: int
    has_puzzle: bool

    @property
    def size(self) -> int:
        """Cells of a grid."""
        return self.side * self.side

    def refusal(self, cells: Cells) -> str | None:
        """Why the model cannot fill this row; None if it can."""
        expected = self.size * (2 if self.has_puzzle else 1)
        if len(cells) != expected:
            masks = sum(cell is None for cell in cells)
            return f"has {len(cells) - masks} cells and {masks} masks. {self._about()}"
        for start in range(0, expected, self.size):
            grid = cells[start : start + self.size]
            wrong = self._wrong_cell(grid, allow_empty=self.has_puzzle and start == 0)
            wrong = wrong or conflict(_as_digits(grid), self.side)
            if wrong is not None:
                return f"is not a Sudoku: {wrong}. {self._about()}"
        return self._changed_clue(cells)

    def problem(self, cells: Cells) -> str | None:
        """Why this filled row is not a solution; None if it is."""
        grid = cells[-self.size :]
        if None in grid:
            return "not all cells are filled"
        return self._wrong_cell(grid) or self._changed_clue(cells) or conflict(_as_digits(grid), self.side)

    def _about(self) -> str:
        digits = f"digits 1 to {self.side}"
        if self.has_puzzle:
            return (
                f"This model reads a puzzle of {self.size} cells ({digits}, {EMPTY} for an empty cell) and fills a "
                f"grid of {self.size}; use max_new_tokens={self.size}"
            )
        return f"This model fills the masks of a grid of {self.size} cells ({digits}, a mask for an empty cell)"

    def _wrong_cell(self, grid: Cells, allow_empty: bool = False) -> str | None:
        known = {None, *map(str, range(0 if allow_empty else 1, self.side + 1))}
        number = next((number for number, cell in enumerate(grid) if cell not in known), None)
        return None if number is None else f"cell {number + 1} is {grid[number]!r}"

    def _changed_clue(self, cells: Cells) -> str | None:
        if not self.has_puzzle:
            return None
        pairs = zip(cells[: self.size], cells[self.size :], strict=True)
        for number, (clue, digit) in enumerate(pairs):
            if clue not in (None, EMPTY) and digit not in (None, clue):
                return f"cell {number + 1} is {digit}, and the puzzle has {clue} there"
        return None


def _as_digits(grid: Cells) -> str:
    return "".join(EMPTY if cell is None else cell for cell in grid)


def format_of(model: Any) -> SudokuFormat | None:
    """The format that the configuration of a transformers model states; None if its rows are any text."""
    stated = getattr(getattr(model, "config", None), "textguide_format", None)
    if not isinstance(stated, dict) or stated.get("name") != "sudoku" or stated.get("side") not in BOX_WIDTH:
        return None
    return SudokuFormat(stated["side"], bool(stated.get("has_puzzle")))


def check_rows(model: Denoiser, rows: Sequence[Sequence[int | None]], argument: str) -> None:
    """Refuse rows that the model cannot fill.

    Args:
        rows: token ids without the frame; None for a mask.
        argument: what the user calls the rows.

    Raises:
        ValueError: a row does not have the model's format; the message names it and the reason.
    """
    row_format = format_of(model.model)
    if row_format is None:
        return
    for number, row in enumerate(rows):
        reason = row_format.refusal(_cells(model, row))
        if reason is not None:
            raise ValueError(f"{argument}[{number}] {reason}")


def problems_of(model: Denoiser, rows: Sequence[Sequence[int]]) -> list[str | None]:
    """For each filled row, why it does not have the model's format (None if it has); empty if it may be any text."""
    row_format = format_of(model.model)
    return [] if row_format is None else [row_format.problem(_cells(model, row)) for row in rows]


def _cells(model: Denoiser, row: Sequence[int | None]) -> list[str | None]:
    return [None if token in (None, model.mask_id) else str(model.tokenizer.decode([token])) for token in row]
