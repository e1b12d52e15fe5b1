"""The folder that a run writes: one Parquet file a span of rows, whole or not there, and whose folder it is."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..support import files
from ..support.errors import FolderInUseError
from ..support.files import replacing, write_json
from .inputs import Inputs, Span, parquet
from .settings import RESULTS, Settings

RUN = "_run.json"
"""Whose folder it is; readers of Parquet folders pass over names that begin so."""
_NAME = re.compile(r"rows-(\d+)-(\d+)-([0-9a-f]{12})\.parquet")
_STAGING = re.compile(r"\.rows-\d+-\d+-[0-9a-f]{12}\.parquet\.[0-9a-f]+")


@dataclass(frozen=True)
class Summary:
    """The content of a folder.

    Args:
        folder: where.
        rows: rows of the input.
        done: rows that are written.
        errors: of these, rows with an error.
        tokens: that were written, or scored.
    """

    folder: str
    rows: int
    done: int
    errors: int
    tokens: int


def name(span: Span, fingerprint: str) -> str:
    """The file of a span: its first and its last row, and the settings."""
    return f"rows-{span.start:010d}-{span.stop - 1:010d}-{fingerprint}.parquet"


@contextlib.contextmanager
def claimed(output: Any, settings: Settings, inputs: Inputs) -> Iterator[Path]:
    """The folder, which is created if needed and locked until the block ends.

    Raises:
        ValueError: it has a run with other settings or other files, which the message names.
        FolderInUseError: another process writes to it.
    """
    folder = files.folder(output, "output")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / "_lock"), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(f"another process is writing to {folder}; wait for it, or choose another") from error
    try:
        check(folder, settings, inputs)
        if not (folder / RUN).exists():
            write_json(folder / RUN, settings.identity(inputs))
        for file in folder.iterdir():  # what a killed replica left
            if _STAGING.fullmatch(file.name):
                file.unlink(missing_ok=True)
        yield folder
    finally:
        lock.release()


def check(folder: Path, settings: Settings, inputs: Inputs) -> None:
    """Refuse to mix two runs.

    Raises:
        ValueError: the folder has another run; the message names what differs.
    """
    theirs = _identity(folder)
    if theirs is None:
        if folder.is_dir() and any(file.suffix == ".parquet" for file in folder.iterdir()):
            raise ValueError(f"output={str(folder)!r} holds Parquet files and no run of textguide; choose another")
        return
    ours = settings.identity(inputs)
    differ = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if differ:
        differences = "; ".join(
            f"{key}: {_short(theirs.get(key))} there, {_short(ours.get(key))} here" for key in differ
        )
        raise ValueError(f"{folder} holds another run ({differences}); choose another folder, or delete that one")


def left(folder: Path, inputs: Inputs, fingerprint: str) -> list[Span]:
    """The spans that are not written."""
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return [span for span in inputs.spans if name(span, fingerprint) not in there]


def write(folder: Path, span: Span, fingerprint: str, settings: Settings, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the results of a span into its file, which is there whole or not at all.

    Args:
        rows: by column, in order.
    """
    import pyarrow

    assert [row["row"] for row in rows] == list(range(span.start, span.stop))
    kinds = {"row": "int64"}
    kinds |= {column: settings.kept.get(column, "string") for column in settings.columns.keep}
    kinds |= RESULTS[settings.task]
    types = {column: getattr(pyarrow, kind)() for column, kind in kinds.items()}
    columns = {column: [row.get(column) for row in rows] for column in types}
    table = pyarrow.table(columns, schema=pyarrow.schema(list(types.items())))
    with replacing(folder / name(span, fingerprint)) as stream:
        parquet().write_table(table, stream)


def summary(folder: Path, inputs: Inputs, fingerprint: str) -> Summary:
    """What is written so far."""
    done = errors = tokens = 0
    for file in sorted(folder.iterdir()):
        found = _NAME.fullmatch(file.name)
        if found is None or found[3] != fingerprint:
            continue
        table = parquet().ParquetFile(file).read(columns=["tokens", "error"])
        done += len(table)
        errors += len(table) - table["error"].null_count
        tokens += sum(value for value in table["tokens"].to_pylist() if value is not None)
    return Summary(str(folder), inputs.rows, done, errors, tokens)


def _identity(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{folder / RUN} is damaged; choose another folder, or delete that one") from error
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"
