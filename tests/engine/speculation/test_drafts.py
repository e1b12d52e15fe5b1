"""Guesses: what is looked up, what is recycled, how many pay."""

from __future__ import annotations

import pytest

from textguide import Speculation
from textguide.engine.speculation import as_speculation
from textguide.engine.speculation.drafts import Drafter, Record, Text
from textguide.engine.speculation.value import SpeculationReport, join


def text(tokens: list[int], longest: int = 3) -> Text:
    made = Text(longest)
    made.read(tokens)
    return made


def plain_lookup(tokens: list[int], longest: int, length: int) -> list[int]:
    """The same from its definition: the longest end that stood before, its last occurrence, what followed."""
    for n in range(longest, 0, -1):
        for start in range(len(tokens) - n - 1, -1, -1):
            if n < len(tokens) and tokens[start : start + n] == tokens[-n:]:
                follows = list(tokens)
                while len(follows) < start + n + length:
                    follows.append(follows[start + n + len(follows) - len(tokens)])
                return follows[start + n : start + n + length]
    return []


@pytest.mark.parametrize(
    "tokens",
    [[1, 2, 3, 9, 1, 2, 3], [1, 2, 3, 4], [5, 5], [7], [1, 2, 8, 1, 3, 8, 1, 2, 8, 1], [4, 1, 4, 1, 4], [1, 2, 1, 1]],
    ids=str,
)
def test_lookup_is_what_followed_the_last_time(tokens: list[int]) -> None:
    for longest in (1, 2, 3):
        found = [token for token, _ in text(tokens, longest).look_up(4)]
        assert found == plain_lookup(tokens, longest, 4)


def test_lookup_step_by_step_equals_at_once() -> None:
    tokens = [1, 2, 3, 1, 2, 4, 1, 2, 3, 3, 3, 1, 2]
    grown = Text(3)
    for end in range(1, len(tokens) + 1):
        grown.read(tokens[:end])
        assert grown.look_up(3) == text(tokens[:end]).look_up(3)
    # A row that goes on from another one is read anew.
    other = [9, 8, 9]
    grown.read(other)
    assert grown.look_up(2) == text(other).look_up(2) == [(8, "lookup1"), (9, "lookup1")]


def test_recycling_follows_what_the_distribution_preferred() -> None:
    row = text([1, 2])
    row.observe([3, 4], [3, 5, 6])  # behind 2: 3, behind 3: 5, behind the guess 4: 6
    assert row.recycle(3) == [(3, "recycled2"), (5, "recycled2")]
    row.read([1, 2, 7, 3])  # what was written is preferred from then on
    assert row.recycle(1) == [(5, "recycled1")]
    row.read([1, 2, 7, 3, 2])
    assert row.recycle(3) == [(7, "recycled1"), (3, "recycled2"), (2, "recycled2")]


def test_kinds_that_fail_are_left_out_for_a_while() -> None:
    drafter = Drafter(Speculation("prompt-lookup", tokens=4, ngram=1, least=0.3))
    tokens = [1, 2, 3, 4, 5, 1]
    first = drafter.draft(0, tokens, 9)
    assert [token for token, _ in first] == [2, 3, 4, 5]
    assert drafter.draft(0, tokens, 2) == first[:2]
    for _ in range(12):
        drafter.judge(first, 0)
    assert drafter.draft(0, tokens, 9) == []
    tries = next(n for n in range(200) if drafter.draft(0, tokens, 9))
    assert tries > 5
    record = Record()
    for _ in range(500):
        record.add(True)
    assert record.rate > 0.95


def test_guesses_that_would_not_pay_for_the_wider_pass_are_left_out() -> None:
    tokens = [1, 2, 3, 4, 5, 1]

    def drafted(worth: float, right: int) -> int:
        drafter = Drafter(Speculation("prompt-lookup", tokens=4, ngram=1, worth=worth))
        first = drafter.draft(0, tokens, 9)
        assert len(first) == 4
        for number in range(20):  # so many in twenty of the first guesses are right
            drafter.judge(first[:1], int(number % 20 < right))
        return len(drafter.draft(0, tokens, 9))

    assert drafted(0.0, 10) == 2  # 0.5 and 0.25: each is likely enough, and 0.75 are expected to be right
    assert drafted(0.9, 10) == drafted(0.8, 10) == 0
    assert drafted(0.7, 10) == 2
    assert drafted(0.9, 14) == 3
    alone = Drafter(Speculation("prompt-lookup", tokens=1, worth=0.9))
    assert len(alone.draft(0, tokens, 9)) == 1


def test_both_recycles_where_nothing_is_found() -> None:
    drafter = Drafter(Speculation("both"))
    drafter.observe(0, [4, 5], [], [6])
    assert drafter.draft(0, [4, 5], 4) == [(6, "recycled2")]
    assert Drafter(Speculation("prompt-lookup")).draft(0, [4, 5], 4) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nonsense", "speculation='nonsense' must be one of prompt-lookup"),
        (3, "speculation=3"),
        (True, "speculation=T"),
    ],
)
def test_bad_values_name_the_remedy(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_speculation(value)


@pytest.mark.parametrize(
    "options", [{"tokens": 0}, {"ngram": True}, {"least": 1.5}, {"least": float("nan")}, {"worth": -1}], ids=str
)
def test_bad_fields(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Speculation(**options)  # type: ignore[arg-type]


def test_reports_add_up() -> None:
    report = join([SpeculationReport(10, 5, 8, 4), SpeculationReport(4, 4, 2, 0)])
    assert report == SpeculationReport(14, 9, 10, 4)
    assert report.acceptance == 0.4
    assert report.to_dict()["tokens_per_pass"] == pytest.approx(14 / 9)
    assert SpeculationReport().acceptance == 0
    assert "9 passes for 14 tokens" in str(report)
