"""Steering vectors from contrasting texts (contrastive activation addition, arXiv 2312.06681)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .engine.branch_inputs import canonical_prompts, check_rows, encode
from .engine.model_views import residual_streams
from .forward.model_adapter import adapter
from .forward.steering_vectors import SteeringVector, model_fingerprint
from .support.checks import whole_number
from .support.columns import names_columns

__all__ = ["SteeringVector", "load", "read_pairs", "read_texts", "train"]

load = SteeringVector.load


def train(
    model: Any,
    tokenizer: Any,
    positive: Sequence[Any],
    negative: Sequence[Any],
    *,
    batch_size: int = 16,
    name: str | None = None,
    progress: Callable[[int], Any] | None = None,
) -> SteeringVector:
    """Compute a steering vector from texts: the mean activation of ``positive`` minus that of ``negative``.

    Activations are those of the residual stream after each layer at the last token. If the texts are pairs, the vector
    is the mean of the differences of the pairs (section 2). Every text is read once.

    Args:
        model: a transformers model without an encoder.
        tokenizer: its tokenizer; it may be None if the texts are token ids.
        positive: texts, token ids or chats to steer towards.
        negative: texts, token ids or chats to steer away from.
        batch_size: number of texts of the same length that are read together. Default: 16.
        name: the name of the model in error messages; default: its own name.
        progress: called with the number of texts just read.

    Returns:
        A vector (layers, width) in float32, which can be saved.

    Raises:
        ValueError: one side is empty, a text cannot be read, or the layers of the model cannot be identified.

    Example:
        >>> vector = textguide.steering.train(model, tokenizer, ["What a joy"], ["What a bore"]).save("joy")
        >>> textguide.generate(model, tokenizer, "I went to", Steering("joy", layers=0.5, strength=2.0))
    """
    whole_number("batch_size", batch_size, 1)
    sides = []
    for side, texts in (("positive", positive), ("negative", negative)):
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"{side}={texts!r} must be a list with at least one text")
        rows = [encode(prompt, tokenizer, side) for prompt in canonical_prompts(list(texts), None, tokenizer)]
        check_rows(model, rows, side, 1)
        sides.append(_mean(model, rows, batch_size, progress))
    base = adapter(model).base
    model_name = name or str(getattr(base, "name_or_path", "")) or type(base).__name__
    return SteeringVector((sides[0] - sides[1]).to(torch.float32), model_fingerprint(model), model_name)


def read_pairs(path: str | os.PathLike[str], header: bool | None = None) -> tuple[list[str], list[str]]:
    """Read a file with a positive text, a tab and a negative text on each line.

    Args:
        path: the file, in UTF-8.
        header: whether the first line names the columns. None: it does if both of its cells are names of columns, such
            as ``positive`` and ``negative``.

    Returns:
        The positive texts and the negative texts.

    Raises:
        ValueError: the file cannot be read, or a line is not a pair; the message names the line.
    """
    pairs = []
    for number, line in enumerate(_lines(path), 1):
        row = line.split("\t")
        if line.strip() and not (len(row) == 2 and all(cell.strip() for cell in row)):
            raise ValueError(f"{path}: line {number} must contain a positive text, a tab and a negative one")
        if line.strip():
            pairs.append(row)
    if pairs and (names_columns(pairs[0]) if header is None else header):
        del pairs[0]
    if not pairs:
        raise ValueError(f"{path} contains no pair; write a positive text, a tab and a negative one on each line")
    return [row[0] for row in pairs], [row[1] for row in pairs]


def read_texts(path: str | os.PathLike[str], header: bool | None = None) -> list[str]:
    """Read a file with one text on each line.

    Args:
        path: the file, in UTF-8.
        header: whether the first line names the column. None: it does if it is the name of a column, such as ``text``.

    Raises:
        ValueError: the file cannot be read, or it contains no text.
    """
    texts = [line for line in _lines(path) if line.strip()]
    if texts and (names_columns(texts[:1]) if header is None else header):
        del texts[0]
    if not texts:
        raise ValueError(f"{path} contains no text; write one on each line")
    return texts


def _lines(path: str | os.PathLike[str]) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"{path} cannot be read ({reason}); check the path") from error


def _mean(model: Any, rows: list[list[int]], batch_size: int, progress: Callable[[int], Any] | None) -> Tensor:
    """The mean over ``rows`` of the residual stream at their last tokens, (layers, width) in float64."""
    # Rows of the same length need no padding, which would change the activations of some models.
    order = sorted(rows, key=len)
    total: Tensor | float = 0.0
    start = 0
    while start < len(order):
        length = len(order[start])
        batch = [row for row in order[start : start + batch_size] if len(row) == length]
        total = total + residual_streams(model, batch)[:, :, -1].double().sum(1)
        start += len(batch)
        if progress is not None:
            progress(len(batch))
    assert isinstance(total, Tensor)
    return total / len(rows)
