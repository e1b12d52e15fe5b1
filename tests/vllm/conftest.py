"""What a transformers model says to the requests that engines get."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
# Engines of these tests run in this process, where nothing is imported again. Servers, and engines of several ranks,
# have processes of their own (test_serving, test_parallel, test_refusals).
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(scope="session")
def reference():
    """The bundled model and its tokenizer, in float32."""
    import torch

    import textguide

    return textguide.load("smollm2", device="cpu", dtype=torch.float32)
