"""Arrays on disk: computed once, and never read where they are not what was written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from textguide.support import files, kept


class Work:
    """A computation that counts itself, and takes as long as it says."""

    def __init__(self, size: int = 5) -> None:
        self.size, self.done = size, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.done += 1
        return {"a": np.arange(self.size, dtype=np.int64)[::-1], "b": np.zeros((0, 3), dtype=np.uint8)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path))
    monkeypatch.delenv("TEXTGUIDE_COMPILED_MB", raising=False)
    monkeypatch.setattr(kept, "WORTH", 0.0)
    return tmp_path / "compiled"


def right(found: kept.Arrays) -> bool:
    return found["a"].tolist() == [4, 3, 2, 1, 0] and found["b"].shape == (0, 3) and found["b"].dtype == np.uint8


def test_what_was_computed_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    assert all(right(kept.kept("x", {"of": "one"}, work)) for _ in range(3))
    assert work.done == 1
    assert right(kept.kept("x", {"of": "two"}, work))
    assert right(kept.kept("y", {"of": "one"}, work))
    assert work.done == 3
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(kept, "FORMAT", kept.FORMAT + 1)
    assert right(kept.kept("x", {"of": "one"}, work))
    assert work.done == 4


def test_what_was_quick_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "WORTH", 60.0)
    kept.kept("x", {}, Work())
    assert not folder.exists()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def other_key(data: bytes) -> bytes:
    return data.replace(b"one", b"two")


@pytest.mark.parametrize("damage", [cut, flip, other_key, lambda data: b"", lambda data: b"\xff" * 100])
def test_damaged_files_are_computed_anew(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    work = Work()
    kept.kept("x", {"of": "one"}, work)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert right(kept.kept("x", {"of": "one"}, work))
    assert right(kept.kept("x", {"of": "one"}, work))
    assert work.done == 2


def test_nothing_is_kept_where_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    kept.kept("x", {}, work)
    monkeypatch.setenv("TEXTGUIDE_COMPILED_MB", "0")
    assert right(kept.kept("x", {}, work))
    assert right(kept.kept("z", {}, work))
    assert work.done == 3
    assert len(list(folder.iterdir())) == 1
    for wrong in ("many", "nan", "inf"):
        monkeypatch.setenv("TEXTGUIDE_COMPILED_MB", wrong)
        with pytest.raises(ValueError, match=f"TEXTGUIDE_COMPILED_MB='{wrong}' must be a number of megabytes"):
            kept.kept("x", {}, work)


def test_the_folder_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_COMPILED_MB", "0.045")
    works = [Work(1000) for _ in range(9)]
    for number, work in enumerate(works):
        kept.kept("x", {"of": number}, work)
        kept.kept("x", {"of": 0}, works[0])  # used all the time
        time.sleep(0.01)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 45_000
    assert len(list(folder.iterdir())) == 5
    assert works[0].done == 1
    kept.kept("x", {"of": 1}, works[1])
    assert works[1].done == 2
    kept.kept("x", {"of": "large"}, Work(5000))  # most of the room
    assert len(list(folder.iterdir())) == 5
    left = folder / ".x.safetensors.1234"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    kept.kept("x", {"of": 99}, Work(10))
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "file"))
    assert right(kept.kept("x", {}, Work()))


def test_many_writers_and_readers(folder: Path) -> None:
    wrong: list[kept.Arrays] = []

    def run(number: int) -> None:
        for turn in range(12):
            found = kept.kept("x", {"of": (number + turn) % 3}, Work())
            if not right(found):
                wrong.append(found)
            if turn % 5 == number:
                for path in folder.iterdir():
                    path.unlink(missing_ok=True)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert files.cache_root() == folder.parent
