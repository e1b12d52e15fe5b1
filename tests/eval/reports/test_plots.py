"""Pictures: they show the run's numbers, and nothing is cut off."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textguide.eval import RunResult, TaskResult, expected_calibration_error, measure, write_run

pytest.importorskip("matplotlib")

from textguide.eval.reports import plots


def run_of(guidances: dict[str, Any], tasks: tuple[str, ...] = ("a", "b"), confidences: bool = True) -> RunResult:
    generator = np.random.default_rng(0)
    entries = []
    for task in tasks:
        for label, guidance in guidances.items():
            values = (generator.random(60) < 0.6).astype(float)
            scale = guidance.get("scale") if guidance else 1.0
            known = generator.random(60) if confidences else None
            metrics, items = {"acc,none": measure(values)}, {"acc,none": values}
            entries.append(TaskResult(task, label, scale, metrics, items, confidences=known))
    return RunResult(entries, guidances)


def cfg(*scales: float, **more: Any) -> dict[str, Any]:
    name = "".join(f" {value}" for value in more.values())
    return {f"cfg {scale:g}{name}": {"method": "cfg", "scale": scale, **more} for scale in scales}


def test_values_are_drawn_with_intervals() -> None:
    run = run_of({"plain": None, **cfg(2, 1.5)})
    figure = plots.draw_values(run)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    for axes, task in zip(figure.axes, "ab", strict=True):
        curve = axes.containers[0]
        x, y = curve[0].get_data()  # type: ignore[index]
        assert list(x) == [1, 1.5, 2]
        entries = [run.get(task, label) for label in ("plain", "cfg 1.5", "cfg 2")]
        values = [entry.metrics["acc,none"] for entry in entries if entry]
        assert list(y) == [value.value for value in values]
        ends = [tuple(segment[:, 1]) for segment in curve[2][0].get_segments()]  # type: ignore[index]
        assert ends == [pytest.approx((value.low, value.high)) for value in values]
        assert axes.get_ylabel() == "acc ↑"


def test_settings_that_differ_in_scale_alone_share_a_curve() -> None:
    run = run_of({"plain": None, **cfg(1.5, 2), **cfg(1.5, 2, negative_prompt="bad")})
    figure = plots.draw_values(run)
    assert figure is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "no guidance",
        "cfg",
        "negative_prompt bad",
    ]
    first, second = (container[0].get_xdata() for container in figure.axes[0].containers)  # type: ignore[index]
    assert first[0] < 1.5 < second[0]


def test_settings_without_a_scale_stand_side_by_side() -> None:
    run = run_of({"plain": None, "contrastive": {"method": "contrastive"}, **cfg(1.5)})
    figure = plots.draw_values(run)
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["plain", "contrastive", "cfg 1.5"]


def test_flips_show_the_matrix() -> None:
    run = run_of({"plain": None, **cfg(1.25, 1.5, 1.75, 2, 3)})
    figure = plots.draw_flips(run)
    assert figure is not None
    assert len(figure.axes) == 8  # two tasks, four settings from across the sweep
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == [
        "with cfg 1.25",
        "with cfg 1.5",
        "with cfg 2",
        "with cfg 3",
    ]
    plain, guided = run.get("a", "plain"), run.get("a", "cfg 1.25")
    assert plain is not None
    assert guided is not None
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    gained = int(np.sum((plain.items["acc,none"] == 0) & (guided.items["acc,none"] == 1)))
    assert texts[1, 0] == f"{gained}\n{gained / 60:.1%}"


def test_calibration_names_the_error() -> None:
    run = run_of({"plain": None, **cfg(1.5)})
    figure = plots.draw_calibration(run)
    assert figure is not None
    entry = run.get("b", "cfg 1.5")
    assert entry is not None
    assert entry.confidences is not None
    error = expected_calibration_error(entry.confidences, entry.items["acc,none"], 10)
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert legend.get_texts()[1].get_text() == f"cfg 1.5 (ECE {error:.3f})"


def test_nothing_to_draw() -> None:
    run = run_of({"plain": None}, confidences=False)
    assert plots.draw_values(run) is None
    assert plots.draw_flips(run) is None
    assert plots.draw_calibration(run) is None
    run = run_of(cfg(1.5, 2), confidences=False)
    assert plots.draw_values(run) is not None
    assert plots.draw_flips(run) is None


@pytest.mark.parametrize("long", [False, True])
def test_no_text_is_cut_off(long: bool) -> None:
    guidances = {"plain": None, **cfg(0.75, 1.25, 1.5, 2, 3)}
    tasks: tuple[str, ...] = ("a",)
    if long:
        guidances |= cfg(1.5, 2, negative_prompt="You are an assistant who is always wrong, and proud of it")
        tasks = ("a_task_with_a_long_name_that_no_panel_has_room_for_$x$", "b", "c", "d")
    run = run_of(guidances, tasks)
    for draw in (plots.draw_values, plots.draw_flips, plots.draw_calibration):
        figure = draw(run)
        assert figure is not None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.draw_without_rendering()
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0, draw
        assert box.y0 >= 0, draw
        assert box.x1 <= width, draw
        assert box.y1 <= height, draw


def test_files(tmp_path: Path) -> None:
    run = run_of({"plain": None, **cfg(1.5)}, ("a",))
    names = plots.save_all(run, tmp_path, svg=True)
    assert sorted(names) == sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == 6
    for name in names:
        data = (tmp_path / name).read_bytes()
        if name.endswith(".png"):
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert min(struct.unpack(">II", data[16:24])) > 300
        else:
            assert b"<svg" in data
    before = {name: (tmp_path / name).read_bytes() for name in names}
    plots.save_all(run, tmp_path, svg=True)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        (("acc,none", "acc,none"), "accuracy"),
        (("cider,none", "cider,none"), "cider"),
        (("exact_match,remove_whitespace", "exact_match,none"), "exact_match"),
        (("pass@1,create_test", "pass@1,create_test"), "pass_1"),
        (("acc,none", "exact_match,none"), "values"),
    ],
)
def test_the_picture_of_values_is_called_after_the_metric(tmp_path: Path, metrics: tuple[str, str], name: str) -> None:
    entries = [
        TaskResult(task, label, scale, {metric: measure([1, 0, 1])})
        for task, metric in zip("ab", metrics, strict=True)
        for label, scale in (("plain", 1.0), ("cfg 2", 2.0))
    ]
    run = RunResult(entries, {"plain": None, **cfg(2)})
    assert plots.save_all(run, tmp_path) == [f"{name}.png"]


def test_pictures_stand_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MOST_TASKS", 2)
    monkeypatch.setattr("textguide.eval.reports.markdown.MOST_TASKS", 2)
    write_run(run_of({"plain": None, **cfg(1.5)}, ("a", "b", "c")), tmp_path, plots=True)
    report = (tmp_path / "report.md").read_text()
    for name in ("accuracy", "flips", "calibration"):
        assert f"({name}.png)" in report
        assert (tmp_path / f"{name}.png").is_file()
    assert "the first 2 of 3 tasks" in report
