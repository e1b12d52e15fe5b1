"""What ``textguide.diffusion.generate`` and ``infill`` return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.results import before
from ..step.effect import Effect
from ..step.effect import join as join_effects
from ..support.showing import Block, Folded, Line, Shown, table
from .canvas import Canvas
from .denoisers import Denoiser
from .sampling import CanvasStep, until_end


@dataclass(frozen=True)
class DiffusionResult(Shown):
    """The result of a run; rows are prompts, in order. What it shares with the result of :func:`textguide.generate`
    has the same name there.

    Attributes:
        texts: the new text of each row up to its end token (``generate``), or the whole text (``infill``).
        sequences: token ids of the rows as they were read, padded on the right, (B, L).
        targets: positions that were filled, bool (B, L).
        steps: denoising steps of each row.
        passes: forward passes, over all models.
        rows: rows read in them, over all branches.
        tokens: positions read in them, including padding.
        effect: what guidance did.
        history: every step, if ``keep_history`` is set; else empty.
        log_weights: under particle Gibbs, the logarithm of the estimate of ``E[f^weight]`` of each row, float64 (B,);
            else None.
        new_tokens: ids that were filled in, a list per row: up to and including the end token, or the token that
            completed a text of ``stop``.
        finish_reasons: why each text ended: ``"eos"`` (its end token), ``"stop"`` (a text of ``stop``) or ``"length"``
            (the end of its canvas).
        problems: for models whose rows have one format (the bundled Sudoku models), why each text is not a solution, or
            None if it is one; empty for all other models.
    """

    texts: list[str]
    sequences: Tensor
    targets: Tensor
    steps: list[int]
    passes: int
    rows: int
    tokens: int
    effect: Effect
    history: tuple[CanvasStep, ...] = ()
    log_weights: Tensor | None = None
    new_tokens: list[list[int]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    problems: list[str | None] = field(default_factory=list)

    def _shown(self) -> tuple[str, Sequence[Block]]:
        filled = self.targets.sum(-1).tolist()
        rows = [[str(row + 1), text, str(filled[row]), str(self.steps[row])] for row, text in enumerate(self.texts)]
        blocks: list[Block] = [table(["#", "text", "positions filled", "steps"], rows, "rlrr")]
        for number, problem in enumerate(self.problems):
            blocks.append(Line(f"text {number + 1} is {verdict(problem)}"))
        if self.history:
            steps = []
            for step in self.history:
                counts = [str(int(which.sum())) for which in (step.committed, step.remasked, step.corrected)]
                steps.append([str(step.index + 1), *counts, str(step.forwards)])
            header = ["step", "filled", "masked again for A-CFG", "drawn again", "passes"]
            blocks.append(Folded(f"{len(steps)} steps", (table(header, steps, "rrrrr"),)))
        passes = f"{self.passes} forward passes over {self.rows} rows"
        blocks += [Line(passes, quiet=True), Line(str(self.effect), quiet=True)]
        return f"{len(self.texts)} text{'s' * (len(self.texts) != 1)} from masks", blocks


def verdict(problem: str | None) -> str:
    """An entry of ``problems`` for readers."""
    return "a solution" if problem is None else f"not a solution: {problem}"


@dataclass(frozen=True)
class RowText:
    """The text of one row.

    Args:
        text: without special tokens, unless it is a whole row.
        new_tokens, finish_reason: as in :class:`DiffusionResult`.
    """

    text: str
    new_tokens: list[int]
    finish_reason: str


def row_text(
    model: Denoiser, canvas: Canvas, row: int, whole: bool, stop: Sequence[str] = (), include_stop: bool = True
) -> RowText:
    """The text of a row of a filled canvas.

    Args:
        whole: the text is the whole row; else it is what was filled in, up to the end token or the first text of
            ``stop``.
        include_stop: whether that text stays, with the rest of the token that completed it.
    """
    if whole:
        text = str(model.tokenizer.decode(canvas.text_ids(row), skip_special_tokens=False))
        return RowText(text, canvas.targets(row), "length")
    tokens = canvas.targets(row)
    written = until_end(tokens, model.end_id)
    text = _decode(model, written)
    if any(one in text for one in stop):
        # The first token at which a text of stop is complete.
        count = next(n for n in range(1, len(written) + 1) if _contains(_decode(model, written[:n]), stop))
        text = _decode(model, written[:count])
        return RowText(text if include_stop else before(text, stop), written[:count], "stop")
    if len(written) < len(tokens):
        return RowText(text, tokens[: len(written) + 1], "eos")
    return RowText(text, written, "length")


def _decode(model: Denoiser, tokens: Sequence[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True))


def _contains(text: str, stop: Sequence[str]) -> bool:
    return any(one in text for one in stop)


def join_results(results: Sequence[DiffusionResult], pad_id: int) -> DiffusionResult:
    """The batches of one run as one result."""
    if len(results) == 1:
        return results[0]
    width = max(one.sequences.shape[1] for one in results)
    log_weights = [one.log_weights for one in results if one.log_weights is not None]
    return DiffusionResult(
        texts=_rows_of_all(results, "texts"),
        sequences=torch.cat([_widen(one.sequences, width, pad_id) for one in results]),
        targets=torch.cat([_widen(one.targets, width, False) for one in results]),
        steps=_rows_of_all(results, "steps"),
        passes=sum(one.passes for one in results),
        rows=sum(one.rows for one in results),
        tokens=sum(one.tokens for one in results),
        effect=join_effects([one.effect for one in results]),
        log_weights=torch.cat(log_weights) if log_weights else None,
        new_tokens=_rows_of_all(results, "new_tokens"),
        finish_reasons=_rows_of_all(results, "finish_reasons"),
        problems=_rows_of_all(results, "problems"),
    )


def _rows_of_all(results: Sequence[DiffusionResult], name: str) -> list[Any]:
    """The field ``name``, which has one entry per row, over all batches."""
    return [entry for one in results for entry in getattr(one, name)]


def _widen(rows: Tensor, width: int, value: float) -> Tensor:
    """``rows``, padded on the right to ``width`` positions."""
    return F.pad(rows, (0, width - rows.shape[1]), value=value)
