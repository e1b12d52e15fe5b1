"""What a sweep takes, told before it starts, against what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from textguide import CFG
from textguide.cli import main
from textguide.eval import PlannedWork, SweepOptions, plan_sweep, run_sweep
from textguide.guidance import ContrastiveDecoding
from textguide.models import load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SETTINGS = [None, CFG(1.5), CFG(3.0, negative_prompt="Once upon a time there was")]
NEW = 6


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load("smollm2-small")


def arguments(loaded: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"pretrained": loaded[0], "tokenizer": loaded[1], "batch_size": 4, **more}


OPTIONS = SweepOptions(limit=12, gen_kwargs={"max_gen_toks": NEW, "min_new_tokens": NEW}, select_on=None)


def plan(loaded: tuple[Any, Any], tasks: list[str], settings: Any = None, **more: Any) -> list[PlannedWork]:
    return plan_sweep(tasks, settings or SETTINGS, options=OPTIONS, model_args=arguments(loaded), **more)


def taken(loaded: tuple[Any, Any], tasks: list[str], settings: list[Any]) -> tuple[int, int]:
    """Passes and tokens of the run itself."""
    read: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        read.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel())

    hook = loaded[0].register_forward_pre_hook(note, with_kwargs=True)
    try:
        run_sweep(tasks, settings, options=OPTIONS, model_args=arguments(loaded))
    finally:
        hook.remove()
    return len(read), sum(read)


def test_scores_are_planned_as_they_are_run(loaded: tuple[Any, Any]) -> None:
    (found,) = plan(loaded, ["lambada_mini"])
    passes, tokens = taken(loaded, ["lambada_mini"], SETTINGS)
    assert (found.task, found.label, found.requests, found.kept) == ("lambada_mini", "all", 12, 0)
    assert found.passes == pytest.approx(passes, rel=0.2)  # batches of several branches fill unevenly
    assert found.tokens == pytest.approx(tokens, rel=0.1)
    assert 0 < found.hours < 0.1


def test_texts_are_planned_as_they_are_run(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS:
        # A task's stop words end texts early, which a plan does not know.
        monkeypatch.setattr("textguide.eval.lm_eval_models.guided_lm.own_criteria", _no_stops)
        (found,) = plan(loaded, ["sudoku4"], [setting])
        passes, tokens = taken(loaded, ["sudoku4"], [setting])
        assert (found.task, found.requests) == ("sudoku4", 12)
        assert found.passes >= passes
        assert found.passes == pytest.approx(passes, rel=0.25)  # of the last token nothing is read
        assert found.tokens == pytest.approx(tokens, rel=0.1)


def _no_stops(decoding: Any, *_: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        kwargs["stopping_criteria"] = type(kwargs["stopping_criteria"])(
            one for one in kwargs["stopping_criteria"] if not type(one).__module__.startswith("lm_eval.")
        )
        return decoding(*args, **kwargs)

    return run


def test_more_branches_take_more(loaded: tuple[Any, Any]) -> None:
    found = {one.label: one for one in plan(loaded, ["sudoku4"])}
    plain, short, long = found.values()
    assert plain.tokens < short.tokens < long.tokens


def test_a_further_model_is_counted(loaded: tuple[Any, Any]) -> None:
    settings = [ContrastiveDecoding(0.5, amateur="amateur")]
    options = {**arguments(loaded), "models": {"amateur": load("smollm2-small")[0]}}
    (found,) = plan_sweep(["sudoku4"], settings, options=OPTIONS, model_args=options)
    (plain,) = plan(loaded, ["sudoku4"], [None])
    assert found.passes == 2 * plain.passes


def test_what_a_run_has_done_is_left_out(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    output, tasks = tmp_path / "run", ["lambada_mini", "sudoku4"]
    before = plan(loaded, tasks, output=output)
    assert not output.exists()
    assert [(one.requests, one.kept) for one in before] == [(12, 0)] * 4
    run_sweep(tasks, SETTINGS, output=output, options=OPTIONS, model_args=arguments(loaded))
    journal = output / "journal.jsonl"
    files = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    after = plan(loaded, tasks, output=output)
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == files
    assert [(one.requests, one.kept, one.passes, one.tokens, one.hours) for one in after] == [(0, 12, 0, 0, 0.0)] * 4
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-5]))
    assert [one.requests for one in plan(loaded, tasks, output=output)] == [0, 0, 0, 5]
    with pytest.raises(ValueError, match="holds another run"):
        plan(loaded, ["lambada_mini"], output=output)


def test_bad_arguments(loaded: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="backend='diffusion' cannot be planned"):
        plan_sweep(["sudoku4"], [None], options=OPTIONS, model_args={"backend": "diffusion"})
    with pytest.raises(ValueError, match="occurs twice"):
        plan(loaded, ["lambada_mini"], [CFG(1.5), CFG(1.5)])
    assert main(["eval", "--suite", "methods", "--plan"]) == 2
    assert "--plan works only with lm-eval's tasks" in capsys.readouterr().err


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "eval",
        "--model",
        "smollm2-small",
        "--tasks",
        "lambada_mini",
        "--limit",
        "4",
        "--scales",
        "1,2",
        "--plan",
    ]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["task"], one["requests"]) for one in found["work"]] == [("lambada_mini", 4)]
    assert found["hours"] == found["work"][0]["hours"] > 0
    assert main(command) == 0
    assert "lambada_mini" in capsys.readouterr().out
