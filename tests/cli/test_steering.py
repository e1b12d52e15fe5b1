"""``textguide steering``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textguide import steering
from textguide.classifiers import read_examples

from .conftest import Run

GOOD = ["a good day", "what a lovely film"]
BAD = ["a bad day", "what an awful film"]


def test_train_on_pairs_and_on_two_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(GOOD, BAD, strict=True)))
    (tmp_path / "good").write_text("\n".join(GOOD))
    (tmp_path / "bad").write_text("\n".join(BAD))
    outcome = run("steering", "train", str(tmp_path / "pairs.tsv"), "--out", str(tmp_path / "V"))
    assert outcome.code == 0
    assert "2 positive and 2 negative texts" in outcome.out
    files = ["--positive", str(tmp_path / "good"), "--negative", str(tmp_path / "bad")]
    report = json.loads(run("steering", "train", *files, "--out", str(tmp_path / "W"), "--json").out)
    assert report["fingerprint"] == steering.load(tmp_path / "V").fingerprint
    written = run(
        "generate", "--guidance", f"steering:vector={tmp_path / 'V'},layers=0,strength=4", "--max-new-tokens", "3", "ab"
    )
    assert written.code == 0


def test_what_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a\tb\nc\n")
    out = ["--out", str(tmp_path / "V")]
    assert "line 2 must contain a positive text" in run("steering", "train", str(tmp_path / "one"), *out).err
    assert "cannot be read" in run("steering", "train", str(tmp_path / "none"), *out).err
    assert "give a file of PAIRS" in run("steering", "train", "--positive", "x", *out).err
    both = run("steering", "train", str(tmp_path / "one"), "--positive", "x", *out)
    assert both.code == 2
    assert "PAIRS excludes" in both.err


@pytest.mark.parametrize("header", ["positive\tnegative", "Chosen\tRejected"])
def test_names_of_columns_are_not_a_pair(run: Run, tmp_path: Path, header: str) -> None:
    (tmp_path / "pairs.tsv").write_text(f"{header}\n" + "".join(f"{a}\t{b}\n" for a, b in zip(GOOD, BAD, strict=True)))
    command = ["steering", "train", str(tmp_path / "pairs.tsv"), "--json", "--out"]
    assert json.loads(run(*command, str(tmp_path / "V")).out)["positive"] == 2
    assert json.loads(run(*command, str(tmp_path / "W"), "--no-header").out)["positive"] == 3


def test_a_file_with_names_of_columns_alone_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("positive\tnegative\n")
    outcome = run("steering", "train", str(tmp_path / "pairs.tsv"), "--out", str(tmp_path / "V"))
    assert outcome.code == 2
    assert "contains no pair" in outcome.err
    assert not (tmp_path / "V").exists()


def test_every_file_of_lines_may_begin_with_the_name_of_its_column(tmp_path: Path) -> None:
    from textguide.cli.options import read_lines

    (tmp_path / "lines.txt").write_text("text\nthe first\nthe second\n")
    assert steering.read_texts(tmp_path / "lines.txt") == ["the first", "the second"]
    assert steering.read_texts(tmp_path / "lines.txt", header=False)[0] == "text"
    assert read_lines(str(tmp_path / "lines.txt"), "PROMPTS", "a prompt") == ["the first", "the second"]
    (tmp_path / "data.tsv").write_text("text\tlabel\nfine\tgood\npoor\tbad\n")
    assert read_examples(tmp_path / "data.tsv").texts == ("fine", "poor")
