"""The runner of model-written programs: what passes, and that nothing else does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from textguide.tasks import loaders
from textguide.tasks.humaneval import complete_programs, estimate_pass_at_k, pass_at_k
from textguide.tasks.sandbox import run_program

CALL = "\nassert add(2, 3) == 5\n"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def add(a, b):\n    return a + b", "passed"),
        ("def add(a, b):\n    print('x' * 10**6)\n    return a + b", "passed"),
        ("def add(a, b):\n    return a - b", "failed: AssertionError"),
        ("def add(a, b)\n    return a + b", "failed: SyntaxError"),
        ("def add(a, b):\n    return input()", "failed: EOFError"),
        ("import sys\nprint('passed')\nsys.exit(0)", "failed: SystemExit"),
        ("import os\nprint('passed', flush=True)\nos._exit(0)", "exited"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "exited"),
        ("open('big', 'wb').write(bytes(1 << 26))\ndef add(a, b):\n    return a + b", "failed: OSError"),
        ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
    ],
)
def test_verdicts(program: str, reason: str) -> None:
    verdict = run_program(program + CALL)
    assert verdict.reason == reason
    assert verdict.passed is (reason == "passed")


@pytest.mark.parametrize(
    "program",
    ["while True: pass", "import time; time.sleep(60)", "import subprocess; subprocess.run(['sleep', '60'])"],
)
def test_what_does_not_end_is_stopped(program: str) -> None:
    start = time.monotonic()
    verdict = run_program(program, timeout=0.5)
    assert not verdict.passed
    assert time.monotonic() - start < 5
    # Where the system lets a program start no other, that is how the last one ends.
    assert verdict.reason in ("timeout", "failed: BlockingIOError")


@pytest.mark.parametrize("program", ["x = bytearray(1 << 32)", "x = ['a']\nwhile True: x += x"])
def test_what_takes_too_much_memory_is_stopped(program: str) -> None:
    assert run_program(program, memory_mb=256, timeout=20).reason == "memory"


def test_each_program_has_an_empty_folder_that_goes_away(tmp_path: Path) -> None:
    note = tmp_path / "note"
    program = (
        f"import os\nassert os.listdir() == []\nopen('left', 'w').close()\nopen({str(note)!r}, 'w').write(os.getcwd())"
    )
    assert run_program(program).passed
    assert run_program(program).passed
    assert not Path(note.read_text()).exists()


def test_the_environment_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    assert run_program("import os\nassert 'SOME_TOKEN' not in os.environ").passed


@pytest.mark.parametrize("limit", [{"timeout": 0}, {"memory_mb": -1}, {"file_mb": 0}, {"timeout": float("nan")}])
def test_limits_are_above_zero(limit: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(limit))}=.* must be above 0"):
        run_program("pass", **limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "c", "k", "expected"), [(4, 1, 1, 0.25), (4, 1, 4, 1.0), (5, 2, 2, 0.7), (3, 0, 2, 0.0)])
def test_the_estimate_of_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert estimate_pass_at_k(n, c, k) == pytest.approx(expected)


def test_more_tries_than_programs_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"k=3 needs at least k programs.*repeats="):
        estimate_pass_at_k(2, 1, 3)


def test_all_published_solutions_pass(data: str) -> None:
    rows = loaders.humaneval(data=data)["test"]
    programs = complete_programs([[row["canonical_solution"]] for row in rows], list(rows))
    tests = [f"{row['test']}\ncheck({row['entry_point']})" for row in rows]
    assert len(programs) == 164
    assert pass_at_k(tests, programs, timeout=20) == {"pass@1": 1.0}
    assert json.dumps(pass_at_k(tests[:2], [["pass"], programs[1]])) == '{"pass@1": 0.5}'
