"""Per-item values in one compressed NumPy file, without pickles."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textguide.support.files import replacing

from ..statistics.intervals import is_binary

if TYPE_CHECKING:
    from .run import TaskResult

Arrays = dict[tuple[str, str], dict[str, Any]]
"""(task, label) → the arguments of a TaskResult that hold arrays."""

_INDEX = "index"


def save(path: Path, tasks: Iterable[TaskResult]) -> None:
    """Write the items, weights, ids and confidences of ``tasks``; equal arrays are stored once."""
    # Rows of task, label, kind of array, metric and the array's name in the file.
    index: list[list[str]] = []
    arrays: dict[str, np.ndarray] = {}
    names: dict[tuple[str, bytes], str] = {}

    def put(result: TaskResult, kind: str, metric: str, values: np.ndarray) -> None:
        content = (values.dtype.str, values.tobytes())
        if content not in names:
            names[content] = f"a{len(names)}"
            arrays[names[content]] = values
        index.append([result.task, result.label, kind, metric, names[content]])

    for result in tasks:
        for metric, values in result.items.items():
            put(result, "items", metric, values.astype(np.uint8) if is_binary(values) else values)
        for metric, values in result.weights.items():
            put(result, "weights", metric, values)
        if result.item_ids is not None:
            put(result, "item_ids", "", np.array(result.item_ids, dtype=np.str_))
        if result.confidences is not None:
            put(result, "confidences", "", result.confidences)
    arrays[_INDEX] = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
    with replacing(path) as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def load(path: Path) -> Arrays:
    """Read a file that :func:`save` wrote.

    Raises:
        ValueError: the file is missing or damaged; the message names it.
    """
    results: Arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for task, label, kind, metric, name in json.loads(file[_INDEX].tobytes()):
                entry = results.setdefault((task, label), {})
                values = file[name]
                if kind == "item_ids":
                    entry[kind] = tuple(values.tolist())
                elif kind == "confidences":
                    entry[kind] = values
                else:
                    entry.setdefault(kind, {})[metric] = values.astype(np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); run the evaluation again") from error
    return results
