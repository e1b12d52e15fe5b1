"""An append-only journal of finished work, with which a killed run is resumed.

A text file of JSON lines. The first line identifies the run; each later line holds the record of one key. Every line is
passed to the operating system immediately, so that a killed process loses nothing that it appended; the disk is
synchronised every few seconds, so that a power cut loses little. An incomplete last line is dropped when the file is
opened again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from textguide.support.errors import FolderInUseError
from textguide.support.files import json_bytes, sync_folder

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 1
JOURNAL = "journal.jsonl"
"""The journal's name in a results folder."""
_MAGIC = "textguide-journal"
_FLOAT = "$float"
"""Key of an object that represents a number that JSON does not have: inf, -inf or nan."""


class Memory:
    """Records by key, in memory only, with the interface of a :class:`Journal`.

    Attributes:
        done: record by key, for everything that was appended.
    """

    def __init__(self, done: dict[str, Any] | None = None) -> None:
        self.done = {} if done is None else done

    def append(self, key: str, record: Any) -> None:
        """Keep the record of ``key``; a later record of the same key replaces it."""
        self.done[key] = record

    def record(self, key: str, compute: Callable[[], Any]) -> Any:
        """The record of ``key``, which is computed and appended unless it is known.

        Args:
            key: names the piece of work.
            compute: called without arguments; returns the record, see :meth:`Journal.append`.
        """
        if key not in self.done:
            self.append(key, compute())
        return self.done[key]

    def close(self) -> None:
        """Release what the records are kept in."""

    def __contains__(self, key: object) -> bool:
        return key in self.done

    def __len__(self) -> int:
        return len(self.done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Journal(Memory):
    """The records of a run by key, in memory and on disk.

    Open a journal with :meth:`open`; close it, or use ``with``.

    Attributes:
        done: record by key, for everything that this process or an earlier one appended. Records are as JSON returns
            them (tuples are lists), so that a resumed run reads the same values as an uninterrupted one.
        identity: the run that the file belongs to.
        resumed: number of records when the journal was opened.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], done: dict[str, Any], lock: FileLock, sync_seconds: float
    ) -> None:
        super().__init__(done)
        self.path = path
        self.identity = identity
        self.resumed = len(done)
        self._lock = lock
        self._sync_seconds = sync_seconds
        # Unbuffered: if a full disk refuses a line, it must not remain in a buffer and be written later.
        self._stream = path.open("ab", buffering=0)
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: Mapping[str, Any], sync_seconds: float = 5.0) -> Journal:
        """Start a journal, or resume one with the same identity.

        Args:
            path: the journal's file; its folder is created if it is missing.
            identity: everything that two runs must share for one to use the other's records: model, tasks, guidances,
                fingerprints, seed, limits. JSON values.
            sync_seconds: least time between two synchronisations of the disk.

        Raises:
            ValueError: the file belongs to a run with another identity, is not a journal, or is damaged before its last
                line. Nothing is changed.
            FolderInUseError: another process has opened the journal.
        """
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise FolderInUseError(
                f"another process is writing to {file.parent}; wait for it, or choose another --output"
            ) from error
        try:
            done = cls._resume(file, _roundtrip(identity))
            return cls(file, _roundtrip(identity), done, lock, sync_seconds)
        except BaseException:
            lock.release()
            raise

    def append(self, key: str, record: Any) -> None:
        """Write the record of ``key``; a later record of the same key replaces it.

        Args:
            key: names the piece of work.
            record: JSON values; infinities and nan are allowed too.

        Raises:
            TypeError: ``key`` is not a text, or the record cannot be written as JSON. Nothing is written.
            ValueError: the journal is closed.
            OSError: the disk refuses the record; the earlier records are intact.
        """
        if not isinstance(key, str):
            raise TypeError(f"key={key!r} must be a text; use str(key)")
        if self._stream.closed:
            raise ValueError(f"the journal {self.path} is closed; open it again to append")
        line = _dumps({"key": key, "record": record})
        self._write(line)
        if time.monotonic() - self._synced >= self._sync_seconds:
            self.sync()
        self.done[key] = _loads(line)["record"]

    def sync(self) -> None:
        """Synchronise the disk, so that everything appended so far survives a power cut."""
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Synchronise, close the file and release the folder. Closing twice is harmless."""
        if not self._stream.closed:
            try:
                self.sync()
            finally:
                self._stream.close()
                self._lock.release()

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._stream.fileno()).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[self._stream.write(left) :]
        except BaseException:
            os.ftruncate(self._stream.fileno(), size)
            raise

    @staticmethod
    def _resume(file: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """The records in the file, which afterwards consists of complete lines, the first of which is the header."""
        header = _dumps({_MAGIC: FORMAT, "identity": identity})
        data = file.read_bytes() if file.exists() else b""
        # A run that was killed while it wrote the header has left a part of it, or nothing.
        if header.startswith(data):
            with file.open("wb") as stream:
                stream.write(header)
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(file.parent)
            return {}
        written, done, size = _parse(file, data)
        check_identity(file.parent, written, identity)
        if size < len(data):
            os.truncate(file, size)
        return done


def read_journal(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the identity and the records of a journal, without a lock and without changing it.

    An incomplete last line is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a journal, or is damaged before its last line.
    """
    file = Path(path)
    identity, done, _ = _parse(file, file.read_bytes())
    return identity, done


def check_identity(folder: Path, written: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse to mix two runs.

    Args:
        folder: of the run, for the message.
        written: the identity in the folder.
        identity: that of the run that is about to start.

    Raises:
        ValueError: the identities differ; the message names the folder, the differences and the remedy.
    """
    ours = _roundtrip(identity)
    differences = []
    for key in {**written, **ours}:
        there = written.get(key, _MISSING)
        here = ours.get(key, _MISSING)
        if there != here:
            differences.append(f"{key}: {_short(there)} there, {_short(here)} here")
    if differences:
        raise ValueError(
            f"{folder} holds another run ({'; '.join(differences)}); choose another --output, or delete that folder"
        )


_MISSING = object()


def _parse(file: Path, data: bytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Identity, records, and the number of bytes from the start that are complete lines."""
    lines = data.split(b"\n")
    lines.pop()  # empty after a complete last line, otherwise an incomplete one
    header = _try_loads(lines[0]) if lines else None
    if not isinstance(header, dict) or not isinstance(header.get("identity"), dict) or _MAGIC not in header:
        raise ValueError(f"{file} is not a journal of textguide; choose another --output, or move that file away")
    if header[_MAGIC] != FORMAT:
        raise ValueError(
            f"{file} has journal format {header[_MAGIC]!r} and this version of textguide reads {FORMAT}; "
            "choose another --output"
        )
    done: dict[str, Any] = {}
    size = len(lines[0]) + 1
    for number, line in enumerate(lines[1:], start=2):
        entry = _try_loads(line)
        if not isinstance(entry, dict) or "record" not in entry or not isinstance(entry.get("key"), str):
            # After a power cut a file may have its new length, while its end still consists of zeros.
            if number == len(lines) or not any(rest.strip(b"\0") for rest in lines[number:]):
                break
            raise ValueError(
                f"line {number} of {file} is damaged, and it is not the last one; choose another --output, "
                "or cut the file before that line to do the rest again"
            )
        done[entry["key"]] = entry["record"]
        size += len(line) + 1
    return header["identity"], done, size


def _dumps(value: Any) -> bytes:
    try:
        return json_bytes(value, default=_number) + b"\n"
    except ValueError:  # infinities and nan, which JSON does not have
        return json_bytes(_tagged(value)) + b"\n"


def _loads(line: bytes) -> Any:
    def untag(values: dict[str, Any]) -> Any:
        tagged = values.keys() == {_FLOAT} and values[_FLOAT] in ("inf", "-inf", "nan")
        return float(values[_FLOAT]) if tagged else values

    return json.loads(line.decode("utf-8"), object_hook=untag)


def _try_loads(line: bytes) -> Any:
    try:
        return _loads(line)
    except ValueError:
        return None


def _roundtrip(value: Mapping[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = _loads(_dumps(dict(value)))
    return loaded


def _tagged(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(float(value))}
    if isinstance(value, dict):
        return {key: _tagged(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tagged(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return _tagged(_number(value))


def _number(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written to the journal; pass JSON values")


def _short(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
