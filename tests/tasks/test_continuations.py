"""The task ``continuations``: its prompts and what it says of a text."""

from __future__ import annotations

import pytest

from textguide.tasks import continuations


def test_prompts_are_the_neutral_ones(data: str) -> None:
    rows = continuations.neutral(data=data)["test"]
    assert len(rows) == 60
    assert all(row["prompt"].strip() for row in rows)


def test_a_missing_file_is_named(tmp_path: object) -> None:
    with pytest.raises(ValueError, match=r"prompts/unique_prompts.json.* is missing"):
        continuations.neutral(data=str(tmp_path))


def test_sentiment_and_repetition() -> None:
    found = continuations.results({"prompt": "x"}, [" a wonderful, wonderful day and a great success"])
    assert found["positive"] == 1.0
    assert found["sentiment"] > 0.5
    found = continuations.results({"prompt": "x"}, [" bad bad bad bad bad"])
    assert found["positive"] == 0.0
    assert found["distinct_2"] == pytest.approx(1 / 4)


def test_several_continuations_are_taken_together() -> None:
    found = continuations.results({"prompt": "x"}, [[" a wonderful day", " a terrible day", " a wonderful day"]])
    assert found["positive"] == pytest.approx(2 / 3)
    assert found["distinct_2"] == pytest.approx(4 / 6)
