"""Prior matching in the harness: which tasks it applies to, and what it comes to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textguide.eval import run_sweep
from textguide.eval.sweeps.options import SweepOptions
from textguide.eval.sweeps.priors import prior_matched
from textguide.guidance import CFG


def sample(scores: list[float], target: Any = 0, endings: tuple[str, ...] = (" no", " yes")) -> dict[str, Any]:
    return {
        "arguments": [("question", ending) for ending in endings],
        "filtered_resps": [(score, False) for score in scores],
        "target": str(target),
    }


def test_a_word_that_is_always_likelier_no_longer_wins() -> None:
    generator = np.random.default_rng(0)
    samples = []
    for number in range(60):
        target = number % 2
        lift = generator.normal(0, 0.3)
        samples.append(sample([-1.0 + (1 - target) + lift, -4.0 + target], target))
    assert np.mean([s["filtered_resps"][1][0] > s["filtered_resps"][0][0] for s in samples]) == 0
    matched = prior_matched(samples)
    assert matched is not None
    assert matched.right.mean() > 0.9
    assert matched.prior[" no"] > 0.8
    assert matched.weights[" yes"] - matched.weights[" no"] == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [sample([-1, -2]), sample([-1, -2], endings=(" a", " b"))],
        [sample([-1, -2], endings=(" same", " same"))],
        [sample([-1, -2]), sample([-1, -math.inf])],
        [sample([-1, -2], target="yes")],
        [sample([-1, -2], target=2)],
        [{"arguments": "withheld", "filtered_resps": [(-1, True), (-2, False)], "target": "0"}],
        [sample([0.0, -2000.0]), sample([0.0, -2000.0])],
    ],
    ids=["none", "other words", "one word", "impossible", "a text", "no such class", "withheld", "too sure"],
)
def test_where_it_does_not_apply(samples: list[dict[str, Any]]) -> None:
    found = prior_matched(samples)
    assert found is None or np.isfinite(list(found.weights.values())).all()


def test_in_a_sweep(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "llm-foundry"
    folder.mkdir(parents=True)
    rows = [f'{{"query": "Is {n} even?", "choices": ["no", "yes"], "gold": {(n + 1) % 2}}}' for n in range(8)]
    (folder / "reading_comprehension__boolq.jsonl").write_text("\n".join(rows) + "\n")
    result = run_sweep(
        ["boolq"], [None, CFG(1.5)], output=tmp_path / "out", options=SweepOptions(data=str(tmp_path / "data")),
        model_args={"pretrained": tiny_model, "device": "cpu"},
    )  # fmt: skip
    assert result is not None
    for task in result.tasks:
        assert task.items["acc_prior_matched,none"].shape == (8,)
        # The main metric stays the accuracy.
        assert next(iter(task.metrics)) == "acc,none"
        assert sum(task.extra["prior"]["before"].values()) == pytest.approx(1)
