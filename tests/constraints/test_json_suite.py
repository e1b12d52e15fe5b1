"""The official JSON Schema test suite; ``json_suite`` prints the whole table."""

from __future__ import annotations

import pytest

from . import json_suite

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")


@pytest.mark.parametrize("draft", json_suite.DRAFTS)
def test_required_parts(draft: str) -> None:
    counts = json_suite.run(draft, json_suite.REQUIRED)
    assert counts.crashes == []
    assert counts.accepted >= 0.96 * counts.valid
    assert counts.rejected >= 0.97 * counts.invalid
