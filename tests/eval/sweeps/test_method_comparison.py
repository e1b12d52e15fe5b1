"""The comparison of all methods: halves, differences, what is left out, and that no method is forgotten."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textguide.eval.results.run import RunResult, TaskResult, as_guidances
from textguide.eval.statistics.measures import measure
from textguide.eval.sweeps import method_comparison
from textguide.guidance import Guidance
from textguide.guidance.spec import label as label_of

N = 40


def test_every_method_has_settings_or_a_reason() -> None:
    known = set(method_comparison.SETTINGS) | set(method_comparison.ELSEWHERE)
    own = {name for name, method in Guidance.registry.items() if method.__module__.startswith("textguide.")}
    assert own - {"composed"} == known & own
    assert known <= Guidance.registry.keys()
    for name, settings in method_comparison.SETTINGS.items():
        assert all(name in {setting.name, *(p.name for p in setting.parts)} for setting in settings)
        assert len({label_of(setting) for setting in settings}) == len(settings)


def values(task: str, label: str) -> Any:
    """Items whose first half likes ``apg 2`` best and whose second half has it right everywhere."""
    rng = np.random.default_rng(zlib.crc32(f"{task} {label}".encode()))
    if label == "apg 2":
        return np.ones(N)
    return (rng.random(N) < (0.5 if label == "plain" else 0.3)).astype(float)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    def run_sweep(tasks: Sequence[str], settings: Sequence[Any], **_: Any) -> RunResult:
        found = []
        for task in tasks:
            for setting in settings:
                metrics = [metric for name, metric in method_comparison.COLUMNS if name == task]
                items = {metric: values(task, label_of(setting)) for metric in metrics}
                measured = {metric: measure(column, kind="mean") for metric, column in items.items()}
                found.append(TaskResult(task, label_of(setting), None, measured, items))
        labelled = [(label_of(setting), setting) for setting in settings]
        return RunResult(found, as_guidances(labelled), versions={"textguide": "0"})

    monkeypatch.setattr(method_comparison, "run_sweep", run_sweep)
    monkeypatch.setattr(
        method_comparison,
        "_costs",
        lambda names, _: dict.fromkeys(["plain", *names], method_comparison.Cost(0.01, 1.5)),
    )
    method_comparison.compare_methods(
        output=tmp_path, methods=["cfg", "apg", "caif"], command="textguide eval --suite methods"
    )
    found: dict[str, Any] = json.loads((tmp_path / "methods.json").read_text())
    found["folder"] = tmp_path
    return found


def test_the_first_half_chooses_and_the_second_reports(table: dict[str, Any]) -> None:
    cell = table["methods"]["apg"]["piqa/acc,none"]
    assert cell["setting"] == "apg 2"
    assert cell["value"]["mean"] == 1.0
    plain = values("piqa", "plain")[N // 2 :].mean()
    assert table["plain"]["piqa/acc,none"]["mean"] == pytest.approx(plain)
    assert cell["difference"] == pytest.approx(1 - plain)
    assert cell["low"] < cell["difference"] < cell["high"]
    assert cell["p_holm"] < 0.05


def test_methods_that_ask_a_classifier_are_sampled_only(table: dict[str, Any]) -> None:
    assert set(table["methods"]["caif"]) == {
        "continuations_positive/positive,all",
        "continuations_positive/distinct_2,all",
    }
    text = (table["folder"] / "methods.md").read_text()
    assert "| caif" in text
    assert "–" in text
    assert "`context-aware` needs a document" in text
    assert (table["folder"] / "methods.png").stat().st_size > 1000


def test_methods_with_further_models_run_by_themselves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs: dict[str, Any] = {}

    class Stopped(Exception):
        """After the first run."""

    def run_sweep(tasks: Sequence[str], settings: Sequence[Any], *, output: Path, **options: Any) -> None:
        names = {getattr(one, "name", None) for one in settings}
        runs[output.name] = (names, options["model_args"].get("models"), options["options"].limit)
        raise Stopped

    monkeypatch.setattr(method_comparison, "run_sweep", run_sweep)
    parts = method_comparison.PARTS
    for methods in (["cfg", "caif"], ["contrastive", "dexperts"]):
        for folder in parts:
            monkeypatch.setattr(method_comparison, "PARTS", {folder: parts[folder]})
            with pytest.raises(Stopped):
                method_comparison.compare_methods(
                    output=tmp_path, methods=methods, options=method_comparison.SweepOptions(limit=400)
                )
    assert runs["scored"] == ({None, "cfg"}, None, 400)
    assert runs["answered"] == ({None, "cfg"}, None, 100)
    assert runs["continued"] == ({None, "cfg", "caif"}, None, 400)
    assert runs["scored-models"] == ({None, "contrastive"}, {"amateur": "smollm2-small"}, 400)
    assert runs["continued-models"][1].keys() == {"amateur", "expert", "anti-expert"}
    with pytest.raises(ValueError, match="methods='dexperts' needs further models that exist only for smollm2"):
        method_comparison.compare_methods(output=tmp_path, methods=["dexperts"], model_args={"pretrained": "other"})


def test_unknown_and_left_out_methods_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'context-aware' is not in the suite, because it needs a document"):
        method_comparison.compare_methods(output=tmp_path, methods=["context-aware"])
    with pytest.raises(ValueError, match="use one of cfg"):
        method_comparison.compare_methods(output=tmp_path, methods=["nonsense"])
