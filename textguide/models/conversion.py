"""Converting GGUF files to folders that load fast, once per file, in the user's cache directory.

Dequantising takes from twenty seconds to minutes, so the result is written as safetensors. Writes are atomic (a sibling
folder is renamed when it is complete), and a file lock excludes other processes. Every read is checked against the
sizes and SHA-256 sums that were recorded when the folder was written; files above :data:`SUMMED` only by their sizes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..support.errors import ModelUnavailableError
from ..support.files import cache_root
from . import dequantizing, quantized_file

MANIFEST = "textguide.json"
FORMAT = 1
SUMMED = 2**30
"""Size in bytes up to which the content of a file is compared at every load; larger ones would take seconds."""
LARGE = 500_000_000
"""Number of weights from which a quantised file is stored in bfloat16."""
_UNQUANTIZED = {quantized_file.F32: "float32", quantized_file.F16: "float16", quantized_file.BF16: "bfloat16"}
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def folder_of(path: Path, dtype: Any = None, refresh: bool = False) -> Path:
    """The folder of a GGUF file, which is converted first if necessary.

    The folder is named ``NAME-KEY-DTYPE``: the name of the file, eight digits that change with the file (its size, its
    modification time and its first megabyte), and the dtype of the weights (see :func:`stored_dtype`).

    Args:
        path: the file.
        dtype: the dtype that the caller will use, a ``torch.dtype`` or its name; None and ``"auto"``: any.
        refresh: convert again even if a converted copy exists.

    Raises:
        UnknownModelError: ``path`` is not a GGUF file.
        ModelUnavailableError: it cannot be read completely, the cache cannot be written, or the cached copy is damaged.
        MissingExtraError: the ``gguf`` reader is not installed.
    """
    header = quantized_file.read(path)
    stored = stored_dtype(header, str(dtype or "auto").removeprefix("torch."))
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} ".encode())
    with path.open("rb") as stream:
        digest.update(stream.read(1 << 20))
    name = re.sub(r"[^\w.-]+", "-", path.stem)[:80]
    return converted(f"{name}-{digest.hexdigest()[:8]}-{SHORT[stored]}", lambda: path, stored, refresh, str(path))


def stored_dtype(header: quantized_file.Header, wanted: str = "auto") -> str:
    """The name of the dtype in which the converted copy of a file is stored.

    Below 500 million weights it is float32, which represents every value of every file. Above, float32 would take
    gigabytes. A file whose matrices are not quantised keeps their dtype. A quantised one becomes bfloat16: its weights
    have at most eight significant bits, and rounding loses less than quantising did. If the caller uses float32 or
    float16, a quantised file becomes a float32 copy of twice that size, which keeps all bits.
    """
    if header.parameters < LARGE:
        return "float32"
    for kind, name in _UNQUANTIZED.items():
        if header.matrix_kinds == {kind}:
            return name
    return "float32" if wanted in ("float32", "float16") else "bfloat16"


def converted(name: str, source: Callable[[], Path], dtype: str, refresh: bool, model: str) -> Path:
    """The folder ``name`` of the cache, checked, which is created from a GGUF file if necessary.

    Args:
        name: name of the folder.
        source: returns the path of the file; only called if it has to be converted.
        dtype: name of the dtype of the weights.
        refresh: convert again even if a converted copy exists.
        model: the name that the user passes to :func:`textguide.load`, for error messages.

    Raises:
        ModelUnavailableError: as for :func:`folder_of`.
        MissingExtraError: the ``gguf`` reader is not installed.
    """
    target = cache_root() / name
    if not refresh and (target / MANIFEST).is_file():
        verify(target, model)
        return target

    from filelock import FileLock
    from safetensors import SafetensorError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            # Another process may have finished the conversion while this one waited for the lock.
            if refresh or not (target / MANIFEST).is_file():
                _convert(source(), target, dtype)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # one of textguide's errors, which has a message
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ModelUnavailableError(
            f"the model cache {target.parent} cannot be written ({reason}); set TEXTGUIDE_CACHE to a writable folder"
        ) from error
    verify(target, model)
    return target


def verify(path: Path, model: str) -> None:
    """Check every file in a converted folder against its manifest.

    Args:
        path: the folder.
        model: the name that the user passes to :func:`textguide.load`, for error messages.

    Raises:
        ModelUnavailableError: a file is missing or differs from what was written.
    """
    remedy = f"delete {path} or call textguide.load({model!r}, refresh=True)"
    try:
        recorded = json.loads((path / MANIFEST).read_text())["files"]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in recorded.items()}
        if not files:
            raise ValueError("no file is recorded")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailableError(f"the cached model has no readable {MANIFEST}; {remedy}") from error
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            raise ModelUnavailableError(f"the cached model is damaged ({name} is missing); {remedy}")
        if file.stat().st_size != size or (size <= SUMMED and _sha256(file) != digest):
            raise ModelUnavailableError(f"the cached model is damaged ({name} has changed); {remedy}")


def _convert(gguf: Path, target: Path, dtype: str) -> None:
    import torch

    # Left by a conversion that was killed: the lock excludes one that is still running.
    for stale in target.parent.glob(f"{target.name}.*"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
    header = quantized_file.read(gguf)
    _check_room(header, target.parent, getattr(torch, dtype).itemsize)
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        mask = os.umask(0)  # the only way to read it
        os.umask(mask)
        with dequantizing.quiet(), _bar(header) as advance:
            model, tokenizer = dequantizing.read(header, getattr(torch, dtype), advance)
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
        files = {}
        for file in sorted(staging.iterdir()):
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            file.chmod(0o666 & ~mask)  # safetensors and mkdtemp only allow the owner, but a cache may be shared
        manifest = {"format": FORMAT, "source": str(gguf.absolute()), "dtype": dtype, "files": files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        staging.chmod(0o777 & ~mask)
        if target.exists():
            shutil.rmtree(target)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_room(header: quantized_file.Header, cache: Path, itemsize: int) -> None:
    needed = header.parameters * itemsize
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise ModelUnavailableError(
            f"the converted copy of {header.path} needs {needed / 1e9:.1f} GB and the model cache {cache} has "
            f"{free / 1e9:.1f} GB left; free some space, or set TEXTGUIDE_CACHE to a folder on another disk"
        )


@contextmanager
def _bar(header: quantized_file.Header) -> Iterator[Callable[[int], Any]]:
    """A progress bar on standard error that counts weights; none if that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"converting {header.path.name}, once", total=header.parameters)
        yield lambda weights: bar.advance(task, weights)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
