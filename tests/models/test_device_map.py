"""Models that accelerate spreads: with parts on the disk, read when they are needed, they say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG

from ..tiny_folder import save

PARTS = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}


@pytest.mark.parametrize("guidance", [None, CFG(1.5), CFG(2.0, "other")])
def test_spread_over_memory_and_disk(tmp_path: Path, guidance: Any) -> None:
    folder = save(tmp_path / "tiny")
    whole = textguide.load(str(folder), device="cpu")
    parts = {**PARTS, "model.layers.0": "cpu", "model.layers.1": "disk"}
    spread = textguide.load(str(folder), device_map=parts, dtype="float32", offload_folder=str(tmp_path / "disk"))
    assert spread[0].hf_device_map["model.layers.1"] == "disk"
    assert spread[0].model.layers[1].mlp.up_proj.weight.device.type == "meta"
    prompts = ["ab", "a longer one"]
    expected = textguide.generate(*whole, prompts, guidance, max_new_tokens=6)
    assert textguide.generate(*spread, prompts, guidance, max_new_tokens=6).new_tokens == expected.new_tokens
    scores = [textguide.score(*one, prompts, ["cd", "e"], guidance).log_likelihood for one in (whole, spread)]
    torch.testing.assert_close(*scores)
