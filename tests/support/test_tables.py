"""Tables that fit a terminal."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("rich")

from rich.console import Console

from textguide.support.tables import in_blocks


def printed(width: int, header: list[str], rows: list[list[str]], names: int = 1) -> str:
    console = Console(width=width, file=io.StringIO())
    for table in in_blocks("title", header, rows, names, width):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_columns_that_do_not_fit_are_below() -> None:
    values = [f"0.{n}23 [0.{n}11, 0.{n}34]" for n in range(9)]
    text = printed(
        80, ["guidance", *(f"task\nmetric{n}" for n in range(9))], [["cfg 1.5", *values], ["plain", *values]]
    )
    assert all(text.count(value) == 2 for value in values)  # none is cut, none is broken
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("guidance") > 1
    assert text.count("title") == 1


def test_what_fits_is_one_table() -> None:
    assert printed(80, ["a", "b"], [["x", "1"]]).count("┏") == 1


def test_words_of_names_are_not_broken() -> None:
    header = ["task", "metric", "guidance", "first_run", "second_run"]
    names = ["continuations_positive", "distinct_2 (all) ↑", "independent-condition 1.25"]
    text = printed(80, header, [[*names, "0.946 [0.936, 0.954]", "0.946 [0.936, 0.955]"]], names=3)
    assert all(name in text for name in ("continuations_positive", "distinct_2 (all)", "independent-condition"))
    assert max(map(len, text.splitlines())) <= 80


def test_names_are_broken_before_values_are() -> None:
    text = printed(
        60, ["guidance", "value"], [["lm alpha=1 prompt=A man with a red helmet on a road", "0.1 [0.0, 0.2]"]]
    )
    assert "0.1 [0.0, 0.2]" in text
    assert max(map(len, text.splitlines())) <= 60
