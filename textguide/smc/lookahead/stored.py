"""Files of ``textguide lookahead train``: safetensors whose header says which kind of lookahead they hold."""

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
"""A file as it is now: its path, its time of change, its size and its number on the disk, since another file that takes
its place has another."""


@dataclass(frozen=True, eq=False)
class Stored:
    """One file.

    Args:
        path: its place.
        kind: what it holds.
        tensors: by name.
        about: what else its header says.
    """

    path: str
    kind: str
    tensors: Mapping[str, Tensor]
    about: dict[str, Any]


def write(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Put a file into its place, whole."""
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in tensors.items()},
                {"kind": kind, "about": json.dumps(dict(about))})  # fmt: skip
    with files.replacing(path) as stream:
        stream.write(data)


def stamp(path: str | os.PathLike[str]) -> Stamp:
    """What tells a file from the one that stands there after another training."""
    place = Path(path).expanduser()
    try:
        about = place.stat()
    except OSError as error:
        raise _no_file(os.fspath(path), error) from None
    return str(place), about.st_mtime_ns, about.st_size, about.st_ino


def read(path: str | os.PathLike[str]) -> Stored:
    """A file, read once for as long as it stays as it is.

    Raises:
        ValueError: there is none at this place.
    """
    return _read(stamp(path), os.fspath(path))


@lru_cache(maxsize=4)
def _read(file: Stamp, asked: str) -> Stored:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file[0], "pt") as opened:
            header = opened.metadata() or {}
            if "kind" not in header:
                raise KeyError("kind")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
        return Stored(asked, header["kind"], tensors, json.loads(header.get("about", "{}")))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _no_file(asked, error) from None


def _no_file(path: str, error: Exception) -> ValueError:
    return ValueError(f"lookahead={path!r} is no file of 'textguide lookahead train' ({type(error).__name__}: {error})")
