"""Runs as values: what they refuse, how they are compared, what is chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.eval.runs import GUIDED, PLAIN, entry, sweep
from textguide.eval import (
    RunResult,
    TaskResult,
    as_guidances,
    environment,
    mcnemar,
    measure,
    paired_bootstrap,
)


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


def test_bad_runs_are_refused() -> None:
    task = entry("t", "plain", 1.0, PLAIN)
    with pytest.raises(ValueError, match=r"label='plain'.*not one of guidances: other"):
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


def test_confidences_are_probabilities() -> None:
    task = entry("t", "plain", 1.0, PLAIN)
    for bad in (1.1, -0.1):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            TaskResult("t", "plain", 1.0, task.metrics, confidences=np.array([bad]))
    kept = TaskResult("t", "plain", 1.0, task.metrics, confidences=np.array([1 + 1e-6, math.nan])).confidences
    assert kept is not None
    assert kept[0] == 1.0


def test_environment_names_versions() -> None:
    versions, machine = environment()
    assert {"python", "numpy"} <= versions.keys()
    assert set(machine) == {"system", "architecture", "cpus"}
