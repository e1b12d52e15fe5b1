"""``textguide distill``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
QUICK = [
    "distill", "--steps", "3", "--texts", "8", "--tokens", "10", "--batch-size", "4", "--rank", "2"
]  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("ab\ncad\n")
    return ["--prompts", str(tmp_path / "prompts.txt")]


def test_train_evaluate_and_use(run: Run, tmp_path: Path, prompts: list[str]) -> None:
    out = tmp_path / "A"
    outcome = run(*QUICK, *prompts, "--out", str(out), "--evaluate", "--limit", "6", "--tasks", "lambada_mini")
    assert outcome.code == 0, outcome.err
    assert "3 steps in" in outcome.out
    for told in ("KL(guided", "distilled", "rows per token", "lambada_mini"):
        assert told in outcome.out
    words = ["--max-new-tokens", "4", "ab"]
    merged = run("generate", "--adapter", str(out), "--scale", "1", *words)
    assert merged.code == 0, merged.err
    spelled = run("generate", "--guidance", f"cfg:scale=1.5,distilled={out}", *words)
    assert spelled.out == merged.out
    assert f"(adapter {out} at γ = 1.5 at 4 steps)" in spelled.err
    turned = run("generate", "--adapter", str(out), "--adapter-scale", "9", "--scale", "1", *words)
    assert turned.out != merged.out
    again = run(*QUICK, *prompts, "--out", str(out))
    assert again.code == 2
    assert "has a finished adapter" in again.err


def test_json_and_scales(run: Run, tmp_path: Path, prompts: list[str]) -> None:
    outcome = run(*QUICK, *prompts, "--scales", "1,1.5,2", "--out", str(tmp_path / "A"), "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["steps"] == 3
    assert json.loads((tmp_path / "A" / "distillation.json").read_text())["scale"] == 2.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scales", "1,x"], "--scales '1,x' must be numbers"),
        (["--guidance", "cfg:scale=1"], "changes nothing as it is set"),
        (["--steps", "0"], "steps=0 must be a whole number"),
        (["--prompts", "nowhere.txt"], "must be a file that ends in"),
        ([], "no token of the tokenizer is a capitalised word"),
    ],
)
def test_what_cannot_work_is_one_line(run: Run, tmp_path: Path, more: list[str], message: str) -> None:
    outcome = run(*QUICK, "--out", str(tmp_path / "A"), *more)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
