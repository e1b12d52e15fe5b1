"""Language models that an adapter makes masked diffusion models: how they are trained is how they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import textguide
from textguide import CFG, diffusion
from textguide.diffusion.block_adapters import CARD, as_block_model, noisy_and_clean
from textguide.forward.steering_vectors import model_fingerprint
from textguide.support.errors import ModelUnavailableError

from ..marks import NEEDS_SMOLLM2

MASK = "<empty_output>"


@torch.no_grad()
def test_one_pass_says_what_filling_block_by_block_says() -> None:
    model, tokenizer = as_block_model(*textguide.load("smollm2-small"), 4, MASK)
    made = diffusion.denoiser(model, tokenizer)
    assert made.shifted
    assert (made.block_size, made.mask_id) == (4, tokenizer.convert_tokens_to_ids(MASK))
    torch.manual_seed(0)
    clean = torch.randint(20, 4000, (2, 12))
    noisy = clean.masked_fill(torch.rand(2, 12) < 0.5, made.mask_id)
    seen, places, before = noisy_and_clean(12, 4)
    whole = model(
        input_ids=torch.cat([noisy, clean], 1), attention_mask=seen[None, None].expand(2, -1, -1, -1),
        position_ids=places[None].expand(2, -1),
    ).logits[:, before]  # fmt: skip
    for start in (0, 4, 8):
        canvas = clean.clone()
        canvas[:, start:] = made.mask_id
        canvas[:, start : start + 4] = noisy[:, start : start + 4]
        said, _ = made(canvas, torch.ones_like(canvas, dtype=torch.bool))
        said, inside = said.nan_to_num(neginf=0.0), slice(max(1, start), start + 4)
        expected = whole[:, inside].index_fill(-1, torch.tensor(made.forbidden), 0.0)
        assert torch.allclose(said[:, inside], expected, atol=1e-3)
    changed = noisy.clone()
    changed[:, 8:] = 7  # what stands behind is not seen
    one, other = (made(ids, torch.ones_like(ids, dtype=torch.bool))[0][:, :8] for ids in (noisy, changed))
    assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_loaded_and_belongs_to_its_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, _ = textguide.load("smollm2-small")
    facts = {
        "base": "smollm2-small", "model_fingerprint": model_fingerprint(model), "block_size": 4, "mask_token": MASK,
    }  # fmt: skip
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    (tmp_path / CARD).write_text(json.dumps(facts))
    adapted, tokenizer = diffusion.load(str(tmp_path), device="cpu")
    plain, _ = textguide.load("smollm2-small")
    assert not torch.equal(adapted.state_dict()["model.layers.0.self_attn.q_proj.weight"],
                           plain.state_dict()["model.layers.0.self_attn.q_proj.weight"])  # fmt: skip
    options = {"gen_length": 8, "guidance": CFG(1.5), "early_end": False}
    out = diffusion.generate(adapted, tokenizer, ["The cat", "A dog sat"], **options)
    kept = diffusion.cache_agreement(
        adapted, tokenizer, ["The cat", "A dog sat"], cache="delayed:reads=block", **options
    )
    assert kept.kept.texts == out.texts
    assert kept.largest_difference < 1e-2
    (tmp_path / CARD).write_text(json.dumps({**facts, "model_fingerprint": "0" * 16}))
    with pytest.raises(ModelUnavailableError, match="was trained for another 'smollm2-small'"):
        diffusion.load(str(tmp_path), device="cpu")
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(ModelUnavailableError, match="is damaged"):
        diffusion.load(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="mask_token='<none>' is not a token"):
        as_block_model(plain, tokenizer, 4, "<none>")


class TestBundled:
    pytestmark = NEEDS_SMOLLM2

    def test_the_bundled_adapter_writes(self) -> None:
        pytest.importorskip("peft")
        model, tokenizer = diffusion.load("smollm2-adapted", device="cpu")
        prompts = ["The capital of France is", "Two plus two is"]
        plain = diffusion.generate(model, tokenizer, prompts, gen_length=8)
        guided = diffusion.generate(model, tokenizer, prompts, gen_length=8, guidance=CFG(1.25))
        assert "Paris" in guided.texts[0]
        assert plain.texts != guided.texts
