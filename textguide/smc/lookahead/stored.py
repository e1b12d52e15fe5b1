"""Files of ``textguide lookahead train``: safetensors with the kind of lookahead in their header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ...support import files

Stamp = tuple[str, int, int, int]
"""Identifies the present version of a file: its path, modification time, size and inode, which differs if another file
replaces it."""


@dataclass(frozen=True, eq=False)
class Stored:
    """The content of a file.

    Args:
        path: the file.
        kind: the kind of lookahead.
        tensors: the tensors by name.
        about: the other values of the header.
    """

    path: str
    kind: str
    tensors: Mapping[str, Tensor]
    about: dict[str, Any]


def write(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a file atomically."""
    from safetensors.torch import save

    header = {"kind": kind, "about": json.dumps(dict(about))}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
    with files.replacing(path) as stream:
        stream.write(data)


def stamp(path: str | os.PathLike[str]) -> Stamp:
    """The stamp of a file, which changes if the file is written again."""
    file = Path(path).expanduser()
    try:
        about = file.stat()
    except OSError as error:
        raise _no_file(os.fspath(path), error) from None
    return str(file), about.st_mtime_ns, about.st_size, about.st_ino


def read(path: str | os.PathLike[str]) -> Stored:
    """Read a file; cached until the file changes.

    Raises:
        ValueError: the file cannot be read, or is not one of ``textguide lookahead train``.
    """
    return _read(stamp(path), os.fspath(path))


@lru_cache(maxsize=4)
def _read(file: Stamp, path: str) -> Stored:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file[0], "pt") as opened:
            header = opened.metadata() or {}
            if "kind" not in header:
                raise KeyError("kind")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is not a dictionary
        return Stored(path, header["kind"], tensors, json.loads(header.get("about", "{}")))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _no_file(path, error) from None


def _no_file(path: str, error: Exception) -> ValueError:
    return ValueError(
        f"lookahead={path!r} is not a file of 'textguide lookahead train' ({type(error).__name__}: {error})"
    )
