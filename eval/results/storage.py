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
    """Write the items, weights, ids and confidences of ``tasks``; what several of them share is stored
    once."""
    index: list[list[str]] = []
    arrays: dict[str, np.ndarray] = {}
    names: dict[tuple[str, bytes], str] = {}

    def put(result: TaskResult, what: str, metric: str, values: np.ndarray) -> None:
        key = (values.dtype.str, values.tobytes())
        if key not in names:
            names[key] = f"a{len(names)}"
            arrays[names[key]] = values
        index.append([result.task, result.label, what, metric, names[key]])

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
    """What :func:`save` wrote.

    Raises:
        ValueError: the file is missing or damaged; the message names it.
    """
    found: Arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for task, label, what, metric, name in json.loads(file[_INDEX].tobytes()):
                entry = found.setdefault((task, label), {})
                values = file[name]
                if what == "item_ids":
                    entry[what] = tuple(values.tolist())
                elif what == "confidences":
                    entry[what] = values
                else:
                    entry.setdefault(what, {})[metric] = values.astype(np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); run the evaluation again") from error
    return found
