"""Arrays on disk: computed once, and never read if they are not what was written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from textguide.support import array_cache, files


class Work:
    """A computation that counts how often it runs."""

    def __init__(self, size: int = 5) -> None:
        self.size = size
        self.done = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.done += 1
        return {"a": np.arange(self.size, dtype=np.int64)[::-1], "b": np.zeros((0, 3), dtype=np.uint8)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path))
    monkeypatch.delenv("TEXTGUIDE_COMPILED_MB", raising=False)
    monkeypatch.setattr(array_cache, "MIN_SECONDS", 0.0)
    return tmp_path / "compiled"


def right(found: array_cache.Arrays) -> bool:
    return found["a"].tolist() == [4, 3, 2, 1, 0] and found["b"].shape == (0, 3) and found["b"].dtype == np.uint8


def test_a_result_is_read_from_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    assert all(right(array_cache.cached("x", {"of": "one"}, work)) for _ in range(3))
    assert work.done == 1
    assert right(array_cache.cached("x", {"of": "two"}, work))
    assert right(array_cache.cached("y", {"of": "one"}, work))
    assert work.done == 3
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(array_cache, "FORMAT", array_cache.FORMAT + 1)
    assert right(array_cache.cached("x", {"of": "one"}, work))
    assert work.done == 4


def test_quick_results_are_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_cache, "MIN_SECONDS", 60.0)
    array_cache.cached("x", {}, Work())
    assert not folder.exists()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def other_key(data: bytes) -> bytes:
    return data.replace(b"one", b"two")


@pytest.mark.parametrize("damage", [cut, flip, other_key, lambda data: b"", lambda data: b"\xff" * 100])
def test_damaged_files_are_computed_again(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    work = Work()
    array_cache.cached("x", {"of": "one"}, work)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert right(array_cache.cached("x", {"of": "one"}, work))
    assert right(array_cache.cached("x", {"of": "one"}, work))
    assert work.done == 2


def test_zero_megabytes_turn_the_cache_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    array_cache.cached("x", {}, work)
    monkeypatch.setenv("TEXTGUIDE_COMPILED_MB", "0")
    assert right(array_cache.cached("x", {}, work))
    assert right(array_cache.cached("z", {}, work))
    assert work.done == 3
    assert len(list(folder.iterdir())) == 1
    for wrong in ("many", "nan", "inf"):
        monkeypatch.setenv("TEXTGUIDE_COMPILED_MB", wrong)
        with pytest.raises(ValueError, match=f"TEXTGUIDE_COMPILED_MB='{wrong}' must be a number of megabytes"):
            array_cache.cached("x", {}, work)


def test_the_folder_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_COMPILED_MB", "0.045")
    works = [Work(1000) for _ in range(9)]
    for number, work in enumerate(works):
        array_cache.cached("x", {"of": number}, work)
        array_cache.cached("x", {"of": 0}, works[0])  # used all the time
        time.sleep(0.01)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 45_000
    assert len(list(folder.iterdir())) == 5
    assert works[0].done == 1
    array_cache.cached("x", {"of": 1}, works[1])
    assert works[1].done == 2
    array_cache.cached("x", {"of": "large"}, Work(5000))  # most of the room
    assert len(list(folder.iterdir())) == 5
    left = folder / ".x.safetensors.1234"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    array_cache.cached("x", {"of": 99}, Work(10))
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "file"))
    assert right(array_cache.cached("x", {}, Work()))


def test_many_writers_and_readers(folder: Path) -> None:
    wrong: list[array_cache.Arrays] = []

    def run(number: int) -> None:
        for turn in range(12):
            found = array_cache.cached("x", {"of": (number + turn) % 3}, Work())
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
