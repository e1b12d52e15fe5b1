"""Pictures: they show the run's numbers, and nothing is cut off."""

from __future__ import annotations

import itertools
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textguide.eval import RunResult, TaskResult, expected_calibration_error, measure, write_run

pytest.importorskip("matplotlib")

from textguide.eval.reports import drawing


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


def curves(axes: Any) -> list[Any]:
    """The lines through points, without the one that everything is compared with."""
    return [line for line in axes.lines if line.get_marker() != "None"]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_values_are_drawn_with_intervals() -> None:
    run = run_of({"plain": None, **cfg(2, 1.5)})
    figure = drawing.draw_values(run)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a, 60 items", "b, 60 items"]
    for axes, task in zip(figure.axes, "ab", strict=True):
        x, y = curves(axes)[0].get_data()
        assert list(x) == [1, 1.5, 2]
        entries = [run.get(task, label) for label in ("plain", "cfg 1.5", "cfg 2")]
        values = [entry.metrics["acc,none"] for entry in entries if entry]
        assert list(y) == [value.value for value in values]
        band = axes.collections[0].get_paths()[0].vertices
        for place, value in zip(x, values, strict=True):
            ends = band[np.isclose(band[:, 0], place)][:, 1]
            assert (ends.min(), ends.max()) == pytest.approx((value.low, value.high))
        assert axes.get_ylabel() == "accuracy ↑"


def test_one_of_several_ways_to_read_answers_is_named() -> None:
    run = run_of({"plain": None, **cfg(1.5, 2)})
    for result in run.tasks:
        for kept in (result.metrics, result.items):
            kept["acc,strict"] = kept["acc,loose"] = kept.pop("acc,none")
    (axes, *_) = drawing.draw_values(run).figure.axes  # type: ignore[union-attr]
    assert axes.get_ylabel() == "accuracy (strict) ↑"
    (axes, *_) = drawing.draw_flips(run).figure.axes  # type: ignore[union-attr]
    assert axes.get_title(loc="left") == "a (strict), 60 items"


def test_curves_carry_their_names() -> None:
    run = run_of({"plain": None, **cfg(1.5, 2), **cfg(1.5, 2, negative_prompt="bad")})
    figure = drawing.draw_values(run)
    assert figure is not None
    assert sorted(texts(figure.axes[0])) == ["cfg", "cfg negative_prompt=b…", "plain"]
    assert figure.legends == []


def test_names_have_what_differs_within_a_method_alone() -> None:
    """Not ``method apg, parallel 0.0``: what a method has by itself says nothing."""
    usual = {"schedule": "constant", "renormalize": True}
    guidances = {"plain": None, **cfg(1.5, 2, **usual)}
    for scale in (1.5, 2.0):
        guidances[f"apg {scale:g}"] = {"method": "apg", "scale": scale, "parallel": 0.0, **usual}
        guidances[f"apg {scale:g} a"] = {"method": "apg", "scale": scale, "parallel": 0.5, **usual}
    assert list(drawing._families(run_of(guidances))) == ["cfg", "apg parallel=0", "apg parallel=0.5"]


def test_numbers_at_ticks_do_not_overlap() -> None:
    run = run_of({"plain": None, **cfg(1.1, 1.25, 1.5, 1.75, 2, 3)}, ("a",))
    figure = drawing.draw_values(run)
    assert figure is not None
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks()]
    assert len(boxes) >= 5
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    places = {*axes.get_xticks(), *axes.get_xticks(minor=True)}
    assert places == {1, 1.1, 1.25, 1.5, 1.75, 2, 3}


def test_names_of_lines_do_not_overlap() -> None:
    placed = drawing.spread([0.1, 0.11, 0.12, 0.8], 0.1)
    assert np.diff(placed).min() >= 0.1 - 1e-9
    assert placed[3] == 0.8
    assert np.mean(placed[:3]) == pytest.approx(0.11)


def test_logarithmic_ticks_are_of_one_size() -> None:
    figure, (axes,) = drawing.grid(1, 3)
    drawing.draw_fronts(
        axes, {"a": [drawing.Point(8.1, 0.4, name="α 1"), drawing.Point(19, 0.7, name="α 2")]}, log=True
    )
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels() if label.get_text()] == ["10", "15"]
    assert list(axes.get_xticks(minor=True)) == []
    assert texts(axes) == ["α 1", "α 2"]


def test_every_picture_can_be_read_600_pixels_wide() -> None:
    guidances = {"plain": None, **{f"m{n}": {"method": f"m{n}"} for n in range(30)}}
    for run in (run_of({"plain": None, **cfg(1.5, 2, 3)}, ("a", "b", "c", "d")), run_of(guidances, ("a", "b", "c"))):
        for draw in (drawing.draw_values, drawing.draw_flips, drawing.draw_calibration):
            figure = draw(run)
            assert figure is not None
            assert figure.get_size_inches()[0] <= drawing.WIDTH
            sizes = [text.get_fontsize() for axes in figure.axes for text in axes.texts]
            assert min([8, *sizes]) * 600 / 72 / drawing.WIDTH >= 10  # pixels


def test_settings_without_a_scale_stand_side_by_side() -> None:
    run = run_of({"plain": None, "contrastive": {"method": "contrastive"}, **cfg(1.5)})
    figure = drawing.draw_values(run)
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["contrastive", "cfg 1.5"]
    assert figure.axes[1].get_yticklabels()[0].get_text() == ""  # the names stand once


def test_flips_show_what_was_gained_and_lost() -> None:
    run = run_of({"plain": None, **cfg(1.25, 1.5, 1.75, 2, 3)})
    figure = drawing.draw_flips(run)
    assert figure is not None
    assert len(figure.axes) == 2
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        "cfg 1.25", "cfg 1.5", "cfg 1.75", "cfg 2", "cfg 3"
    ]  # fmt: skip
    plain, guided = run.get("a", "plain"), run.get("a", "cfg 1.25")
    assert plain is not None
    assert guided is not None
    gained = int(np.sum((plain.items["acc,none"] == 0) & (guided.items["acc,none"] == 1)))
    lost = int(np.sum((plain.items["acc,none"] == 1) & (guided.items["acc,none"] == 0)))
    assert texts(figure.axes[0])[:2] == [f"+{gained}", f"−{lost}"]


def test_settings_that_change_nothing_have_no_row() -> None:
    run = run_of({"plain": None, **cfg(1, 2)}, ("a",))
    plain, neutral = run.get("a", "plain"), run.get("a", "cfg 1")
    assert plain is not None
    assert neutral is not None
    neutral.items["acc,none"] = plain.items["acc,none"]
    figure = drawing.draw_flips(run)
    assert figure is not None
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["cfg 2"]
    assert drawing.draw_flips(run, ["cfg 1"]) is None


def test_calibration_names_the_error() -> None:
    run = run_of({"plain": None, **cfg(1.5)})
    figure = drawing.draw_calibration(run)
    assert figure is not None
    entry = run.get("b", "cfg 1.5")
    assert entry is not None
    assert entry.confidences is not None
    error = expected_calibration_error(entry.confidences, entry.items["acc,none"], 10)
    assert texts(figure.axes[1])[1] == f"cfg 1.5: ECE {error:.3f}"


def test_nothing_to_draw() -> None:
    run = run_of({"plain": None}, confidences=False)
    assert drawing.draw_values(run) is None
    assert drawing.draw_flips(run) is None
    assert drawing.draw_calibration(run) is None
    run = run_of(cfg(1.5, 2), confidences=False)
    assert drawing.draw_values(run) is not None
    assert drawing.draw_flips(run) is None


@pytest.mark.parametrize("long", [False, True])
def test_no_text_is_cut_off(long: bool) -> None:
    guidances = {"plain": None, **cfg(0.75, 1.25, 1.5, 2, 3)}
    tasks: tuple[str, ...] = ("a",)
    if long:
        guidances |= cfg(1.5, 2, negative_prompt="You are an assistant who is always wrong, and proud of it")
        tasks = ("a_task_with_a_long_name_that_no_panel_has_room_for_$x$", "b", "c", "d")
    run = run_of(guidances, tasks)
    for draw in (drawing.draw_values, drawing.draw_flips, drawing.draw_calibration):
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
    names = drawing.save_run(run, tmp_path, svg=True)
    assert sorted(names) == sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == 6
    for name in names:
        data = (tmp_path / name).read_bytes()
        if name.endswith(".png"):
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert min(struct.unpack(">II", data[16:24])) > 200
        else:
            assert b"<svg" in data
    before = {name: (tmp_path / name).read_bytes() for name in names}
    drawing.save_run(run, tmp_path, svg=True)
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
    assert drawing.save_run(run, tmp_path) == [f"{name}.png"]


def test_pictures_stand_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MOST_TASKS", 2)
    monkeypatch.setattr("textguide.eval.reports.markdown.MOST_TASKS", 2)
    write_run(run_of({"plain": None, **cfg(1.5)}, ("a", "b", "c")), tmp_path, plots=True)
    report = (tmp_path / "report.md").read_text()
    for name in ("accuracy", "flips", "calibration"):
        assert f"({name}.png)" in report
        assert (tmp_path / f"{name}.png").is_file()
    assert "the first 2 of 3 tasks" in report
