"""Comparisons of several runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from textguide.eval import (
    RunResult,
    TaskResult,
    compare_folders,
    compare_runs,
    mcnemar,
    measure,
    paired_bootstrap,
    write_run,
)

FIRST = [1, 0, 0, 1, 0, 1, 0, 0]
SECOND = [1, 1, 1, 1, 0, 1, 1, 0]


def run_of(values: dict[str, list[int]], ids: list[str] | None = None, task: str = "t", **guidance: Any) -> RunResult:
    entries = [
        TaskResult(task, label, 1.0, {"acc,none": measure(v)}, {"acc,none": np.array(v)}, item_ids=ids and tuple(ids))
        for label, v in values.items()
    ]
    return RunResult(entries, {label: guidance.get(label) for label in values}, identity={"values": values})


IDS = [f"id{i}" for i in range(8)]


def test_single_settings_are_compared_whatever_their_names(tmp_path: Path) -> None:
    write_run(run_of({"plain": FIRST}, IDS), tmp_path / "one", plots=False)
    write_run(run_of({"cfg": SECOND[::-1]}, IDS[::-1]), tmp_path / "two", plots=False)
    result = compare_folders([tmp_path / "one", tmp_path / "two"])
    assert result.runs == ("one", "two")
    assert [(row.task, row.metric, row.label) for row in result.rows] == [("t", "acc,none", "")]
    assert [value and value.value for value in result.rows[0].values] == [3 / 8, 6 / 8]
    (comparison,) = result.comparisons
    assert (comparison.label, comparison.baseline, comparison.n) == ("two", "one", 8)
    assert (comparison.gained, comparison.lost) == (3, 0)
    assert comparison.p_mcnemar == mcnemar(SECOND, FIRST).p
    assert comparison.p == pytest.approx(paired_bootstrap(SECOND, FIRST).p, abs=0.02)
    assert result.notes == ()


def test_sweeps_are_compared_setting_by_setting() -> None:
    first = run_of({"plain": FIRST, "cfg": SECOND}, IDS)
    second = run_of({"plain": FIRST, "other": FIRST}, IDS)
    result = compare_runs([first, second], ["one", "two"])
    assert [row.label for row in result.rows] == ["plain", "cfg", "other"]
    assert [[value is not None for value in row.values] for row in result.rows] == [
        [True, True],
        [True, False],
        [False, True],
    ]
    assert [(c.label, c.baseline) for c in result.comparisons] == [("two, plain", "one, plain")]


def test_shared_items_alone_are_compared() -> None:
    result = compare_runs([run_of({"p": FIRST}, IDS), run_of({"p": SECOND[2:]}, IDS[2:])], ["one", "two"])
    assert result.comparisons[0].n == 6
    assert result.comparisons[0].difference == pytest.approx((sum(SECOND[2:]) - sum(FIRST[2:])) / 6)
    assert result.notes == ("t, acc: two and one are compared on the 6 items that both have, of 6 and 8.",)


def test_other_items_are_not_compared() -> None:
    result = compare_runs([run_of({"p": FIRST}, IDS), run_of({"p": SECOND}, [f"x{i}" for i in IDS])], ["one", "two"])
    assert result.comparisons == ()
    assert "do not share items" in result.notes[0]
    result = compare_runs([run_of({"p": FIRST}, IDS), run_of({"p": SECOND})], ["one", "two"])
    assert result.comparisons == ()


def test_a_metric_without_items_is_shown_and_not_tested() -> None:
    bare = RunResult([TaskResult("t", "p", 1.0, {"acc,none": measure(FIRST)})], {"p": None})
    result = compare_runs([run_of({"p": FIRST}, IDS), bare], ["one", "two"])
    assert result.comparisons == ()
    assert "do not have values per item" in result.notes[0]


def test_different_tasks_stand_in_different_rows() -> None:
    result = compare_runs([run_of({"p": FIRST}, IDS), run_of({"p": FIRST}, IDS, task="u")], ["one", "two"])
    assert [[value is None for value in row.values] for row in result.rows] == [[False, True], [True, False]]
    assert result.comparisons == ()


def test_outputs() -> None:
    runs = [run_of({"p": FIRST}, IDS), run_of({"p": SECOND}, IDS), run_of({"p": FIRST}, IDS)]
    result = compare_runs(runs, ["one", "two", "three"])
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["runs"] == ["one", "two", "three"]
    assert values["rows"][0]["values"]["two"]["value"] == 0.75
    assert [c["p_holm"] for c in values["comparisons"]] == [0.5, 1.0]
    markdown = result.to_markdown()
    assert "| task | metric | one | two | three |" in markdown
    assert "| t | acc ↑ | 0.375 [0.137, 0.694] | 0.750 [0.409, 0.929] |" in markdown
    assert "| t | acc | two | one | +0.375 " in markdown
    console = Console(file=io.StringIO(), width=160)
    for table in result.to_rich():
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.375 [0.137, 0.694]" in text
    assert "+3 −0" in text


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    for name in ("a/run", "b/run"):
        write_run(run_of({"p": FIRST}, IDS), tmp_path / name, plots=False)
    assert compare_folders([tmp_path / "a" / "run", tmp_path / "b" / "run"]).runs == ("a/run", "b/run")


def test_bad_input(tmp_path: Path) -> None:
    write_run(run_of({"p": FIRST}, IDS), tmp_path / "one", plots=False)
    with pytest.raises(ValueError, match="has 1 run;"):
        compare_folders([tmp_path / "one"])
    with pytest.raises(ValueError, match="named twice"):
        compare_folders([tmp_path / "one", tmp_path / "x" / ".." / "one"])
    with pytest.raises(FileNotFoundError, match=r"does not have results\.json"):
        compare_folders([tmp_path / "one", tmp_path / "none"])
