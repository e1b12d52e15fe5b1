"""Ray's pool of replicas: killed and gone on with, the same bytes as without Ray and without a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from textguide import CFG
from textguide.batch import Columns, Settings, run, shards
from textguide.batch.inputs import scan
from textguide.batch.replica import Replica

from .conftest import write_jsonl

pytest.importorskip("ray", reason="Ray is not installed: pip install 'textguide[batch]'")
ROWS = [{"prompt": f"number {n}", **({"away": "other"} if n % 3 else {})} for n in range(28)]


def test_killed_and_gone_on_with(model_folder: str, tmp_path: Path) -> None:
    path, out = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    options = {"max_new_tokens": 40, "temperature": 1.0}
    command = [
        sys.executable, "-m", "textguide", "batch", str(path), "--out", str(out), "--model", model_folder,
        "--device", "cpu", "--scale", "2", "--negative-prompt-column", "away", "--backend", "transformers",
        "--rows-per-shard", "2", "--replicas", "2", "--cpus", "0.5", "--seed", "3", "--max-new-tokens", "40",
        "--temperature", "1", "--batch-size", "2", "--json",
    ]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 150
    while len(list(out.glob("rows-*"))) < 3:
        assert first.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, "three shards in 150 s"
        time.sleep(0.02)
    first.kill()
    first.wait()
    time.sleep(1)  # replicas see that they are alone
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("rows-*")}
    assert 3 <= len(before) < 14

    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == {"folder": str(out), "rows": 28, "done": 28, "errors": 0, "tokens": 28 * 40}
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before, "rows were done twice"

    settings = Settings(
        "generate", model_folder, CFG(2.0), columns=Columns(negative_prompt="away"), options={**options, "stop": None},
        seed=3, load={"device": "cpu"}, rows_per_shard=2,
    )  # fmt: skip
    inputs = scan(path, 2)
    fingerprint = settings.fingerprint(inputs)
    (tmp_path / "plain").mkdir()
    replica = Replica(settings, 2, tmp_path / "plain", fingerprint)
    for span in inputs.spans:
        replica.do(span)
    assert content(out) == content(tmp_path / "plain")
    assert len(content(out)) == 14

    with pytest.raises(ValueError, match="holds another run \\(seed: 3 there, 4 here"):
        run(replace(settings, seed=4), path, out)
    assert shards.left(out, inputs, fingerprint) == []


def content(folder: Path) -> dict[str, Any]:
    return {file.name: file.read_bytes() for file in folder.glob("rows-*")}
