"""Files of rows, cut into spans that are read by themselves: JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from ..support.errors import MissingExtraError

ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
"""How the names of files end that are read, and what they hold."""
Values: TypeAlias = "Mapping[str, Any] | str"
"""A row by column, or what is wrong with it."""


@dataclass(frozen=True)
class File:
    """One file of rows.

    Args:
        path: its path.
        rows: how many it has; blank lines are none.
        size: in bytes.
        digest: of its content; of a Parquet file of its footer, which has the statistics of every column.
    """

    path: str
    rows: int
    size: int
    digest: str

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {"name": Path(self.path).name, "rows": self.rows, "size": self.size, "digest": self.digest}


@dataclass(frozen=True)
class Span:
    """Rows of one file that are read, and written, together.

    Args:
        start: its first row, counted over all files from 0.
        stop: the row after its last one.
        path: of the file.
        first: its first row, counted in the file.
        offset: bytes of the file before it; 0 for Parquet.
    """

    start: int
    stop: int
    path: str
    first: int
    offset: int = 0

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Inputs:
    """All files of a run, and the spans that they are cut into."""

    files: tuple[File, ...]
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)


def find(source: Any) -> list[Path]:
    """The files that ``source`` names: a file, a folder (its files by name), or a list of these.

    Raises:
        ValueError: a file does not exist, a folder has none, or the ending of a name is not supported.
    """
    named = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    found: list[Path] = []
    for one in named:
        path = Path(one)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in ENDINGS and file.is_file())
            if not inside:
                raise ValueError(f"source={str(path)!r} holds no file that ends in {', '.join(ENDINGS)}")
            found += inside
        elif not path.is_file():
            raise ValueError(f"source={str(path)!r} is no file and no folder; check the path")
        elif path.suffix not in ENDINGS:
            raise ValueError(f"source={str(path)!r} must end in {', '.join(ENDINGS)}; unpack or convert it first")
        else:
            found.append(path)
    if not found:
        raise ValueError("source= names no file; give one")
    return found


def scan(source: Any, rows: int) -> Inputs:
    """Count the rows of all files, and cut each file into spans of ``rows`` rows, the last one shorter.

    Files are read once, from beginning to end (a Parquet file in its footer alone).

    Args:
        source: as for :func:`find`.
        rows: of a span, at most.

    Raises:
        ValueError: a file does not exist or does not have the format of its ending, or there is no row.
        MissingExtraError: a file is Parquet, and pyarrow is not installed.
    """
    files: list[File] = []
    spans: list[Span] = []
    start = 0
    for path in find(source):
        digest = hashlib.sha256()
        places = list(_PLACES[ENDINGS[path.suffix]](path, rows, digest.update))
        counted = places.pop()
        for (first, offset), (following, _) in zip(places, [*places[1:], counted]):  # noqa: B905 (an empty file)
            spans.append(Span(start + first, start + following, str(path), first, offset))
        files.append(File(str(path), counted[0], path.stat().st_size, digest.hexdigest()[:16]))
        start += counted[0]
    if not spans:
        raise ValueError(f"source={', '.join(file.path for file in files)} holds no row; there is nothing to do")
    return Inputs(tuple(files), tuple(spans))


def read(span: Span) -> list[Values]:
    """The rows of a span; in place of one that cannot be read a sentence that says why."""
    return list(_READ[ENDINGS[Path(span.path).suffix]](span))


# A place is (row of the file, offset in bytes); the last one that is yielded is the file's end.
Places: TypeAlias = Iterator[tuple[int, int]]


def _lines(path: Path, rows: int, seen: Callable[[bytes], Any]) -> Places:
    row = offset = 0
    with path.open("rb") as stream:
        for line in stream:
            seen(line)
            if line.strip():
                if row % rows == 0:
                    yield row, offset
                row += 1
            offset += len(line)
    yield row, offset


def _read_lines(span: Span) -> Iterator[Values]:
    with open(span.path, "rb") as stream:
        stream.seek(span.offset)
        left = len(span)
        for line in stream:
            if not line.strip():
                continue
            yield _object(line)
            left -= 1
            if not left:
                return


def _object(line: bytes) -> Values:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        return f"the line is no JSON ({error})"
    return value if isinstance(value, dict) else f"the line holds a {type(value).__name__}, and no JSON object"


class _Text:
    """The lines of a stream as text, with the number of bytes that were taken."""

    def __init__(self, stream: BinaryIO, seen: Callable[[bytes], Any] = bytes) -> None:
        self.stream, self.seen, self.taken = stream, seen, 0

    def __iter__(self) -> _Text:
        return self

    def __next__(self) -> str:
        line = next(self.stream)
        self.seen(line)
        self.taken += len(line)
        return line.decode("utf-8-sig" if self.taken == len(line) else "utf-8")


def _cells(path: Path, rows: int, seen: Callable[[bytes], Any]) -> Places:
    with path.open("rb") as stream:
        text = _Text(stream, seen)
        table = csv.reader(text, strict=True)
        try:
            if not next(table, None):
                raise ValueError("its first line has no names of columns")
            row, offset = 0, text.taken
            for cells in table:
                if cells:
                    if row % rows == 0:
                        yield row, offset
                    row += 1
                offset = text.taken
        except (csv.Error, ValueError) as error:
            raise ValueError(f"source={str(path)!r} is no CSV in UTF-8: {error}") from error
        yield row, text.taken


def _read_cells(span: Span) -> Iterator[Values]:
    with open(span.path, "rb") as stream:
        names = next(csv.reader(_Text(stream), strict=True))
        stream.seek(span.offset)
        left = len(span)
        for cells in csv.reader((line.decode("utf-8") for line in stream), strict=True):
            if not cells:
                continue
            if len(cells) != len(names):
                yield f"the row has {len(cells)} cells, and there are {len(names)} columns"
            else:  # a cell that is empty says nothing
                yield {name: cell for name, cell in zip(names, cells, strict=True) if cell}
            left -= 1
            if not left:
                return


def _groups(path: Path, rows: int, seen: Callable[[bytes], Any]) -> Places:
    file = parquet().ParquetFile(path)
    with path.open("rb") as stream:  # …footer, its length in four bytes, and the four bytes PAR1
        stream.seek(-8, os.SEEK_END)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, os.SEEK_END)
        seen(stream.read(length))
    count = file.metadata.num_rows
    yield from ((row, 0) for row in range(0, count, rows))
    yield count, 0


def _read_groups(span: Span) -> Iterator[Values]:
    file = parquet().ParquetFile(span.path)
    begins, wanted = 0, []
    before = None
    for group in range(file.num_row_groups):
        ends = begins + file.metadata.row_group(group).num_rows
        if begins < span.first + len(span) and ends > span.first:
            wanted.append(group)
            before = begins if before is None else before
        begins = ends
    table = file.read_row_groups(wanted).slice(span.first - (before or 0), len(span))
    yield from ({name: value for name, value in row.items() if value is not None} for row in table.to_pylist())


def parquet() -> Any:
    """pyarrow's module for Parquet.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "batch", "Parquet") from error
    return pyarrow.parquet


_PLACES: Mapping[str, Callable[[Path, int, Callable[[bytes], Any]], Places]] = {
    "jsonl": _lines,
    "csv": _cells,
    "parquet": _groups,
}
_READ: Mapping[str, Callable[[Span], Iterator[Values]]] = {
    "jsonl": _read_lines,
    "csv": _read_cells,
    "parquet": _read_groups,
}


def kept_types(inputs: Inputs, columns: Sequence[str]) -> dict[str, str]:
    """The types, in pyarrow, of columns whose values all are numbers of one kind or flags; others are kept as text.

    One type for all files, so that the shards of a run can be read together. Reads every row, if there are columns.
    """
    found: dict[str, set[str]] = {column: set() for column in columns}
    for span in inputs.spans if columns else ():
        for row in read(span):
            for column, kinds in found.items():
                value = None if isinstance(row, str) else row.get(column)
                if value is not None:
                    kinds.add(_type_of(value))
    types: dict[str, str] = {}
    for column, kinds in found.items():
        if kinds == {"int64", "float64"}:
            kinds = {"float64"}
        if len(kinds) == 1 and "string" not in kinds:
            types[column] = kinds.pop()
    return types


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool_"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return "int64"
    return "float64" if isinstance(value, float) else "string"


def sample(inputs: Inputs, most: int) -> Sequence[Values]:
    """At most ``most`` rows, from spans that lie evenly over all files."""
    spans = inputs.spans
    chosen = sorted({number * (len(spans) - 1) // 3 for number in range(4)})
    each = -(-most // len(chosen))
    return [row for number in chosen for row in read(spans[number])[:each]][:most]
