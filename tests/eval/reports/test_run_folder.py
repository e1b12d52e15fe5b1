"""Results folders: what is written, what comes back, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.eval.runs import PLAIN, entry, sweep
from textguide.eval import Journal, RunResult, TaskResult, claim, measure, read_run, run_to_dict, write_run
from textguide.eval.reports import drawing


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
    with pytest.raises(FileNotFoundError, match=r"does not have results\.json"):
        read_run(tmp_path)
    write_run(sweep(), tmp_path, plots=False)
    (tmp_path / "items.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"items\.npz is missing or damaged"):
        read_run(tmp_path)


def test_missing_matplotlib_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
