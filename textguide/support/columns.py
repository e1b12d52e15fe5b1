"""Recognise a first line that names columns in a file whose lines are texts."""

from __future__ import annotations

from collections.abc import Sequence

COLUMN_NAMES = frozenset({
    "text", "texts", "sentence", "sentences", "prompt", "prompts", "completion", "completions",
    "response", "responses", "caption", "captions", "positive", "negative", "pos", "neg",
    "chosen", "rejected", "label", "labels", "class", "target", "image", "image_name",
    "file", "file_name", "filename", "id", "comment",
})  # fmt: skip
"""Names of columns in common data sets."""


def names_columns(cells: Sequence[str]) -> bool:
    """Whether every cell of a line is the name of a column, such as ``positive`` and ``negative``."""
    return bool(cells) and all(cell.strip().strip('"').lower() in COLUMN_NAMES for cell in cells)
