"""``textguide batch`` without Ray: what it says before it runs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    lines = [{"prompt": f"prompt {n}", "continuation": "abc", "neg": "xyzw"} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    return [str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"), "--backend", "transformers"]


def test_dry_run(run: Run, rows: list[str], tmp_path: Path) -> None:
    outcome = run("batch", *rows, "--dry-run", "--rows-per-shard", "10", "--max-new-tokens", "20", "--json")
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "out").exists()
    found = json.loads(outcome.out)
    assert (found["rows"], found["left"], found["shards"], found["seconds"]) == (31, 31, 4, None)
    assert found["wrong"] == pytest.approx(1 / 31)
    assert found["prompt"] == pytest.approx((10 * 8 + 20 * 9) / 30)  # one token a character
    assert (found["branches"], found["branch_tokens"], found["new"]) == (1, 1, 20)
    assert found["passes"] == 31 * 2 * 20
    more = ["--negative-prompt-column", "neg", "--plain", "1=50", "--plain", "32=800"]
    timed = json.loads(run("batch", *rows, "--dry-run", "--json", *more).out)
    assert timed["branch_tokens"] == 4
    assert 31 * 128 / 800 < timed["seconds"] < 2.2 * 31 * 128 / 800
    scored = json.loads(run("batch", *rows, "--task", "score", "--dry-run", "--json", "--guidance", "formula:cond").out)
    assert (scored["branches"], scored["new"], scored["passes"]) == (0, 3, 93)
    told = run("batch", *rows, "--dry-run", *more).out
    for part in (
        "31 rows in 1 shards, 31 rows left",
        "1 extra branches that read 4 tokens",
        "3% of the rows",
        "seconds",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--plain", "8=1"], "--plain needs --dry-run"),
        (["--plain", "8", "--dry-run"], "--plain '8' must be N=RATE"),
        (["--plain", "8=0", "--dry-run"], "must be above 0"),
        (["--engine-args", "a=1"], "needs --backend vllm"),
        (["--rows-per-shard", "0"], "--rows-per-shard=0 must be"),
        (["--replicas", "0"], "replicas=0 must be"),
        (["--keep", "text"], "keep=text is a column of the results too"),
        (["--guidance", "corrsynth"], "depend on its neighbours"),
        (["--backend", "vllm"], "--device does not work with --backend vllm"),
    ],
)
def test_refusals(run: Run, rows: list[str], more: list[str], message: str) -> None:
    outcome = run("batch", *rows, *more)
    assert outcome.code == 2
    assert message in outcome.error


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "is no file and no folder" in run("batch", "nowhere.jsonl", "--out", str(tmp_path / "out")).error
