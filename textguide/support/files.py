"""Write files atomically: a reader sees the old content or the new one, never a part of either."""

from __future__ import annotations

import json
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def cache_root() -> Path:
    """Folder of converted models and compiled constraints: ``$TEXTGUIDE_CACHE``, or the platform's user cache."""
    override = os.environ.get("TEXTGUIDE_CACHE")
    if override:
        return Path(override)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("textguide", appauthor=False))


def folder(path: str | os.PathLike[str], option: str = "--out") -> Path:
    """Return ``path`` as a folder that results can be written to; it does not have to exist.

    Args:
        path: the folder.
        option: names the argument in messages.

    Raises:
        ValueError: ``path`` is a file.
        OSError: nothing can be written there.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{option} {target} is a file; name a folder")
    _check_writable(target, target, option)
    return target


def vacant(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return :func:`folder`, which is empty unless ``overwrite`` allows otherwise.

    Raises:
        ValueError: ``path`` is a file, or a folder that is not empty.
        OSError: nothing can be written there.
    """
    target = folder(path)
    if not overwrite and target.exists() and any(target.iterdir()):
        raise ValueError(
            f"--out {target} is not empty; name another folder, or add --overwrite to replace what is there"
        )
    return target


def writable_file(path: str | os.PathLike[str], option: str) -> Path:
    """Return ``path`` as a file that can be written, before the work whose result it will hold.

    Missing folders are no error, since they are made when the file is written.

    Args:
        path: the file.
        option: names the argument in messages.

    Raises:
        OSError: ``path`` is a folder, or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{option} {target} is a folder; name a file")
    _check_writable(target, target.parent, option)
    return target


def _check_writable(target: Path, parent: Path, option: str) -> None:
    existing = parent.absolute()
    while not existing.exists():
        existing = existing.parent
    # Only a try can tell: permissions say nothing about /proc, and they do not bind root.
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f"{existing}: {error.strerror}"
        raise OSError(f"{option} {target} cannot be written: {reason}; name another place") from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary stream whose content replaces ``path`` when the block ends without an exception.

    The content goes to a file next to ``path``, is synchronised to disk and then renamed. After an exception the
    new file is removed and ``path`` is unchanged.

    Args:
        path: the file to write; its folder must exist.
    """
    target = Path(path)
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    # os.open instead of tempfile: a temporary file is private to its user, results should follow the umask.
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
    """Synchronise the names in a folder to disk, if the platform can, so that a rename survives a power cut."""
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
    """Write ``data`` to ``path`` atomically."""
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8 and with its own line ends."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 1) -> None:
    """Write ``value`` to ``path`` as JSON, atomically; :func:`plain` converts its parts."""
    write_bytes(path, json_bytes(plain(value), indent) + b"\n")


def json_bytes(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> bytes:
    """``value`` as strict JSON in UTF-8; all characters beyond ASCII are escaped if a text has no UTF-8 form.

    Raises:
        ValueError: a number is not finite.
        TypeError: a part has no JSON form and ``default`` does not return one.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, separators=separators, default=default)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value, indent=indent, allow_nan=False, separators=separators, default=default).encode()


def plain(value: Any, fallback: Callable[[Any], Any] | None = None) -> Any:
    """Convert ``value`` to the types of JSON; numbers that are not finite become None.

    Mappings become dicts with string keys, sequences and sets become lists, NumPy scalars and arrays become Python
    numbers and lists, and paths become text.

    Args:
        value: the value to convert.
        fallback: converts parts that have no JSON form, for instance ``str``.

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
