"""Engines of several ranks, and one whose steps are scheduled ahead, against the transformers path, token for token.

The processes share the cores of one machine. The same script runs with more requests by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "serve_exactness.py"
WAYS = ("two tensor ranks of two stages", "two data ranks", "steps ahead")
COUNT = 32


def test_answers_are_those_of_one_device(tmp_path):
    asked = ["--model", "tiny", "--requests", str(COUNT), "--arrivals", "at once", "--engines", "budget 64"]
    script = [str(Path(__file__).with_name("forked.py")), str(SCRIPT)]
    command = [sys.executable, "-W", "ignore", *script, *asked, "--ways", *WAYS, "--json", str(tmp_path / "json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = json.loads((tmp_path / "json").read_text())["rows"]
    assert sorted(row["way"] for row in rows) == sorted(WAYS)
    for row in rows:
        assert row["equal"] + row["near_ties"] == row["compared"] == COUNT, row
        assert row["log_likelihoods"] > 3, row
        assert row["largest_log_likelihood_difference"] < 2e-3, row
        assert row["largest_weight_difference"] < 2e-3, row
        assert row["discarded_steps"] == 0, row
        assert row["branch_tokens"] > 0, row
