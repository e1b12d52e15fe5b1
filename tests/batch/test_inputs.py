"""Files and their spans: every row once, in order, whatever the format and wherever the cuts are."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textguide.batch import inputs

from .conftest import write_jsonl

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'textguide[batch]'")
TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), min_size=1, max_size=20)


def rows_of(found: inputs.Inputs) -> list[Any]:
    return [row for span in found.spans for row in inputs.read(span)]


def write(folder: Path, kind: str, texts: list[str]) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, [{"prompt": text, "n": n} for n, text in enumerate(texts)])
    if kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["prompt", "n"], *([text, n] for n, text in enumerate(texts))])
        return path
    table = pyarrow.table({"prompt": texts, "n": list(range(len(texts)))})
    inputs.parquet().write_table(table, path, row_group_size=3)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@given(texts=TEXTS, size=st.integers(1, 7))
def test_every_row_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, kind: str, texts: list[str], size: int
) -> None:
    path = write(tmp_path_factory.mktemp("rows"), kind, texts)
    found = inputs.scan(path, size)
    assert [row["prompt"] for row in rows_of(found)] == texts
    assert [int(row["n"]) for row in rows_of(found)] == list(range(len(texts)))
    assert found.rows == len(texts) == found.spans[-1].stop
    assert [span.start for span in found.spans] == list(range(0, len(texts), size))
    assert all(len(span) <= size for span in found.spans)


def test_rows_are_counted_over_all_files(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", ["a", "b", "c"])
    write(tmp_path, "csv", ["d", "e"])
    (tmp_path / "notes.txt").write_text("no rows")
    found = inputs.scan(tmp_path, 2)
    assert [Path(file.path).name for file in found.files] == ["rows.csv", "rows.jsonl"]
    assert [(span.start, span.stop) for span in found.spans] == [(0, 2), (2, 4), (4, 5)]
    assert [row["prompt"] for row in rows_of(found)] == ["d", "e", "a", "b", "c"]
    assert [span.start for span in inputs.scan([tmp_path / "rows.jsonl", tmp_path / "rows.csv"], 9).spans] == [0, 3]


def test_blank_lines_are_no_rows_and_broken_ones_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["", {"prompt": "a"}, "  ", "{", "[1]", {"prompt": "b"}, ""])
    read = rows_of(inputs.scan(path, 2))
    assert [row if isinstance(row, str) else row["prompt"] for row in read] == [
        "a", read[1], "the line holds a list, and no JSON object", "b",
    ]  # fmt: skip
    assert "is no JSON" in read[1]


def test_cells_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,neg\n"a\nb",\nc\n\n"d ""e""",f\n', encoding="utf-8")
    read = rows_of(inputs.scan(path, 1))
    assert read == [{"prompt": "a\nb"}, "the row has 1 cells, and there are 2 columns", {"prompt": 'd "e"', "neg": "f"}]


def test_a_file_that_changed_has_another_digest(tmp_path: Path) -> None:
    for kind in ("jsonl", "csv", "parquet"):
        before = inputs.scan(write(tmp_path, kind, ["a", "b"]), 2).files[0]
        assert inputs.scan(write(tmp_path, kind, ["a", "b"]), 5).files[0] == before
        assert inputs.scan(write(tmp_path, kind, ["a", "c"]), 2).files[0].digest != before.digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no row"),
        ("a.csv", "", "no names of columns"),
        ("a.csv", 'prompt\n"a', "is no CSV in UTF-8"),
        ("a.json", "{}", "must end in .jsonl"),
        ("a.jsonl.gz", "", "must end in .jsonl"),
        (None, "", "is no file and no folder"),
        ("folder/a.txt", "", "holds no file that ends in"),
    ],
)
def test_refusals(tmp_path: Path, name: str | None, content: str, message: str) -> None:
    path = tmp_path / (name or "nowhere")
    if name is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        inputs.scan(path.parent if name == "folder/a.txt" else path, 3)
    with pytest.raises(ValueError, match="names no file"):
        inputs.scan([], 3)


def test_a_sample_comes_from_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [str(n) for n in range(1000)])
    looked = [int(row["prompt"]) for row in inputs.sample(inputs.scan(path, 100), 40)]  # type: ignore[index,call-overload]
    assert looked == [*range(10), *range(300, 310), *range(600, 610), *range(900, 910)]
    assert len(inputs.sample(inputs.scan(path, 5000), 40)) == 40
    assert json.dumps(looked)
