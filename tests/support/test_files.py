"""Atomic writes: all or nothing, strict JSON."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from textguide.support import files


def test_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "one\r\n")
    files.write_text(target, "zwei ü\n")
    assert target.read_bytes() == "zwei ü\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_an_exception_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "old")

    def stop_halfway() -> None:
        with files.replacing(target) as stream:
            stream.write(b"half of the n")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_halfway()
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_unwritable_json_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    files.write_json(target, {"a": 1})
    with pytest.raises(TypeError, match="object"):
        files.write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_follows_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_plain_json() -> None:
    value = {
        1: np.float32(0.5),
        "nan": math.nan,
        "inf": np.float64(-math.inf),
        "array": np.array([[1, 2], [3, 4]]),
        "mixed": np.array([0.0, math.inf]),
        "flag": np.bool_(True),
        "tuple": (1, "a", None),
        "set": {3, 1},
        "path": Path("x/y"),
    }
    expected = {
        "1": 0.5,
        "nan": None,
        "inf": None,
        "array": [[1, 2], [3, 4]],
        "mixed": [0.0, None],
        "flag": True,
        "tuple": [1, "a", None],
        "set": [1, 3],
        "path": os.path.join("x", "y"),
    }
    assert files.plain(value) == expected
    assert isinstance(files.plain(np.bool_(True)), bool)


def test_fallback_for_parts_without_a_json_form() -> None:
    assert files.plain({"a": [len, 1]}, fallback=lambda part: part.__name__) == {"a": ["len", 1]}
    with pytest.raises(TypeError, match="builtin_function"):
        files.plain([len])


def test_lone_surrogates_are_escaped(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", ["ü\ud800"])
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == ["ü\ud800"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert files.writable_file(tmp_path / "new" / "page.html", "--html") == tmp_path / "new" / "page.html"
    assert files.folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    with pytest.raises(OSError, match=r"--html .* is a folder; name a file"):
        files.writable_file(tmp_path, "--html")
    with pytest.raises(OSError, match=r"--html .*file/page.html cannot be written"):
        files.writable_file(tmp_path / "file" / "page.html", "--html")
    with pytest.raises(ValueError, match=r"--output .*file is a file; name a folder"):
        files.folder(tmp_path / "file", "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="/proc is Linux's")
def test_a_folder_that_refuses_even_root() -> None:
    with pytest.raises(OSError, match=r"--out /proc/q cannot be written: /proc: .*; name another place"):
        files.folder("/proc/q")
