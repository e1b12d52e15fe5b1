"""Tuning: rounds of halving, a choice that is right, and a report on items that chose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from textguide import CAIF, CFG, TokenPrior
from textguide.cli import main
from textguide.cli.tune_command import seconds
from textguide.eval.sweeps import tuning
from textguide.eval.sweeps.sweep import run_sweep
from textguide.eval.sweeps.tuning import candidates, rounds_of, stability, tune
from textguide.guidance.spec import label

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_rounds_use_every_item_that_may_choose_once() -> None:
    for count in (1, 2, 3, 7, 30, 54):
        for items in (8, 9, 40, 500):
            found = rounds_of(count, items)
            assert sum(size for _, size in found) in (items, 0 if count == 1 else items)
            assert [size for size, _ in found] == sorted((size for size, _ in found), reverse=True)
            if count > 1:
                assert found[0][0] == count
    assert rounds_of(8, 70) == [(8, 10), (4, 20), (2, 40)]
    assert rounds_of(8, 9) == [(8, 8), (4, 1)]


def test_candidates_vary_what_there_is() -> None:
    found = candidates(CFG(1.5, "Hello"))
    assert len({label(one) for one in found}) == len(found) == 6 * (3 + 2)
    assert all(one.negative_prompt == "Hello" for one in found)  # type: ignore[attr-defined]
    both = candidates([CFG(), TokenPrior(1.5, prior="smollm2")])
    assert len({label(one) for one in both}) == len(both) == 2 * 6 * (3 + 2)
    assert sum(isinstance(one, TokenPrior) for one in both) == len(found)
    with pytest.raises(ValueError, match="does not have a scale"):
        candidates(CAIF("sentiment", "positive"))
    with pytest.raises(ValueError, match=r"'caif.* does not have a scale"):
        candidates([CFG(), CAIF("sentiment", "positive")])


class Sweep:
    """A stand-in for the model: candidate ``best`` is right more often; each call is counted."""

    def __init__(self, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.best = best
        self.calls: list[tuple[int, int, int]] = []
        monkeypatch.setattr(tuning, "run_sweep", self)
        monkeypatch.setattr(tuning, "_load_model", lambda arguments: arguments)

    def __call__(self, tasks: Any, settings: Any, *, options: Any, model_args: Any, output: Path) -> Any:
        from types import SimpleNamespace

        self.calls.append((options.first, options.limit, len(settings)))
        rows = range(options.first, options.first + options.limit)
        entries = {}
        for one in settings:
            name = label(one)
            rate = 0.9 if name == self.best else 0.4
            values = [float(np.random.default_rng([row, len(name)]).random() < rate) for row in rows]
            metric = SimpleNamespace(higher_is_better=True)
            entries[name] = SimpleNamespace(items={"acc,none": np.array(values)}, metrics={"acc,none": metric})
        return SimpleNamespace(task_names=tasks, get=lambda task, name: entries[name])


def test_the_choice_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = label(CFG(1.75, stop=0.5))
    sweep = Sweep(best, monkeypatch)
    found = tune(CFG(), "any", budget=1e9, limit=400, output=tmp_path / "whole")
    assert found["chosen"] == best
    assert found["items"] == {"chose": 200, "report": 200}
    assert found["difference"]["low"] > 0.3
    assert found["stability"] > 0.95
    chose = sweep.calls[1:-1]  # between the probe and the report
    assert [first for first, _, _ in chose] == np.cumsum([0, *[count for _, count, _ in chose[:-1]]]).tolist()
    assert sum(count for _, count, _ in chose) == 200
    assert sweep.calls[-1] == (200, 200, 2)  # the others: plain and the chosen one
    with pytest.raises(ValueError, match="holds another run"):
        tune(CFG(), "other", budget=1e9, limit=400, output=tmp_path / "whole")
    with pytest.raises(ValueError, match="there is only"):
        tune(
            CFG(),
            "any",
            budget=1e9,
            output=tmp_path / "one",
            scales=[2.0],
            schedules=["constant"],
            windows=[(0.0, 1.0)],
        )


def test_the_interval_covers_where_there_is_nothing_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All candidates are alike: on the items that chose the best looks better than it is, on the others it does not."""
    optimism, covered = [], 0
    for number in range(40):
        chance = np.random.default_rng(number)

        def run(tasks: Any, settings: Any, *, options: Any, chance: Any = chance, **_: Any) -> Any:
            from types import SimpleNamespace

            entries = {
                label(one): SimpleNamespace(
                    items={"acc,none": (chance.random(options.limit) < 0.5).astype(float)},
                    metrics={"acc,none": SimpleNamespace(higher_is_better=True)},
                )
                for one in settings
            }
            return SimpleNamespace(task_names=tasks, get=lambda task, name: entries[name])

        monkeypatch.setattr(tuning, "run_sweep", run)
        monkeypatch.setattr(tuning, "_load_model", lambda arguments: arguments)
        found = tune(CFG(), "any", budget=1e9, limit=120, output=tmp_path / str(number))
        optimism.append(found["optimism"])
        covered += found["difference"]["low"] <= 0 <= found["difference"]["high"]
    assert np.mean(optimism) > 0.02
    assert covered >= 34  # of 40 at 95%: fewer in one of two thousand


def test_stability_counts_wins() -> None:
    alike = np.zeros(10)
    assert stability({"a": alike, "b": alike}, "a") == pytest.approx(0.5)
    assert stability({"a": alike + 1, "b": alike}, "a") == 1.0


def test_on_a_small_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "tune", "--task", "lambada_mini", "--metric", "perplexity,none", "--budget", "1h", "--limit", "32", "--model",
        tiny_model, "--scales", "1.25,1.5,3", "--schedules", "constant", "--windows", "0-1",
    ]  # fmt: skip
    assert main([*command, "--output", str(tmp_path / "whole"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["candidates"] == 3
    assert found["items"] == {"chose": 16, "report": 16}
    means = found["rounds"][-1]["means"]
    assert found["chosen"] == min(means, key=means.__getitem__)  # nats: less is better
    # a run that is broken off goes on, does nothing twice, and ends in the same bytes
    calls: list[Any] = []

    def breaks(*arguments: Any, **options: Any) -> Any:
        calls.append(options["output"].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_sweep(*arguments, **options)

    monkeypatch.setattr(tuning, "run_sweep", breaks)
    assert main([*command, "--output", str(tmp_path / "broken")]) == 130
    assert main([*command, "--output", str(tmp_path / "broken")]) == 0
    assert calls == ["probe", "round-0", "round-1", "round-1", "report"]
    assert (tmp_path / "broken/tuning.json").read_bytes() == (tmp_path / "whole/tuning.json").read_bytes()
    assert "chosen among 3 on 16 items" in capsys.readouterr().out


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: str) -> None:
    common = ["tune", "--task", "lambada_mini", "--model", tiny_model, "--output", str(tmp_path / "a")]
    for more, message in (
        (["--budget", "soon"], "--budget soon is no time"),
        (["--budget", "0m"], "--budget 0m is no time"),
        (["--scales", "1,x"], "--scales: 'x' is no number"),
        (["--windows", "0.5"], "--windows: '0.5' is no window"),
        (["--limit", "8", "--scales", "1.5"], "allows 8 items, and at least 16 are needed"),
    ):
        assert main([*common, *more]) == 2
        assert message in capsys.readouterr().err
    assert [seconds(text) for text in ("90s", "30m", "2h", "5")] == [90, 1800, 7200, 5]
