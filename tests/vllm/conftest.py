"""What a transformers model says to the requests that engines get."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))


@pytest.fixture(scope="session")
def reference():
    """The bundled model and its tokenizer, in float32."""
    import torch

    import textguide

    return textguide.load("smollm2", device="cpu", dtype=torch.float32)
