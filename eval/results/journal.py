"""An append-only journal of finished work, so that a killed run goes on where it was.

A text file of JSON lines. The first names the run; each later one holds the record of one key. Every line is
handed to the operating system at once, so that a killed process loses nothing that it appended; the disk is
synchronised every few seconds, so that a power cut loses little. A last line that was cut short is dropped
when the file is opened again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from textguide.support.errors import FolderInUseError
from textguide.support.files import json_bytes, sync_folder

FORMAT = 1
JOURNAL = "journal.jsonl"
"""The journal's name in a results folder."""
_MAGIC = "textguide-journal"
_FLOAT = "$float"


class Journal:
    """The records of a run by key, in memory and on disk. Open one with :meth:`open`; close it, or use
    ``with``.

    Attributes:
        done: key → record, for everything appended so far, by this process or an earlier one. Records are as
            JSON gives them back (tuples are lists), so that a run that was resumed sees what an uninterrupted
            one sees.
        identity: what the file says it belongs to.
        resumed: how many records were there when the journal was opened.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], done: dict[str, Any], lock: FileLock, sync_seconds: float
    ) -> None:
        self.path = path
        self.identity = identity
        self.done = done
        self.resumed = len(done)
        self._lock = lock
        self._sync_seconds = sync_seconds
        # Unbuffered: a line that a full disk refuses must not stay behind in a buffer and be written later.
        self._stream = path.open("ab", buffering=0)
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: Mapping[str, Any], sync_seconds: float = 5.0) -> Journal:
        """Start a journal, or go on with one that has the same identity.

        Args:
            path: the journal's file; its folder is made where it is missing.
            identity: everything that two runs must share for one to go on with the other's records: model,
                tasks, guidances, fingerprints, seed, limits. JSON values.
            sync_seconds: synchronise the disk no more often than this.

        Raises:
            ValueError: the file belongs to a run with another identity, is no journal, or is damaged before
                its last line. Nothing is changed.
            FolderInUseError: another process holds the journal.
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
        """Keep the record of ``key``; a later record of the same key takes its place.

        Args:
            key: names the piece of work.
            record: JSON values, to which infinities and nan are added.

        Raises:
            TypeError: ``key`` is not a text, or the record cannot be written as JSON. Nothing is written.
            ValueError: the journal is closed.
            OSError: the disk refuses the record; what was there before is whole.
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
        """Make everything appended so far last through a power cut."""
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Synchronise, close the file and let others have the folder. Closing twice is harmless."""
        if not self._stream.closed:
            try:
                self.sync()
            finally:
                self._stream.close()
                self._lock.release()

    def __contains__(self, key: object) -> bool:
        return key in self.done

    def __len__(self) -> int:
        return len(self.done)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        """The records in the file, which afterwards holds whole lines alone, the first of them the header."""
        header = _dumps({_MAGIC: FORMAT, "identity": identity})
        data = file.read_bytes() if file.exists() else b""
        # A run that was killed while it wrote the header has left a part of it; anything else is someone's
        # file.
        if header.startswith(data):
            with file.open("wb") as stream:
                stream.write(header)
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(file.parent)
            return {}
        found, done, whole = _parse(file, data)
        check_identity(file.parent, found, identity)
        if whole < len(data):
            os.truncate(file, whole)
        return done


def read_journal(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The identity and the records of a journal, without a lock and without a change; a torn last line is
    passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no journal, or is damaged before its last line.
    """
    file = Path(path)
    identity, done, _ = _parse(file, file.read_bytes())
    return identity, done


def check_identity(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to mix two runs.

    Raises:
        ValueError: the identities differ; the message names the folder, what differs, and what to do.
    """
    ours = _roundtrip(wanted)
    keys = [key for key in {**found, **ours} if found.get(key, _MISSING) != ours.get(key, _MISSING)]
    if keys:
        differences = "; ".join(
            f"{key}: {_short(found.get(key, _MISSING))} there, {_short(ours.get(key, _MISSING))} here" for key in keys
        )
        raise ValueError(f"{folder} holds another run ({differences}); choose another --output, or delete that folder")


_MISSING = object()


def _parse(file: Path, data: bytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Identity, records, and how many bytes from the start are whole lines."""
    lines = data.split(b"\n")
    lines.pop()  # empty after a whole last line, else what is left of a torn one
    header = _try_loads(lines[0]) if lines else None
    if not isinstance(header, dict) or not isinstance(header.get("identity"), dict) or _MAGIC not in header:
        raise ValueError(f"{file} is not a journal of textguide; choose another --output, or move that file away")
    if header[_MAGIC] != FORMAT:
        raise ValueError(
            f"{file} has journal format {header[_MAGIC]!r} and this version of textguide reads {FORMAT}; "
            "choose another --output"
        )
    done: dict[str, Any] = {}
    whole = len(lines[0]) + 1
    for number, line in enumerate(lines[1:], start=2):
        entry = _try_loads(line)
        if not isinstance(entry, dict) or "record" not in entry or not isinstance(entry.get("key"), str):
            # After a power cut the end of a file may be there in length and not in content.
            if number == len(lines) or not any(rest.strip(b"\0") for rest in lines[number:]):
                break
            raise ValueError(
                f"line {number} of {file} is damaged, and it is not the last one; choose another --output, "
                "or cut the file before that line to do the rest again"
            )
        done[entry["key"]] = entry["record"]
        whole += len(line) + 1
    return header["identity"], done, whole


def _dumps(value: Any) -> bytes:
    try:
        return json_bytes(value, default=_number) + b"\n"
    except ValueError:  # JSON has no infinities
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
    raise TypeError(f"a {type(value).__name__} cannot be written to the journal; give JSON values")


def _short(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
