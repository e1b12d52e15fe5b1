"""``textguide serve`` where vLLM is not installed."""

from __future__ import annotations

import importlib.util

import pytest

from .conftest import Run


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_named(run: Run) -> None:
    outcome = run("serve", "smollm2", "--port", "8000", model=None)
    assert outcome.code == 1
    assert "textguide[vllm]" in outcome.error
