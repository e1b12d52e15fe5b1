"""The report of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.runs import sweep
from textguide.eval import MetricValue, write_run
from textguide.eval.reports.markdown import interval, number, p_value, table


def test_selection_is_reported_on_other_items(tmp_path: Path) -> None:
    run = sweep()
    report = (write_run(run, tmp_path, plots=False) / "report.md").read_text()
    assert run.selections is not None
    choice = run.selections["a|b"]
    assert (choice.label, choice.selected_value, choice.reported.mean) == ("cfg 1.5", 1.0, 0.0)
    assert "cfg 1.5 has the best acc on the first half (1.000, 4 items). On the other 4 items it has 0.000" in report


def test_selection_on_all_items_says_so(tmp_path: Path) -> None:
    report = (write_run(sweep(select_on="all"), tmp_path, plots=False) / "report.md").read_text()
    assert "chosen and is reported on the same 8 items" in report
    assert "best" not in (write_run(sweep(select_on=None), tmp_path, plots=False) / "report.md").read_text()
    with pytest.raises(ValueError, match="select_on='best'"):
        write_run(sweep(select_on="best"), tmp_path, plots=False)


def test_report(tmp_path: Path) -> None:
    run = sweep(versions={"python": "3.10"}, command="textguide eval --tasks a", notes=["mind the gap"])
    report = (write_run(run, tmp_path, plots=False) / "report.md").read_text()
    assert report.startswith("# Evaluation of tiny\n")
    assert "| guidance | γ | a\\|b: acc ↑ | a\\|b: word_perplexity ↓ | c: acc ↑ |" in report
    assert "| cfg 1.25 | 1.25 | 0.625 [0.306, 0.863] |" in report
    assert "a|b, plain: 2 contexts were longer" in report
    assert "Not measured: c under cfg 1.25." in report
    for expected in (
        "+2 −0",
        "mind the gap",
        "python 3.10",
        "textguide eval --tasks a",
        "- plain: no guidance",
    ):
        assert expected in report
    widths = {line.replace("\\|", "").count("|") for line in report.split("\n\n")[1].splitlines()}
    assert len(widths) == 1


def test_numbers_in_reports() -> None:
    assert [number(x) for x in (0.12345, -0.5, 9.9999, 12.3456, 1234567.0, None)] == [
        "0.123",
        "−0.500",
        "10.00",
        "12.35",
        "1.23e+06",
        "–",
    ]
    assert (number(0.5, True), number(-0.5, True), number(-1e-6, True)) == ("+0.500", "−0.500", "−0.000")
    assert (p_value(0.0004), p_value(0.0456), p_value(None)) == ("<0.001", "0.046", "–")
    assert interval(MetricValue.given(0.5, None)) == "0.500"
    assert interval(MetricValue.given(0.5, 0.1)) == "0.500 [0.304, 0.696]"
    assert table(["a", "b"], [["x|y\nz", "1"]], "l") == "| a | b |\n| :-- | --: |\n| x\\|y z | 1 |"
