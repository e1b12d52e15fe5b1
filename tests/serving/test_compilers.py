"""What a client sends is compiled elsewhere, within limits, while the event loop goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from textguide.constraints.engines.xgrammar_engine import FOLDER
from textguide.serving.compilers import MOST_KEPT, Compilers
from textguide.serving.errors import BusyError, RefusedError
from textguide.serving.limits import Limits

ROOT = Path(__file__).parents[2]
LIMITS = Limits(constraint_seconds=0.5, constraint_bytes=10, constraint_memory=300_000_000)


def run(work: Callable[[Compilers], Awaitable[Any]], limits: Limits = LIMITS, processes: int = 2) -> Any:
    async def inside() -> Any:
        compilers = Compilers("tests.serving.jobs:handler", lambda: "prepared", limits, processes)
        try:
            await compilers.start()
            await compilers.check("field", ["echo", "until it has loaded"])
            return await work(compilers)
        finally:
            compilers.close()

    return asyncio.run(inside())


def test_jobs_are_answered_by_other_processes() -> None:
    async def work(compilers: Compilers) -> list[Any]:
        return [await compilers.check("field", ["echo", value]) for value in ("one", "two", "one")]

    first, second, again = run(work)
    assert (first["setup"], first["value"], second["value"]) == ("prepared", "one", "two")
    assert len({os.getpid(), first["process"], second["process"]}) == 3
    assert again is first  # it was kept


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (["hang", ""], "field: compiling the constraint takes more than the 0.5 s of this server"),
        (["allocate", 1_000_000_000], "field: compiling the constraint takes more than the 0.3 GB of memory"),
        (["refuse", "field='x' cannot be used"], "field='x' cannot be used"),
        (["refuse", "x" * 100_000], "field: xxx"),
        (["recurse", ""], "field: it is nested too deeply"),
        (["fail", ""], r"field: it cannot be compiled \(KeyError\)"),
    ],
)
def test_refusals_name_the_field(job: list[Any], reason: str) -> None:
    async def work(compilers: Compilers) -> None:
        with pytest.raises(RefusedError, match=f"^{reason}") as caught:
            await compilers.check("field", job)
        assert caught.value.field == "field"
        assert len(str(caught.value)) < 1000
        assert (await compilers.check("field", ["echo", "after that"]))["value"] == "after that"

    run(work)


def test_an_error_is_about_the_field_that_its_message_names() -> None:
    async def work(compilers: Compilers) -> None:
        with pytest.raises(RefusedError, match=r"^other=3 is too large$") as caught:
            await compilers.check("field", ["refuse", "other=3 is too large"], ["another", "other"])
        assert caught.value.field == "other"

    run(work)


def test_the_loop_goes_on_while_jobs_hang() -> None:
    async def work(compilers: Compilers) -> int:
        jobs = [asyncio.create_task(compilers.check("field", ["hang", number])) for number in range(2)]
        turns = 0
        while not all(job.done() for job in jobs):
            await asyncio.sleep(0.01)
            turns += 1
        for job in jobs:
            with pytest.raises(RefusedError, match="takes more than"):
                job.result()
        return turns

    assert run(work) >= 10  # about 50; a loop that is blocked has 1


def test_jobs_wait_for_a_process_but_not_for_long() -> None:
    async def work(compilers: Compilers) -> list[str]:
        jobs = [compilers.check("field", ["hang", number]) for number in range(5)]
        jobs += [compilers.check("field", ["hang", 0])]  # known when its turn comes
        return [type(error).__name__ for error in await asyncio.gather(*jobs, return_exceptions=True)]

    kinds = run(work, processes=1)
    assert kinds[:5].count("RefusedError") >= 2
    assert kinds[:5].count("BusyError") >= 1


def test_verdicts_are_kept_by_hash_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(compilers: Compilers) -> None:
        asked = 0

        async def answer(text: str) -> bytes:
            nonlocal asked
            asked += 1
            return b'+{"value": 1}'

        monkeypatch.setattr(compilers, "_answer", answer)
        for number in range(MOST_KEPT + 50):
            await compilers.check("field", ["echo", number])
        assert compilers.kept == MOST_KEPT
        assert asked == MOST_KEPT + 50
        await compilers.check("field", ["echo", MOST_KEPT])
        assert asked == MOST_KEPT + 50
        await compilers.check("field", ["echo", 0])
        assert asked == MOST_KEPT + 51

    run(work)


def test_what_took_too_long_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textguide.serving.compilers.RETRY_SECONDS", 0.0)

    async def work(compilers: Compilers) -> Any:
        with pytest.raises(RefusedError, match="takes more than"):
            await compilers.check("field", ["sleep", 5])
        compilers.limits = replace(LIMITS, constraint_seconds=60.0)
        compilers.close()  # started again, with the new limit
        return await compilers.check("field", ["sleep", 0.6])

    assert run(work)["value"] == 0.6


def test_a_process_that_ended_is_started_again() -> None:
    async def work(compilers: Compilers) -> Any:
        assert compilers._process is not None
        os.kill(compilers._process.pid, signal.SIGKILL)
        compilers._process.wait()
        return await compilers.check("field", ["echo", "again"])

    assert run(work)["value"] == "again"


def test_a_process_that_cannot_start_is_no_fault_of_the_request() -> None:
    async def work() -> None:
        compilers = Compilers("tests.serving.jobs:nothing", lambda: None, LIMITS)
        with pytest.raises(BusyError, match="cannot be compiled at the moment"):
            await compilers.check("field", ["echo", 1])
        compilers.close()

    asyncio.run(work())


def test_loading_is_not_counted_as_waiting_for_others() -> None:
    """On a machine that is busy, loading takes longer than two jobs may take."""

    async def work() -> list[Any]:
        compilers = Compilers("tests.serving.jobs:slow_handler", lambda: "prepared", LIMITS, processes=1)
        try:
            return await asyncio.gather(*(compilers.check("field", ["echo", number]) for number in range(4)))
        finally:
            compilers.close()

    assert [answer["value"] for answer in asyncio.run(work())] == [0, 1, 2, 3]


def test_sizes_are_bytes() -> None:
    compilers = Compilers("tests.serving.jobs:handler", lambda: None, LIMITS)
    compilers.check_size("field", "a" * 10)
    with pytest.raises(RefusedError, match=r"^field has 12 bytes, and this server .* up to 10; .*--constraint-bytes"):
        compilers.check_size("field", "ä" * 6)


def test_processes_and_files_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    program = """
        import asyncio
        from textguide.serving.compilers import Compilers
        from textguide.serving.limits import Limits

        async def serve():
            compilers = Compilers("tests.serving.jobs:handler", lambda: None, Limits(constraint_seconds=30))
            answer = await compilers.check("field", ["echo", 1])
            print(compilers._process.pid, compilers._folder.name, flush=True)
            await asyncio.sleep(60)

        asyncio.run(serve())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = {**os.environ, FOLDER: str(compiled)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as server:
        assert server.stdout is not None
        number, folder = server.stdout.readline().decode().split()
        process = int(number)
        assert Path(folder).is_dir()
        server.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and _state(process) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not Path(folder).exists()
    assert not compiled.exists()


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_busy_is_not_a_refusal() -> None:
    assert not issubclass(BusyError, ValueError)  # a client may send it again
