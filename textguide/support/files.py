"""Writing files so that a reader sees the old content or the new one, never a part of either."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def cache_root() -> Path:
    """Where converted models and compiled constraints are kept: ``$TEXTGUIDE_CACHE``, else the platform's user cache
    directory."""
    override = os.environ.get("TEXTGUIDE_CACHE")
    if override:
        return Path(override)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("textguide", appauthor=False))


def folder(path: str | os.PathLike[str]) -> Path:
    """``path`` as the folder of what a command or a function is about to write; it need not exist.

    Raises:
        ValueError: a file stands there.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out {target} is a file; name a folder")
    return target


def vacant(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """:func:`folder`, which holds nothing unless ``overwrite`` says that it may.

    Raises:
        ValueError: a file stands there, or something is in the folder.
    """
    target = folder(path)
    if not overwrite and target.exists() and any(target.iterdir()):
        raise ValueError(
            f"--out {target} is not empty; name another folder, or add --overwrite to replace what is there"
        )
    return target


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary stream whose content takes the place of ``path`` when the block ends without an exception.

    The content goes to a file beside ``path``, is synchronised to disk and then renamed. After an exception
    nothing is left behind and ``path`` is as it was.

    Args:
        path: the file to write; its folder must exist.
    """
    target = Path(path)
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    # os.open and not tempfile: a temporary file is private to its user, results should follow the umask.
    descriptor = os.open(staging, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, target)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make the renames and new names in a folder last through a power cut, where the platform can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse to synchronise a folder
        pass
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Put ``data`` into ``path``, atomically."""
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Put ``text`` into ``path`` as UTF-8, atomically and with line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 1) -> None:
    """Put ``value`` into ``path`` as JSON text, atomically; see :func:`plain` for what becomes of its
    parts."""
    write_bytes(path, json_bytes(plain(value), indent) + b"\n")


def json_bytes(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> bytes:
    """``value`` as strict JSON in UTF-8: readable where it can be, escaped where a text has no UTF-8 form.

    Raises:
        ValueError: a number is not finite.
        TypeError: a part has no JSON form and ``default`` does not give it one.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, separators=separators, default=default)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value, indent=indent, allow_nan=False, separators=separators, default=default).encode()


def plain(value: Any, fallback: Callable[[Any], Any] | None = None) -> Any:
    """``value`` in the types that every JSON reader knows: numbers that are not finite become None.

    Mappings become dicts with string keys, sequences and sets lists, NumPy scalars and arrays Python numbers
    and lists, and paths text.

    Args:
        value: what to write.
        fallback: gives the JSON form of a part that has none, for instance ``str``.

    Raises:
        TypeError: a part has no JSON form and there is no ``fallback``; the message names its type.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item, fallback) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, fallback) for item in value), key=lambda item: (str(type(item)), item))
    if isinstance(value, (list, tuple)):
        return [plain(item, fallback) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), fallback)
    if fallback is not None:
        return fallback(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
