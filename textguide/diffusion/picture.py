"""A run as values and as a page: the canvas behind every step, and what was masked again for A-CFG, and why."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..guidance import as_guidance
from ..guidance.spec import label
from ..support import viewer
from .canvas import Canvas
from .denoisers import Denoiser, denoiser
from .generation import DiffusionResult
from .sampling import CanvasStep


def picture_page(model: Any, tokenizer: Any, result: DiffusionResult, guidance: Any = None, row: int = 0) -> str:
    """The page for one row of a result that kept its history; every text in it is escaped.

    Raises:
        ValueError: the result kept no history, or has no such row.
    """
    return viewer.page(picture_values(model, tokenizer, result, guidance, row))


def picture_widget(model: Any, tokenizer: Any, result: DiffusionResult, guidance: Any = None, row: int = 0) -> Any:
    """The same as a widget of a notebook (anywidget, the extra ``notebook``).

    Raises:
        ValueError: the result kept no history, or has no such row.
        MissingExtraError: anywidget is not installed.
    """
    return viewer.widget(picture_values(model, tokenizer, result, guidance, row))


def picture_values(
    model: Any, tokenizer: Any, result: DiffusionResult, guidance: Any = None, row: int = 0
) -> dict[str, Any]:
    """What :func:`picture_page` shows, as JSON values.

    Raises:
        ValueError: the result kept no history, or has no such row.
    """
    if not result.history:
        raise ValueError("the result has no history; call generate or infill with keep_history=True")
    if not 0 <= row < len(result.sequences):
        raise ValueError(f"row={row} is none of the {len(result.sequences)} rows; rows count from 0")
    made = denoiser(model, tokenizer, probe=False)
    steps = [step for step in result.history if row in step.rows]
    first = steps[0].ids.masked_fill(result.targets, made.mask_id)
    picture = Picture(made, first[row], result.targets[row])
    return {
        "kind": "canvas",
        "label": label(as_guidance(guidance)),
        "summary": f"{result.effect}; {result.passes} forward passes for the batch",
        "cells": picture.cells,
        "steps": [picture.step(step, row) for step in steps],
        "text": result.texts[row],
    }


class Picture:
    """One row of a canvas as JSON values, step by step.

    Args:
        model: the denoiser.
        ids: the row before anything is filled, (L,).
        targets: which positions are filled, bool (L,).
    """

    def __init__(self, model: Denoiser, ids: Tensor, targets: Tensor) -> None:
        self.model, self._before = model, ids.clone()
        last = int(targets.nonzero().max())
        tail = next((i for i in range(last + 1, len(ids)) if int(ids[i]) == model.pad_id), len(ids))
        self.length = max(last + 1, tail)
        self.cells = [
            {"text": None if int(ids[i]) == model.mask_id and bool(targets[i]) else self._text(int(ids[i])),
             "given": not bool(targets[i])}
            for i in range(self.length)
        ]  # fmt: skip

    @classmethod
    def of(cls, model: Denoiser, canvas: Canvas, row: int = 0) -> Picture:
        """Of a row of a canvas that nothing was filled in yet."""
        return cls(model, canvas.ids[row].cpu(), canvas.target[row].cpu())

    def step(self, step: CanvasStep, row: int = 0) -> dict[str, Any]:
        """What a step did: ``filled`` (position, text, probability), ``corrected`` (positions), ``remasked`` (position
        and the certainty by which it was chosen: those of the least)."""
        ids = step.ids[row].cpu()
        written = step.committed[row] | step.corrected[row]
        changed = [i for i in range(self.length) if int(ids[i]) != int(self._before[i]) or bool(written[i])]
        self._before = ids.clone()
        certainty = None if step.certainty is None else step.certainty[row]
        again = step.remasked[row].nonzero()[:, 0].tolist()
        return {
            "index": step.index,
            "filled": [
                [i, self._text(int(ids[i])), float(step.confidence[row, i]) if bool(written[i]) else None]
                for i in changed
            ],
            "corrected": step.corrected[row].nonzero()[:, 0].tolist(),
            "remasked": [[i, None if certainty is None else float(certainty[i])] for i in again],
            "passes": step.forwards,
        }

    def _text(self, token: int) -> str:
        return str(self.model.tokenizer.decode([token]))
