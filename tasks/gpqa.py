"""GPQA diamond (arXiv 2311.12022), decrypted in memory: no question is written to the disk.

Its authors ask that no question be shown in plain text where a crawler could find it, and publish the file
encrypted under a public password.
"""

from __future__ import annotations

import csv
import functools
import io
import random
import zipfile
from pathlib import Path
from typing import Any

import datasets

from .catalogue import data_folder
from .loaders import Splits, in_memory, local_file

_PASSWORD = b"deserted-untie-orchid"
_FILE = "gpqa/gpqa_diamond_protected.zip"
_ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def diamond(data: str | None = None, **_: Any) -> Splits:
    """The 198 questions: from the data folder's encrypted file, or streamed from the hub without one."""
    if data_folder(data) is None:
        return in_memory([_document(row) for row in _stream()], "Idavidrein/gpqa")
    path = local_file(_FILE, data)
    return in_memory(_documents(path, path.stat().st_mtime_ns), _FILE)


def _stream() -> list[dict[str, Any]]:
    # Streamed, because a plain load_dataset leaves the questions in the cache on the disk.
    return list(datasets.load_dataset("Idavidrein/gpqa", "gpqa_diamond", split="train", streaming=True))


@functools.lru_cache(maxsize=1)
def _documents(path: Path, _changed: int) -> list[dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".csv"))
            text = archive.read(name, pwd=_PASSWORD).decode("utf-8")
        return [_document(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except (zipfile.BadZipFile, RuntimeError, ValueError, KeyError, AttributeError) as error:
        # `from None`: a chained error could carry a piece of the text.
        raise ValueError(
            f"{_FILE} is not the encrypted archive that GPQA's authors publish "
            f"({type(error).__name__}); replace the file"
        ) from None


def _clean(text: str) -> str:
    # As lm-eval does, so that both ask the same.
    return text.strip().replace(" [title]", ". ").replace("  ", " ")


def _document(row: dict[str, Any]) -> dict[str, Any]:
    choices = [_clean(row[column]) for column in _ANSWERS]
    # lm-eval shuffles from a global state and so differently each time the documents are read. Seeded by the
    # record, the order is the same in every run and every process, whatever the limit.
    order = list(range(len(choices)))
    random.Random(row["Record ID"]).shuffle(order)
    shuffled = [choices[index] for index in order]
    return {
        "id": row["Record ID"],
        "question": row["Question"],
        **{f"choice{number}": choice for number, choice in enumerate(shuffled, 1)},
        "choices": shuffled,
        "answer": f"({'ABCD'[order.index(0)]})",
    }
