"""``python -m textguide.eval``: lm-eval's own command, with our model and our tasks in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

import lm_eval.tasks

from textguide import CFG
from textguide.eval import GuidedLM, SweepOptions, run_sweep
from textguide.eval.lm_eval_models import command
from textguide.eval.lm_eval_models.answering import settings_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """lm-eval's command sets up the logging of the process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def no_index_of_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading lm-eval's own tasks takes ten seconds, and these tests name ours alone."""
    tasks = command.TaskManager

    def ours(data: Any, **options: Any) -> Any:
        return tasks(data, lm_eval_tasks=False, **options)

    monkeypatch.setattr(command, "TaskManager", ours)


def test_it_gives_what_a_sweep_gives(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"pretrained={tiny_model},dtype=float32,guidance=cfg:scale=1.5;schedule=linear"
    options = ["--limit", "5", "--batch_size", "4", "--output_path", str(tmp_path / "out"), "--log_samples"]
    managed = lm_eval.tasks.TaskManager
    assert command.main(["--tasks", "lambada_mini", "--model_args", arguments, *options]) == 0
    assert lm_eval.tasks.TaskManager is managed
    assert "lambada_mini" in capsys.readouterr().out
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["lambada_mini"]
    assert list((tmp_path / "out").rglob("samples_*.jsonl"))
    ours = run_sweep(
        ["lambada_mini"], [CFG(1.5, schedule="linear")], options=SweepOptions(limit=5),
        model_args={"pretrained": tiny_model, "batch_size": 4, "device": "cpu", "dtype": "float32"},
    )  # fmt: skip
    assert ours is not None
    for metric in ("acc,none", "perplexity,none"):
        assert found[metric] == pytest.approx(ours.tasks[0].metrics[metric].value, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cfg:scale=1.5;schedule=linear", CFG(1.5, schedule="linear")),
        ("cfg:scale=1.5,negative_prompt=a; b", CFG(1.5, negative_prompt="a; b")),
        ("plain", None),
        (CFG(2.0).to_json(), CFG(2.0)),
    ],
)
def test_guidance_that_survives_the_split_at_commas(given: str, expected: Any, tmp_path: Path) -> None:
    assert settings_of(given, None) == [expected]
    if expected is not None:
        (tmp_path / "g.json").write_text(expected.to_json())
        assert settings_of(str(tmp_path / "g.json"), None) == [expected]


def test_what_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.completed(["--tasks", "a"])[:5] == ["run", "--model", "textguide", "--device", "cpu"]
    assert command.completed(["run", "-M", "hf", "--device", "x"]) == ["run", "-M", "hf", "--device", "x"]
    assert command.completed(["--config", "a.yaml"]) == ["run", "--config", "a.yaml"]
    assert command.completed(["ls", "tasks"]) == ["ls", "tasks"]
    assert command.completed([]) == ["--help"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "no_such_task"], "no_such_task"),
        (["--tasks", "lambada_mini", "--model_args", "pretrained=smollm2,guidance=cgf"], "did you mean cfg"),
        (["--tasks", "gpqa_diamond_zeroshot", "--use_cache", "x"], "keep out of plain text"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_model_is_the_one_that_python_gives() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("textguide") is GuidedLM
