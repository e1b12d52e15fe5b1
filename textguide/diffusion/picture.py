"""A run as JSON values and as a page: the canvas after every step, and what A-CFG masked again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..guidance import as_guidance
from ..guidance.spec import label
from ..support import viewer
from .canvas import Canvas
from .denoisers import Denoiser, denoiser
from .results import DiffusionResult
from .sampling import CanvasStep


def picture_page(model: Any, tokenizer: Any, result: DiffusionResult, guidance: Any = None, row: int = 0) -> str:
    """The page of one row of a result that kept its history, as HTML; every text in it is escaped.

    Raises:
        ValueError: the result kept no history, or does not have such a row.
    """
    return viewer.page(picture_values(model, tokenizer, result, guidance, row))


def picture_widget(model: Any, tokenizer: Any, result: DiffusionResult, guidance: Any = None, row: int = 0) -> Any:
    """The same as a widget for notebooks (anywidget, the extra ``notebook``).

    Raises:
        ValueError: the result kept no history, or does not have such a row.
        MissingExtraError: anywidget is not installed.
    """
    return viewer.widget(picture_values(model, tokenizer, result, guidance, row))


def picture_values(
    model: Any, tokenizer: Any, result: DiffusionResult, guidance: Any = None, row: int = 0
) -> dict[str, Any]:
    """What :func:`picture_page` shows, as JSON values.

    Raises:
        ValueError: the result kept no history, or does not have such a row.
    """
    if not result.history:
        raise ValueError("the result has no history; call generate or infill with keep_history=True")
    if not 0 <= row < len(result.sequences):
        raise ValueError(f"row={row} is not one of the {len(result.sequences)} rows, which count from 0")
    reader = denoiser(model, tokenizer, probe=False)
    steps = [step for step in result.history if row in step.rows]
    empty = steps[0].ids.masked_fill(result.targets, reader.mask_id)
    picture = Picture(reader, empty[row], result.targets[row])
    return {
        "kind": "canvas",
        "label": label(as_guidance(guidance)),
        "summary": f"{result.effect}; {result.passes} forward passes for the batch",
        "cells": picture.cells,
        "steps": [picture.step(step, row) for step in steps],
        "text": result.texts[row],
        "problem": result.problems[row] if result.problems else None,
        "checked": bool(result.problems),
    }


class Picture:
    """A row of a canvas as cells, and its steps as changes of cells.

    Args:
        model: the denoiser.
        ids: the row before anything is filled, (L,).
        targets: positions that are filled, bool (L,).
    """

    def __init__(self, model: Denoiser, ids: Tensor, targets: Tensor) -> None:
        self.model = model
        self._before = ids.clone()
        last = int(targets.nonzero().max())
        padding = next((i for i in range(last + 1, len(ids)) if int(ids[i]) == model.pad_id), len(ids))
        self.length = max(last + 1, padding)
        self.cells = []
        for token, is_target in zip(ids[: self.length].tolist(), targets[: self.length].tolist(), strict=True):
            is_mask = token == model.mask_id and is_target
            self.cells.append({"text": None if is_mask else self._text(token), "given": not is_target})

    @classmethod
    def of(cls, model: Denoiser, canvas: Canvas, row: int = 0) -> Picture:
        """A row of a canvas in which nothing is filled yet."""
        return cls(model, canvas.ids[row].cpu(), canvas.target[row].cpu())

    def step(self, step: CanvasStep, row: int = 0) -> dict[str, Any]:
        """What a step did: ``filled`` (position, text, probability), ``corrected`` (positions) and ``remasked``
        (position, and the certainty by which it was chosen: those with the lowest are)."""
        ids = step.ids[row].cpu()
        written = step.committed[row] | step.corrected[row]
        changed = [i for i in range(self.length) if int(ids[i]) != int(self._before[i]) or bool(written[i])]
        self._before = ids.clone()
        filled = []
        for i in changed:
            probability = float(step.confidence[row, i]) if bool(written[i]) else None
            filled.append([i, self._text(int(ids[i])), probability])
        certainty = None if step.certainty is None else step.certainty[row]
        remasked = step.remasked[row].nonzero()[:, 0].tolist()
        return {
            "index": step.index,
            "filled": filled,
            "corrected": step.corrected[row].nonzero()[:, 0].tolist(),
            "remasked": [[i, None if certainty is None else float(certainty[i])] for i in remasked],
            "passes": step.forwards,
        }

    def _text(self, token: int) -> str:
        return str(self.model.tokenizer.decode([token]))
