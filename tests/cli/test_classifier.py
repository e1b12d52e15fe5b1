"""``textguide classifier``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textguide.classifiers import resolve

from .conftest import Run

GOOD = ["a good day", "good food and good wine", "what a lovely, good film", "lovely", "a lovely day", "good"]
BAD = ["a bad day", "bad food and bad wine", "what an awful, bad film", "awful", "an awful day", "bad"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.tsv"
    rows = [
        f"{text}\t{label}" for pair in zip(GOOD, BAD, strict=True) for text, label in zip(pair, (1, 0), strict=True)
    ]
    path.write_text("sentence\tlabel\n" + "\n".join(rows * 2) + "\n")
    return path


@pytest.mark.parametrize("kind", ["linear", "causal"])
def test_train_and_score(run: Run, data: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    out = tmp_path / "out"
    arguments = [str(data), "--kind", kind, "--out", str(out), "--labels", "bad,good", "--validation", str(data)]
    outcome = run("classifier", "train", *arguments, "--strength", "10")
    assert outcome.code == 0
    assert "accuracy 1.0000 on 24 texts" in outcome.out
    assert "calibration" in outcome.out
    assert resolve(str(out)).labels == ("bad", "good")
    outcome = run("classifier", "score", str(out), "a good day", "awful", "--json")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row["text"] for row in rows] == ["a good day", "awful"]
    assert rows[0]["probabilities"]["good"] > 0.5 > rows[1]["probabilities"]["good"]
    report = json.loads(run("classifier", "train", *arguments, "--overwrite", "--json").out)
    assert report["classes"]["good"]["n"] == 12
    assert report["trained_on"] == 24


def test_score(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("wonderful\nterrible\n")
    outcome = run("classifier", "score", "sentiment", "--file", str(tmp_path / "texts"))
    assert outcome.code == 0
    first, second = outcome.out.splitlines()
    assert first.endswith("\twonderful")
    assert first.startswith("negative 0.")
    assert "positive 0." in second
    judged = run("classifier", "score", "zero-shot:a,b", "some text")
    assert judged.code == 0
    assert judged.out.startswith("a 0.")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["score", "sentimant", "x"], ["did you mean 'sentiment'"]),
        (["score", "sentiment", '{"prompt": ""}', "--file", "x"], ["--file x excludes"]),
        (["train", "/no/such", "--out", "x"], ["/no/such", "cannot be read"]),
        (["train", "DATA", "--out", "DATA"], ["is a file"]),
        (["train", "DATA", "--out", "x", "--labels", "a"], ["labels=['a']", "0, 1"]),
        (["train", "DATA", "--out", "x", "--label-column", "7"], ["2 columns", "no column 7"]),
        (["train", "DATA", "--out", "x", "--text-column", "words"], ["no column 'words'", "sentence, label"]),
        (["train", "DATA", "--out", "x", "--strength", "0"], ["--strength 0"]),
        (["train", "DATA", "--out", "x", "--limit", "1"], ["--limit 1"]),
        (["train", "DATA", "--out", "x", "--limit", "5"], ["5 examples", "--validation"]),
        (["train", "DATA", "--out", "x", "--kind", "forest"], ["'forest'"]),
    ],
)
def test_wrong_arguments(run: Run, data: Path, arguments: list[str], parts: list[str]) -> None:
    outcome = run("classifier", *[str(data) if argument == "DATA" else argument for argument in arguments])
    assert outcome.code == 2
    for part in parts:
        assert part in outcome.error
