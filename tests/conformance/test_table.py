"""The page of models has the recorded results, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from . import table

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_the_recorded_results() -> None:
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "results" / "models.json").read_text(encoding="utf-8"))
    assert table.page(report, page) == page, "run `python scripts/conformance.py --resume`"


def test_cells_of_former_checks_do_not_count() -> None:
    cells = {"score": {"result": "exact", "detail": ""}, "former": {"result": "wrong", "detail": ""}}
    counts = table.counts([{"title": "A", "cells": cells}])
    assert counts["exact cells"] == 1
    assert counts["wrong cells"] == 0
