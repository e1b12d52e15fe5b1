"""Random LoRA adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def low_rank(model: str, folder: Path, seed: int, rank: int = 4, strength: float = 0.5) -> str:
    """A random adapter of ``model``, in ``folder``; ``strength`` scales its weights."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False
    )
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                weights.mul_(strength)
    adapted.save_pretrained(folder)
    return str(folder)
