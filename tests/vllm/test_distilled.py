"""An adapter that stands for guidance, served by vLLM as it is, against transformers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")
pytest.importorskip("peft", reason="PEFT is not installed; scripts/install_vllm_cpu.sh brings it")

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

import textguide
from textguide import CFG

from .test_models import PROMPTS, small

pytestmark = pytest.mark.real_model


def test_an_adapter_says_in_vllm_what_it_says_in_transformers(reference, tmp_path: Path, monkeypatch) -> None:
    """No plugin: whoever serves LoRA can serve distilled guidance."""
    monkeypatch.setenv("VLLM_PLUGINS", "")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # other tests have mended vLLM in this process
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = small(tmp_path / "model", 0, reference[1], **shape)
    model, tokenizer = textguide.load(folder, device="cpu", dtype=torch.float32)
    textguide.distill(
        model, tokenizer, CFG(2.0), tmp_path / "adapter", steps=8, texts=16, tokens=8, rank=8, learning_rate=0.05
    )
    adapted = textguide.load(folder, device="cpu", dtype=torch.float32, adapter=tmp_path / "adapter")[0]
    ways = {None: model, LoRARequest("guided", 1, str(tmp_path / "adapter")): adapted}
    llm = LLM(
        folder, dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=8, max_model_len=64, max_num_seqs=4
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    written = {}
    for lora, one in ways.items():
        served = llm.generate(PROMPTS, greedy, lora_request=lora, use_tqdm=False)
        expected = textguide.generate(one, tokenizer, PROMPTS, max_new_tokens=12, min_new_tokens=12, eos_token_id=None)
        written[lora] = [list(out.outputs[0].token_ids) for out in served]
        assert written[lora] == [list(row) for row in expected.new_tokens]
    assert written[None] != written[list(ways)[1]]
    llm.llm_engine.engine_core.shutdown()
    assert os.environ["VLLM_PLUGINS"] == ""
