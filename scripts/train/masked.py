"""Training a small masked diffusion model: the objective, the loop, the tokenizer and the folder it is written to."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[MASK]", "[EOS]"]
PAD, MASK, EOS = range(3)


def tokenizer_of(tokens: list[str], pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the matches of ``pattern``."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *tokens])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        mask_token="[MASK]",
        eos_token="[EOS]",
        clean_up_tokenization_spaces=False,
    )


def small_encoder(vocabulary: int, width: int, layers: int, length: int) -> ModernBertForMaskedLM:
    """A bidirectional encoder with rotary positions and without dropout, from random weights."""
    return ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            intermediate_size=2 * width,
            max_position_embeddings=length,
            global_attn_every_n_layers=1,
            pad_token_id=PAD,
            bos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
            eos_token_id=EOS,
            attn_implementation="sdpa",
        )
    )


def corrupt(ids: Tensor, prompt: int, generator: torch.Generator, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Masked copies of ``ids`` (B, L) and which positions count in the loss.

    Of the n targets after the first ``prompt`` tokens a number that is uniform on 1…n is masked, spread evenly over
    the batch; with ``most`` it is uniform on 1…``most`` in seven rows of eight. Of the prompts a tenth is masked whole,
    a tenth in part (a share that is uniform), so that the model also knows texts without their condition and with a
    part of it.
    """
    batch, length = ids.shape
    targets = length - prompt
    offset = torch.rand(1, generator=generator)
    share = ((torch.arange(batch) + offset) / batch)[torch.randperm(batch, generator=generator)]
    bound = torch.full((batch,), targets)
    if most is not None:
        bound[torch.arange(batch) % 8 > 0] = most
    count = 1 + torch.minimum((share * bound).long(), bound - 1)
    rank = torch.rand(batch, targets, generator=generator).argsort(1).argsort(1)
    lost = torch.rand(batch, generator=generator)
    rate = torch.where(lost < 0.1, 1.0, torch.where(lost < 0.2, torch.rand(batch, generator=generator), 0.0))
    dropped = torch.rand(batch, prompt, generator=generator) < rate[:, None]
    masked = torch.cat([dropped, rank < count[:, None]], dim=1)
    counted = torch.cat([torch.zeros_like(dropped), rank < count[:, None]], dim=1)
    return ids.masked_fill(masked, MASK), counted


def loss_of(model: Any, ids: Tensor, prompt: int, generator: torch.Generator, most: int | None = None) -> Tensor:
    """Mean over rows of the mean cross-entropy of the masked targets: an upper bound on −log p(target|prompt)/n, where
    any number of them is masked."""
    noisy, counted = corrupt(ids, prompt, generator, most)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=noisy, attention_mask=torch.ones_like(noisy)).logits
    row = counted.nonzero()[:, 0]
    losses = torch.nn.functional.cross_entropy(logits[counted].float(), ids[counted], reduction="none")
    return (losses / counted.sum(1)[row]).sum() / len(ids)


def train(
    model: Any,
    batches: Callable[[int], Tensor],
    prompt: int,
    *,
    steps: int | None = None,
    minutes: float = math.inf,
    rate: float = 2e-3,
    warmup: int = 200,
    decay: float = 0.05,
    watch: Callable[[Any], str] | None = None,
    seed: int = 0,
    most: int | None = None,
) -> dict[str, Any]:
    """AdamW: a linear warm-up of so many steps, then a cosine down to zero at the last of ``steps``, or without them at
    the end of so many minutes. ``most``: as for
    :func:`corrupt`."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    begun, losses = time.perf_counter(), []
    step, tenth, done, took = 0, 1, 0.0, 0.0
    model.train()
    with Progress() as bar:
        task = bar.add_task("training", total=1.0)
        while done < 1.0:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * done)) / 2
            loss = loss_of(model, batches(step), prompt, generator, most)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            step, took = step + 1, (time.perf_counter() - begun) / 60
            done = step / steps if steps else took / minutes
            bar.update(task, completed=done)
            if done >= tenth / 10:
                tenth += 1
                text = watch(model.eval()) if watch else ""
                model.train()
                recent = sum(losses[-100:]) / len(losses[-100:])
                print(f"step {step} {took:.1f} min loss {recent:.4f} {text}", flush=True)
    model.eval()
    return {
        "steps": step,
        "minutes": round((time.perf_counter() - begun) / 60, 2),
        "final_loss": round(sum(losses[-200:]) / len(losses[-200:]), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def write(model: Any, tokenizer: Any, folder: Path, facts: dict[str, Any], card: str) -> None:
    """The model, its tokenizer, ``training.json`` and a model card."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.name_or_path = model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(card)
    (folder / "model.safetensors").chmod(0o644)
