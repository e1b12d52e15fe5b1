"""Results folders: what is written, what comes back, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textguide.eval import (
    Journal,
    MetricValue,
    RunResult,
    TaskResult,
    as_guidances,
    claim,
    compare_items,
    environment,
    mcnemar,
    measure,
    paired_bootstrap,
    read_run,
    run_to_dict,
    write_run,
)
from textguide.eval.reports import plots as drawing
from textguide.eval.reports.markdown import interval, number, p_value, table
from textguide.eval.statistics.paired import adjust, shared_items

PLAIN = [1, 0, 0, 1, 0, 1, 0, 0]
GUIDED = {1.25: [1, 1, 0, 1, 1, 1, 0, 0], 1.5: [1, 1, 1, 1, 0, 0, 0, 0]}
NLL = [2.0, 3.0, 1.0, 4.0, 2.5, 0.5, 1.5, 2.25]


def entry(task: str, label: str, scale: float | None, values: list[int], **more: Any) -> TaskResult:
    ids = tuple(f"{task}-{i}" for i in range(len(values)))
    return TaskResult(
        task,
        label,
        scale,
        {"acc,none": measure(values), "word_perplexity,none": measure(NLL, "perplexity", [3] * 8)},
        {"acc,none": np.array(values), "word_perplexity,none": np.array(NLL) + (scale or 0)},
        {"word_perplexity,none": np.full(8, 3.0)},
        item_ids=ids,
        confidences=np.linspace(0.1, 0.9, 8),
        **more,
    )


def sweep(**more: Any) -> RunResult:
    tasks = [entry("a|b", "plain", 1.0, PLAIN, truncated=2)]
    tasks += [entry("a|b", f"cfg {scale:g}", scale, values) for scale, values in GUIDED.items()]
    tasks += [entry("c", "plain", 1.0, PLAIN), entry("c", "cfg 1.5", 1.5, PLAIN)]
    guidances = {"plain": None, **{f"cfg {scale:g}": {"method": "cfg", "scale": scale} for scale in GUIDED}}
    values: dict[str, Any] = {"identity": {"model": "tiny", "seed": 7}, "seed": 7, "date": 1e9, **more}
    return RunResult(tasks, guidances, **values)


def test_round_trip(tmp_path: Path) -> None:
    run = sweep(
        fingerprints={"model": "00ff"},
        versions={"python": "3"},
        machine={"cpus": 2},
        command="textguide eval",
        notes=["careful"],
        lm_eval={
            "configs": {"c": {"doc_to_text": len}},
            "git_hash": "abc",
            "groups": {"g": 1},
            "results": "not this",
        },
    )
    folder = write_run(run, tmp_path / "deep" / "run", plots=False)
    again = read_run(folder)
    assert run_to_dict(again) == run_to_dict(run)
    assert again.comparisons == run.comparisons
    assert again.selections == run.selections
    for before, after in zip(run.tasks, again.tasks, strict=True):
        assert before.metrics == after.metrics
        assert before.item_ids == after.item_ids
        for column in ("items", "weights"):
            left, right = getattr(before, column), getattr(after, column)
            assert left.keys() == right.keys()
            assert all(np.array_equal(left[name], right[name]) for name in left)
        assert after.confidences is not None
        assert np.array_equal(np.linspace(0.1, 0.9, 8), after.confidences)
    write_run(again, folder, plots=False)
    assert run_to_dict(read_run(folder)) == run_to_dict(run)


def test_schema_of_a_single_setting_is_lm_evals(tmp_path: Path) -> None:
    raw = {"alias": "t", "acc,none": 0.375, "acc_stderr,none": 0.18}
    run = RunResult([entry("t", "cfg", 1.5, PLAIN, raw=raw)], {"cfg": {"method": "cfg", "scale": 1.5}})
    values = json.loads((write_run(run, tmp_path, plots=False) / "results.json").read_text())
    assert values["results"] == {"t": raw}
    assert "sweep" not in values
    assert {
        "configs",
        "versions",
        "n-samples",
        "higher_is_better",
        "config",
        "git_hash",
        "date",
    } <= values.keys()
    assert values["n-samples"] == {"t": {"original": 8, "effective": 8}}
    assert values["higher_is_better"] == {"t": {"acc": True, "word_perplexity": False}}


def test_schema_of_a_sweep(tmp_path: Path) -> None:
    values = json.loads((write_run(sweep(), tmp_path, plots=False) / "results.json").read_text())
    assert list(values["sweep"]) == ["plain", "cfg 1.25", "cfg 1.5"]
    assert values["results"] == values["sweep"]["plain"]
    assert values["sweep"]["cfg 1.25"]["a|b"]["acc,none"] == 0.625
    assert values["results"]["c"]["acc_stderr,none"] == pytest.approx(np.std(PLAIN, ddof=1) / math.sqrt(8))
    assert list(values["sweep"]["cfg 1.25"]) == ["a|b"]
    assert values["textguide"]["guidances"][2] == {
        "label": "cfg 1.5",
        "guidance": {"method": "cfg", "scale": 1.5},
    }
    assert values["textguide"]["identity"] == {"model": "tiny", "seed": 7}


def test_only_finite_numbers_are_written(tmp_path: Path) -> None:
    value = measure([800.0, 900.0], "perplexity")
    assert value.value is None
    run = RunResult([TaskResult("t", "plain", None, {"ppl": value, "one": measure([1])})], {"plain": None})
    text = (write_run(run, tmp_path, plots=False) / "results.json").read_text()
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values["results"]["t"]["ppl,none"] is None
    assert values["results"]["t"]["one_stderr,none"] == "N/A"


def test_comparisons_are_the_paired_tests() -> None:
    run = sweep()
    run.analyse()
    assert run.comparisons is not None
    found = {(c.task, c.metric, c.label): c for c in run.comparisons}
    assert set(found) == {
        (task, metric, label)
        for task, label in (("a|b", "cfg 1.25"), ("a|b", "cfg 1.5"), ("c", "cfg 1.5"))
        for metric in ("acc,none", "word_perplexity,none")
    }
    comparison = found["a|b", "acc,none", "cfg 1.5"]
    test, difference = mcnemar(GUIDED[1.5], PLAIN), paired_bootstrap(GUIDED[1.5], PLAIN, seed=7)
    assert (comparison.gained, comparison.lost, comparison.p_mcnemar) == (2, 1, test.p)
    assert (comparison.difference, comparison.low, comparison.high, comparison.p) == difference
    assert comparison.p_holm == 1.0
    assert found["c", "word_perplexity,none", "cfg 1.5"].difference == pytest.approx(0.5)
    assert found["c", "word_perplexity,none", "cfg 1.5"].gained is None


def test_holm_stays_within_a_task_and_metric() -> None:
    first = compare_items([1] * 6 + [0], [0] * 7, task="t", metric="m")
    second = compare_items([1] * 5 + [0, 0], [0] * 7, task="t", metric="m")
    other = compare_items([1] * 5 + [0, 0], [0] * 7, task="u", metric="m")
    assert first.p_mcnemar is not None
    assert second.p_mcnemar is not None
    adjusted = adjust([first, second, other])
    assert [c.p_holm for c in adjusted] == [
        2 * first.p_mcnemar,
        max(2 * first.p_mcnemar, second.p_mcnemar),
        0.0625,
    ]


def test_items_are_paired_by_id() -> None:
    plain = TaskResult(
        "t", "plain", 1.0, {"acc": measure([1, 0, 0])}, {"acc": np.array([1, 0, 0])}, item_ids=("x", "y", "z")
    )
    guided = TaskResult(
        "t", "g", 2.0, {"acc": measure([0, 1, 0])}, {"acc": np.array([0, 1, 0])}, item_ids=("z", "x", "y")
    )
    run = RunResult([plain, guided], {"plain": None, "g": {"method": "cfg"}})
    run.analyse()
    assert run.comparisons is not None
    assert (run.comparisons[0].gained, run.comparisons[0].lost, run.comparisons[0].n) == (0, 0, 3)


def test_shared_items() -> None:
    assert shared_items(None, ["a"]) is None
    assert shared_items(["a", "a"], ["a", "b"]) is None
    assert shared_items(["a"], ["b"]) is None
    found = shared_items(["a", "b", "c"], ["c", "x", "a"])
    assert found is not None
    assert [positions.tolist() for positions in found] == [[0, 2], [2, 0]]


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


def test_measures() -> None:
    bits = measure([math.log(2) * 6, math.log(2) * 2], "bits", [3, 1])
    assert (bits.value, bits.stderr, bits.n, bits.higher_is_better) == (
        pytest.approx(2),
        pytest.approx(0),
        2,
        False,
    )
    perplexity = measure([math.log(4)] * 3, "perplexity")
    assert perplexity.value == pytest.approx(4)
    assert perplexity.stderr == pytest.approx(0)
    assert measure([0.5, 0.1], higher_is_better=False).higher_is_better is False
    with pytest.raises(ValueError, match="kind='median'"):
        measure([1.0], "median")
    with pytest.raises(ValueError, match="weights are not for"):
        measure([1.0], weights=[2.0])


def test_samples(tmp_path: Path) -> None:
    write_run(sweep(), tmp_path, plots=False, samples=[{"doc": "a\nb", "logp": -math.inf}, {"doc": "ü"}])
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"doc": "a\nb", "logp": None}, {"doc": "ü"}]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    write_run(sweep(), tmp_path, plots=False)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r'another run \(model: "tiny" there, "big" here\); choose another --output'):
        write_run(sweep(identity={"model": "big", "seed": 7}), tmp_path, plots=False)
    with pytest.raises(ValueError, match="another run"):
        claim(tmp_path, {"model": "tiny"})
    assert claim(tmp_path, {"seed": 7, "model": "tiny"}) == tmp_path
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", '{"results": {}}', "not written by textguide"),
        ("results.json", "{", "not written by textguide"),
        ("results.json", "[]", "not written by textguide"),
        ("results.json", '{"textguide": {"format": 99}}', "format 99"),
        ("report.md", "my notes", r"holds report\.md and no run"),
    ],
)
def test_other_peoples_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_run(sweep(), tmp_path, plots=False)
    assert snapshot(tmp_path) == {name: content.encode()}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        claim(tmp_path / "x", {})


def test_a_journal_makes_the_folder_ours(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.jsonl", {"model": "tiny", "seed": 7}) as journal:
        journal.append("1", 1)
        (tmp_path / "report.md").write_text("a run that was killed between the report and the results")
        write_run(sweep(), tmp_path, plots=False)
    assert read_run(tmp_path).seed == 7


def test_an_unfinished_run_of_another_is_refused(tmp_path: Path) -> None:
    Journal.open(tmp_path / "journal.jsonl", {"model": "big", "seed": 7}).close()
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="another run"):
        write_run(sweep(), tmp_path, plots=False)
    assert snapshot(tmp_path) == before
    (tmp_path / "journal.jsonl").write_text('{"textguide-jour')
    write_run(sweep(), tmp_path, plots=False)


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no results\.json"):
        read_run(tmp_path)
    write_run(sweep(), tmp_path, plots=False)
    (tmp_path / "items.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"items\.npz is missing or damaged"):
        read_run(tmp_path)


def test_bad_runs_are_refused() -> None:
    task = entry("t", "plain", 1.0, PLAIN)
    with pytest.raises(ValueError, match=r"label='plain'.*none of guidances: other"):
        RunResult([task], {"other": None})
    with pytest.raises(ValueError, match="twice"):
        RunResult([task, task], {"plain": None})
    with pytest.raises(ValueError, match="'plain' twice"):
        as_guidances([("plain", None), ("plain", None)])
    with pytest.raises(ValueError, match="guidances is empty"):
        RunResult([], {})
    with pytest.raises(ValueError, match="the lengths are"):
        TaskResult("t", "plain", 1.0, {"acc": measure([1])}, {"acc": np.array([1])}, item_ids=("a", "b"))
    with pytest.raises(ValueError, match=r"metrics=\{\}"):
        TaskResult("t", "plain", 1.0, {})


def test_guidance_objects_become_values() -> None:
    class Fake:
        def to_dict(self) -> dict[str, Any]:
            return {"method": "cfg", "scale": 2.0}

    run = RunResult([entry("t", "g", 2.0, PLAIN)], as_guidances([("plain", None), ("g", Fake())]))
    assert run.guidances == {"plain": None, "g": {"method": "cfg", "scale": 2.0}}
    assert run.plain_label == "plain"
    assert run.identity["guidances"] == run.guidances


def test_environment_names_versions() -> None:
    versions, machine = environment()
    assert {"python", "numpy"} <= versions.keys()
    assert set(machine) == {"system", "architecture", "cpus"}


def test_missing_matplotlib_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "available", lambda: False)
    with pytest.raises(ImportError, match=r"textguide\[eval\]"):
        write_run(sweep(), tmp_path / "run", plots=True)
    assert not list(tmp_path.iterdir())
    write_run(sweep(), tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_an_item_of_likelihood_zero_does_not_stop_the_run(tmp_path: Path) -> None:
    nll = np.array([1.0, math.inf])
    assert measure(nll, "bits").value is None
    entries = [
        TaskResult(
            "t",
            "plain",
            1.0,
            {"ppl,none": measure([1.0, 2.0], "perplexity")},
            {"ppl,none": np.array([1.0, 2.0])},
        ),
        TaskResult("t", "cfg", 2.0, {"ppl,none": measure(nll, "perplexity")}, {"ppl,none": nll}),
    ]
    run = RunResult(entries, {"plain": None, "cfg": {"method": "cfg"}})
    report = (write_run(run, tmp_path) / "report.md").read_text()
    assert "t, cfg: ppl is infinite" in report
    again = read_run(tmp_path)
    assert (again.comparisons, again.selections) == ([], {})
    assert again.tasks[1].items["ppl,none"][1] == math.inf


def test_confidences_are_probabilities() -> None:
    task = entry("t", "plain", 1.0, PLAIN)
    for bad in (1.1, -0.1):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            TaskResult("t", "plain", 1.0, task.metrics, confidences=np.array([bad]))
    kept = TaskResult("t", "plain", 1.0, task.metrics, confidences=np.array([1 + 1e-6, math.nan])).confidences
    assert kept is not None
    assert kept[0] == 1.0


def test_importing_loads_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys, textguide.eval.reports.compare, textguide.eval.reports.plots, textguide.eval.results.journal\n"
        "sys.exit(', '.join({'torch', 'matplotlib', 'scipy', 'lm_eval'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stderr.strip() == ""
