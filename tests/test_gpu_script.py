"""scripts/bench/gpu.sh: every option it gives is one that the benchmark has, and the smallest of them run on a CPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .marks import NEEDS_SMOLLM2

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "bench" / "gpu.sh"
PARTS = {"decode", "lengths", "chunks", "speculation", "sweep", "serving", "cost-model", "batch"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "more", [[], ["--tiny", "--device", "cpu"], ["--model", "a b", "--adapter", "c", "--dtype", "float16"]]
)
def test_commands_are_what_the_benchmarks_take(more: list[str]) -> None:
    done = run("--print", "--data", "DATA", "--out", "OUT", *more)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert {Path(line[-1]).stem for line in lines} == PARTS
    for _, script, *arguments in lines:
        text = (ROOT / script).read_text(encoding="utf-8")
        if "timing.parser(" in text:  # has the options that benchmarks share
            text += (SCRIPT.parent / "timing.py").read_text(encoding="utf-8")
        known = set(re.findall(r'"(--[a-z-]+)"', text))
        given = {one.split("=")[0] for one in arguments if one.startswith("--")}
        assert given <= known, script
        assert "--json" in given
    only = run("--print", "--only", "decode,batch", *more)
    assert len(only.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "unknown option --fast"),
        (["--out"], "--out needs a value"),
        (["--device", "tpu"], "--device tpu must be cuda or cpu"),
        (["--only", "decode,paint"], "--only paint is no part"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("part", ["decode", "lengths", "chunks", "speculation"])
class TestTiny:
    pytestmark = NEEDS_SMOLLM2

    def test_the_smallest_figures(self, part: str, tmp_path: Path) -> None:
        done = run("--device", "cpu", "--tiny", "--only", part, "--out", str(tmp_path / "out"), TEXTGUIDE_DATA="")
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "out" / f"{part}.json").read_text())
        assert report["machine"]["torch"]
        assert len(report) > 2


def test_what_is_missing_is_said_and_what_fails_is_counted(tmp_path: Path) -> None:
    done = run(
        "--only",
        "sweep,batch,serving,decode",
        "--out",
        str(tmp_path),
        PYTHON="false",
        TEXTGUIDE_DATA="",
        VLLM_PYTHON="false",
    )
    assert done.returncode == 1
    for said in (
        "sweep is left out: it reads LAMBADA",
        "serving is left out: vLLM",
        "batch is left out: Ray",
        "failed: decode",
    ):
        assert said in done.stderr
