"""A claim from registration to verdict, on a small model: killed and resumed, changed, planned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from textguide.cli import main
from textguide.eval.replications import replicating
from textguide.eval.replications.claim import CLAIM

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CLAIM_TEXT = """\
paper: "2306.17806"
title: Stay on topic with Classifier-Free Guidance
claim: Guidance changes what is written.
where: A test.
read: abstract
differs: Everything.
known: Nothing.
direction: higher
least: 0.05
test:
  kind: texts
  prompts: sums
  items: 12
  at_once: 1
  measure: distinct_2
  tokens: 12
  model: smollm2-small
  dtype: float32
  tested: {guidance: "cfg:scale=1.5"}
  baseline: {guidance: null}
"""
TASK_TEXT = (
    CLAIM_TEXT.split("test:")[0]
    + """\
test:
  kind: task
  task: lambada_mini
  metric: acc,none
  items: 6
  first: 3
  model: smollm2-small
  dtype: float32
  tested: {guidance: "cfg:scale=1.5"}
  baseline: {guidance: null}
"""
)


def register(folder: Path, name: str, text: str = CLAIM_TEXT) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / CLAIM).write_text(text, encoding="utf-8")
    return folder / name


def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    register(whole, "one")
    place = register(killed, "one")
    assert main(["replicate", "one", "--folder", str(whole)]) == 0
    command = [sys.executable, "-m", "textguide", "replicate", "--all", "--folder", str(killed)]
    run = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    journal = place / ".work" / "journal.jsonl"
    until = time.monotonic() + 240
    while run.poll() is None and time.monotonic() < until:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = journal.read_bytes().count(b"\n")
    assert not (place / replicating.RUN).exists()
    assert 4 <= kept < 25
    assert main(["replicate", "one", "--folder", str(killed)]) == 0
    for file in (replicating.RUN, replicating.VERDICT):
        assert (place / file).read_bytes() == (whole / "one" / file).read_bytes()


def test_verdicts_and_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "claims"
    place = register(folder, "one", TASK_TEXT)
    register(folder, "two", TASK_TEXT)
    assert main(["replicate", "--plan", "--folder", str(folder)]) == 0
    assert "2 to run" in capsys.readouterr().out
    assert not (place / ".work").exists()
    assert main(["replicate", "one", "--folder", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["one"]
    assert found["family"] == {"claims": 2, "run": 1}
    assert found["n"] == 6
    run = json.loads((place / replicating.RUN).read_text())
    assert len(run["values"]["tested"]) == 6
    assert main(["replicate", "--list", "--folder", str(folder)]) == 0
    assert "two: not run" in capsys.readouterr().out
    # a claim that has been run is not run again, and not after a change
    assert main(["replicate", "one", "--folder", str(folder)]) == 0
    assert "has been run" in capsys.readouterr().out
    (place / CLAIM).write_text(TASK_TEXT.replace("least: 0.05", "least: 0.01"), encoding="utf-8")
    for names in (["one"], ["two"]):  # the family cannot be judged either
        assert main(["replicate", *names, "--folder", str(folder)]) == 2
        assert "was changed after its run started" in capsys.readouterr().err


def test_a_claim_that_was_begun_cannot_be_changed(tmp_path: Path) -> None:
    place = register(tmp_path, "one", CLAIM_TEXT.replace("measure: distinct_2", "measure: nothing"))
    with pytest.raises(ValueError, match="measure='nothing' is unknown"):
        replicating.replicate(tmp_path, "one")
    (place / CLAIM).write_text(CLAIM_TEXT, encoding="utf-8")
    with pytest.raises(ValueError, match="was changed after its run started"):
        replicating.replicate(tmp_path, "one")


def test_a_claim_is_committed_first(tmp_path: Path) -> None:
    place = register(tmp_path, "one", TASK_TEXT.replace("items: 6", "items: 2"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(ValueError, match=r"is not committed; .*--draft"):
        replicating.replicate(tmp_path, "one")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "claims"], check=True)
    assert replicating.replicate(tmp_path, "one")["claim"] == "one"
    assert (place / replicating.RUN).exists()


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register(tmp_path, "one", CLAIM_TEXT.replace("kind: texts", "kind: dream"))
    for arguments, message in (
        (["one"], "kind='dream' is not a kind of test"),
        (["two"], "'two' is not a claim"),
        (["one", "--all"], "--all excludes names"),
        ([], "name a claim"),
        (["one", "--folder", str(tmp_path / "none")], "is not a folder"),
    ):
        assert main(["replicate", "--folder", str(tmp_path), *arguments]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "one" / CLAIM).write_text(CLAIM_TEXT.replace("at_once: 1", "at_twice: 1"), encoding="utf-8")
    with pytest.raises(ValueError, match="'at_twice' is not a field of this kind"):
        replicating.replicate(tmp_path, "one", draft=True)
