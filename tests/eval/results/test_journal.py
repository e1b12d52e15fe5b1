"""The journal: resuming, torn lines, other people's files, two processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textguide.eval.results.journal import FolderInUseError, Journal, read_journal

IDENTITY = {"model": "tiny", "tasks": ["a", "b"], "seed": 0}


def filled(path: Path, records: dict[str, Any]) -> Path:
    with Journal.open(path, IDENTITY) as journal:
        for key, record in records.items():
            journal.append(key, record)
    return path


def test_resumes_where_it_was(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "journal.jsonl", {"1": [0.5, True], "2": {"x": None}})
    with Journal.open(path, dict(reversed(IDENTITY.items()))) as journal:
        assert journal.done == {"1": [0.5, True], "2": {"x": None}}
        assert (journal.resumed, len(journal), "1" in journal, "3" in journal) == (2, 2, True, False)
        journal.append("3", "drei")
        journal.append("1", "again")
    assert read_journal(path) == (IDENTITY, {"1": "again", "2": {"x": None}, "3": "drei"})


def test_memory_is_what_the_file_says(tmp_path: Path) -> None:
    """A resumed run sees the same values as one that was never interrupted."""
    record = {
        "t": (1, 2),
        "low": -math.inf,
        "np": np.float32(0.25),
        "array": np.array([1.0, math.inf]),
        "s": "\ud800\n",
    }
    with Journal.open(tmp_path / "j", IDENTITY) as journal:
        journal.append("k", record)
        live = dict(journal.done)
    assert live == read_journal(tmp_path / "j")[1]
    assert live["k"] == {"t": [1, 2], "low": -math.inf, "np": 0.25, "array": [1.0, math.inf], "s": "\ud800\n"}
    with Journal.open(tmp_path / "j2", IDENTITY) as journal:
        journal.append("nan", [math.nan])
        assert math.isnan(journal.done["nan"][0])
    for line in (tmp_path / "j2").read_bytes().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.dictionaries(
        st.text(max_size=5), st.one_of(st.text(), st.floats(), st.lists(st.integers())), max_size=5
    ),
    cut=st.floats(0, 1),
    junk=st.booleans(),
)
def test_cut_anywhere(tmp_path: Path, records: dict[str, Any], cut: float, junk: bool) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    filled(path, records)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    at = round(cut * len(data))
    # after a power cut the file may have its old length, with zeros where the content is missing
    path.write_bytes(data[:at] + (b"\0" * 7 if junk and at > len(lines[0]) else b""))
    whole = sum(len(b"".join(lines[: i + 1])) <= at for i in range(len(lines)))
    expected = list(records)[: max(0, whole - 1)]
    with Journal.open(path, IDENTITY) as journal:
        assert list(journal.done) == expected
        for key in list(records)[len(expected) :]:
            journal.append(key, records[key])
    assert path.read_bytes() == data


def test_other_identity_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.jsonl", {"1": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError) as error:
        Journal.open(path, {**IDENTITY, "model": "large" * 50, "limit": 5})
    message = str(error.value)
    assert str(tmp_path) in message
    assert 'model: "tiny" there, "largelarge' in message
    assert "limit: nothing there, 5 here" in message
    assert "--output" in message
    assert "seed" not in message
    assert len(message) < 400
    assert path.read_bytes() == before
    Journal.open(path, IDENTITY).close()  # the refusal has let go of the lock


@pytest.mark.parametrize("content", [b"my shopping list", b"a\nb\n", b"[1]\n", b'{"identity": {}}\n', b"\xff\xfe\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a journal"):
        Journal.open(path, IDENTITY)
    assert path.read_bytes() == content


def test_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"textguide-journal": 2, "identity": {}}\n')
    with pytest.raises(ValueError, match="format 2"):
        Journal.open(path, IDENTITY)


def test_damage_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.jsonl", {"1": 1, "2": 2, "3": 3})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b'{"key": "2", "rec\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"line 3 of .*journal\.jsonl is damaged"):
        Journal.open(path, IDENTITY)
    assert path.read_bytes() == b"".join(lines)


def test_bad_records_leave_the_file_alone(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j", IDENTITY) as journal:
        with pytest.raises(TypeError, match="key=3"):
            journal.append(3, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="object"):
            journal.append("k", object())
        with pytest.raises(TypeError, match="object"):
            journal.append("k", [math.inf, object()])
        assert journal.done == {}
    with pytest.raises(ValueError, match="closed"):
        journal.append("k", 1)
    journal.close()
    assert read_journal(tmp_path / "j")[1] == {}


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j", IDENTITY) as journal:
        journal.append("1", 1)
        with pytest.raises(FolderInUseError, match="another process is writing"):
            Journal.open(tmp_path / "j", IDENTITY)
        assert read_journal(tmp_path / "j")[1] == {"1": 1}
    Journal.open(tmp_path / "j", IDENTITY).close()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_process_loses_nothing_it_appended(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from textguide.eval.results.journal import Journal\n"
        "journal = Journal.open(sys.argv[1], {'run': 1})\n"
        "for i in range(50): journal.append(str(i), i)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "j"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(FolderInUseError):
            Journal.open(path, {"run": 1})
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Journal.open(path, {"run": 1}) as journal:
        assert len(journal) == 50


def test_appending_is_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One synchronisation in five seconds, whatever the number of records."""
    with Journal.open(tmp_path / "j", IDENTITY) as journal:
        synced = []
        monkeypatch.setattr(os, "fsync", synced.append)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        for i in range(200):
            journal.append(str(i), [0.1, True])
        assert synced == []
        now += 5
        journal.append("last", 1)
        assert len(synced) == 1


def test_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.open(tmp_path / "j", IDENTITY) as journal:
        journal.append("1", 1)
        real = journal._stream

        class Full:
            closed = False
            fileno = real.fileno

            def write(self, data: bytes) -> int:
                if len(data) < 10:
                    raise OSError(28, "No space left on device")
                return real.write(data[:8])

        monkeypatch.setattr(journal, "_stream", Full())
        with pytest.raises(OSError, match="No space"):
            journal.append("2", "x" * 100)
        monkeypatch.undo()
        assert "2" not in journal
        journal.append("3", 3)
    assert read_journal(tmp_path / "j")[1] == {"1": 1, "3": 3}
