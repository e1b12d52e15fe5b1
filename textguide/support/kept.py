"""Arrays that took long to compute, kept on disk for later processes.

A file is written whole and never changed; what cannot be read, or was written by another format, for another key or
with other bits than were written, is computed anew. Nothing is pickled. Processes need no lock: two that compute the
same write the same, and a file that is removed while it is read stays open to its reader.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays = Mapping[str, "NDArray[Any]"]
FORMAT = 1
"""Of the files, and of what is computed: a change in the meaning of the arrays needs another number."""
WORTH = 0.3
"""Seconds of computing from which on the result is kept."""
MEGABYTES = 256.0
"""All files together."""
LARGEST = 0.25
"""Share of that which one may have."""
STALE = 3600.0
"""Seconds after which a file that nobody finished writing is removed."""


def kept(kind: str, key: Mapping[str, Any], computing: Callable[[], Arrays]) -> Arrays:
    """The arrays of ``computing``, from disk where they are known.

    They stand in the folder ``compiled`` of :func:`textguide.support.files.cache_root`; those that were read longest
    ago are removed when there are more than ``$TEXTGUIDE_COMPILED_MB`` megabytes (256; 0 keeps nothing and reads
    nothing).

    Args:
        kind: what they are, a word of the file's name.
        key: all that they depend on, as JSON values.
        computing: makes them.

    Raises:
        ValueError: ``TEXTGUIDE_COMPILED_MB`` is no number.
    """
    limit = _limit()
    described = json.dumps({"format": FORMAT, "kind": kind, **key}, sort_keys=True)
    path = files.cache_root() / "compiled" / f"{kind}-{hashlib.sha256(described.encode()).hexdigest()[:32]}.safetensors"
    found = _read(path, described) if limit else None
    if found is not None:
        return found
    began = time.perf_counter()
    arrays = computing()
    if limit and time.perf_counter() - began >= WORTH:
        with suppress(OSError):  # a full disk, or a folder of somebody else: it is computed again next time
            _write(path, described, arrays, limit)
    return arrays


def _limit() -> int:
    """Bytes of all files."""
    text = os.environ.get("TEXTGUIDE_COMPILED_MB", "")
    try:
        megabytes = float(text or MEGABYTES)
    except ValueError:
        megabytes = math.nan
    if not math.isfinite(megabytes):
        raise ValueError(f"TEXTGUIDE_COMPILED_MB={text!r} must be a number of megabytes; 0 keeps nothing")
    return int(max(0.0, megabytes) * 1e6)


def _sum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _read(path: Path, described: str) -> Arrays | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("key") != described:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        if header.get("sum") != _sum(arrays):
            return None
        os.utime(path)  # it was used just now
    except (OSError, SafetensorError, ValueError, TypeError):
        return None
    return arrays


def _write(path: Path, described: str, arrays: Arrays, limit: int) -> None:
    import numpy as np
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if sum(array.nbytes for array in arrays.values()) > LARGEST * limit:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, save(arrays, {"key": described, "sum": _sum(arrays)}))
    _make_room(path.parent, limit)


def _make_room(folder: Path, limit: int) -> None:
    """Remove what was used longest ago, and what a killed process left."""
    found = []
    for place in folder.iterdir():
        try:
            about = place.stat()
            if place.name.startswith("."):
                if time.time() - about.st_mtime > STALE:
                    place.unlink(missing_ok=True)
            else:
                found.append((about.st_mtime_ns, about.st_size, place))
        except FileNotFoundError:  # another process was faster
            continue
    total = sum(size for _, size, _ in found)
    for _, size, place in sorted(found):
        if total <= limit:
            return
        place.unlink(missing_ok=True)
        total -= size
