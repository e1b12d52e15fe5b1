"""Paired comparisons."""

from __future__ import annotations

from textguide.eval import compare_items
from textguide.eval.statistics.paired import adjust, shared_items


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


def test_shared_items() -> None:
    assert shared_items(None, ["a"]) is None
    assert shared_items(["a", "a"], ["a", "b"]) is None
    assert shared_items(["a"], ["b"]) is None
    found = shared_items(["a", "b", "c"], ["c", "x", "a"])
    assert found is not None
    assert [positions.tolist() for positions in found] == [[0, 2], [2, 0]]
