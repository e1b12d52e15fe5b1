"""Arrays that take long to compute, cached on disk for later processes.

A file is written atomically and never changed. If a file cannot be read, or has another format, another key or another
checksum, its arrays are computed again. Nothing is pickled. Processes need no lock: two that compute the same arrays
write the same file, and a file that is removed while it is read stays open to its reader.
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
"""Version of the files and of what the arrays mean: increase it when either changes."""
MIN_SECONDS = 0.3
"""Results that took less time to compute are not written."""
MAX_MEGABYTES = 256.0
"""Size limit of the whole cache."""
LARGEST_SHARE = 0.25
"""Largest share of the cache that one file may take."""
STALE_SECONDS = 3600.0
"""Age at which an unfinished file is removed."""


def cached(kind: str, key: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of ``compute``, from disk if they were computed before.

    The files are in the folder ``compiled`` of :func:`textguide.support.files.cache_root`. The least recently used
    are removed when the folder exceeds ``$TEXTGUIDE_COMPILED_MB`` megabytes (default 256; 0 turns the cache off).

    Args:
        kind: what the arrays are, a word of the file's name.
        key: everything that the arrays depend on, as JSON values.
        compute: computes the arrays.

    Raises:
        ValueError: ``TEXTGUIDE_COMPILED_MB`` is not a number.
    """
    limit = _limit_in_bytes()
    full_key = json.dumps({"format": FORMAT, "kind": kind, **key}, sort_keys=True)
    digest = hashlib.sha256(full_key.encode()).hexdigest()[:32]
    path = files.cache_root() / "compiled" / f"{kind}-{digest}.safetensors"
    if limit:
        stored = _read(path, full_key)
        if stored is not None:
            return stored
    start = time.perf_counter()
    arrays = compute()
    if limit and time.perf_counter() - start >= MIN_SECONDS:
        # A full disk or a folder of another user is no failure: the arrays are computed again next time.
        with suppress(OSError):
            _write(path, full_key, arrays, limit)
    return arrays


def _limit_in_bytes() -> int:
    text = os.environ.get("TEXTGUIDE_COMPILED_MB", "")
    try:
        megabytes = float(text or MAX_MEGABYTES)
    except ValueError:
        megabytes = math.nan
    if not math.isfinite(megabytes):
        raise ValueError(f"TEXTGUIDE_COMPILED_MB={text!r} must be a number of megabytes; 0 turns the cache off")
    return int(max(0.0, megabytes) * 1e6)


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _read(path: Path, full_key: str) -> Arrays | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("key") != full_key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        if header.get("sum") != _checksum(arrays):
            return None
        os.utime(path)  # marks the file as recently used
    except (OSError, SafetensorError, ValueError, TypeError):
        return None
    return arrays


def _write(path: Path, full_key: str, arrays: Arrays, limit: int) -> None:
    import numpy as np
    from safetensors.numpy import save

    # The checksum reads the memory of an array, which has to be contiguous for that.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if sum(array.nbytes for array in arrays.values()) > LARGEST_SHARE * limit:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, save(arrays, {"key": full_key, "sum": _checksum(arrays)}))
    _shrink(path.parent, limit)


def _shrink(folder: Path, limit: int) -> None:
    """Remove the least recently used files, and unfinished files of processes that were killed."""
    entries = []
    for path in folder.iterdir():
        try:
            status = path.stat()
            if not path.name.startswith("."):
                entries.append((status.st_mtime_ns, status.st_size, path))
            elif time.time() - status.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process removed it first
            continue
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
