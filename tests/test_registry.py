"""The registry is what the files of results say, and tables of the docs quote the files that they name."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "registry.py"))


def test_the_registry_is_made_of_the_files(script: dict[str, Any]) -> None:
    text = (ROOT / "docs/results/registry.jsonl").read_text(encoding="utf-8")
    assert text == script["made"](), "run `python scripts/registry.py`"
    rows = [json.loads(line) for line in text.splitlines()]
    assert {row["kind"] for row in rows} >= {"evaluation", "measurement"}
    for row in rows:
        assert row["figures"], row["source"]
        if row["kind"] == "evaluation":
            assert row["versions"]
            assert row["weights"], row["model"]
            assert (row["guidance"] is None) == (row["fingerprint"] is None)


def test_tables_quote_the_files_that_they_name(script: dict[str, Any]) -> None:
    pages = {page for page, _, _ in script["tables"]()}
    assert pages >= {"docs/results/README.md", "docs/results/methods/README.md", "docs/results/serving/README.md"}
    assert list(script["strangers"]()) == []


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (".440*", [".440"]),
        ("2.09 (1.95–2.23)", ["2.09", "1.95", "2.23"]),
        ("−0.5 of 1,234.5", ["-0.5", "1234.5"]),
        ("CFG γ 1.5", ["1.5"]),
        ("300 rows, v2.1b", []),
    ],
)
def test_numbers_of_a_cell(script: dict[str, Any], cell: str, found: list[str]) -> None:
    assert script["numbers"](cell) == found


def test_a_wrong_figure_is_seen(script: dict[str, Any]) -> None:
    known = [0.4404, -12.3456, 0.0171]
    assert all(script["is_known"](text, known) for text in (".440", "44.0", "12.35", "17.1"))
    assert not any(script["is_known"](text, known) for text in (".441", "43.9", "12.36", "17.2"))


def test_weights_are_those_of_the_models(script: dict[str, Any]) -> None:
    for name, (file, digest) in script["WEIGHTS"].items():
        if (ROOT / file).is_file():
            assert hashlib.sha256((ROOT / file).read_bytes()).hexdigest() == digest, name
