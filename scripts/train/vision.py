"""Training small models of pictures and captions: tokenizer, batches of drawn scenes, a loop that resumes."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scenes
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD, BEGIN, END = range(3)
"""Tokens and their spelling are those of SmolLM2, of which this vocabulary is a part; padding is its unknown token."""
LEADING = ("a", "an", "there", "two", "three", "some", "something", "shapes")
"""Words that begin a caption, and so occur without a space in front."""


def parser(doc: str | None, *, steps: int, batch: int, rate: float, name: str, output: Path) -> argparse.ArgumentParser:
    """An argument parser with the options that these trainings share, and their defaults.

    Args:
        name: of the file with the checkpoint of an interrupted run.
        output: the folder of the model.
    """
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=steps)
    options.add_argument("--batch", type=int, default=batch)
    options.add_argument("--rate", type=float, default=rate)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--checkpoint", type=Path, default=Path(f"{name}.checkpoint"))
    options.add_argument("--output", type=Path, default=output)
    return options


def tokenizer(ends: bool = False) -> PreTrainedTokenizerFast:
    """One token per word, spelled as in SmolLM2's vocabulary (byte level, a space belongs to the word after it).

    Args:
        ends: put begin and end tokens around a text.
    """
    words = [*LEADING, *(f"Ġ{word}" for word in scenes.vocabulary())]
    numbers = {token: number for number, token in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL[PAD]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if ends:
        marks = [(SPECIAL[number], number) for number in (BEGIN, END)]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[BEGIN]} $A {SPECIAL[END]}", special_tokens=marks
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=SPECIAL[PAD],
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BEGIN],
        eos_token=SPECIAL[END],
        clean_up_tokenization_spaces=False,
        model_max_length=40,
    )


def pixels(images: list[Any]) -> Tensor:
    """Pictures as the processors give them: (B, 3, H, W), from −1 to 1, so that 0 is mid grey."""
    rows = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    side = scenes.SIDE
    return torch.stack(rows).view(-1, side, side, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def batch(
    split: str, step: int, size: int, captions: int, levels: tuple[float, ...] | None = None
) -> tuple[Tensor, list[str], Tensor]:
    """``size`` new scenes with ``captions`` each, the same for the same ``step``: pixels, captions and the content of
    each of the four cells, (B, 3, 4): numbers of shape (0: nothing), colour and size (−100: nothing). Captions are as
    people's where ``levels`` is None, else correct in form and at these levels of detail."""
    images, texts = [], []
    cells = torch.tensor([0, -100, -100])[None, :, None].repeat(size, 1, 4)
    names = (("", *scenes.SHAPES), tuple(scenes.COLOURS), tuple(scenes.SIZES))
    for (scene, chance), row in zip(scenes.scenes(split, step), range(size), strict=False):
        images.append(scenes.picture(scene, chance))
        for thing in scene.things:
            values = (thing.shape, thing.colour, thing.size)
            found = [known.index(value) for known, value in zip(names, values, strict=True)]
            cells[row, :, 2 * thing.row + thing.column] = torch.tensor(found)
        for level in chance.choices(range(len(scenes.LEVELS)), levels, k=captions):
            texts.append(scenes.said(scene, chance) if levels is None else scenes.caption(scene, chance, level))
    return pixels(images), texts, cells


class Cells(torch.nn.Module):
    """Reads the content of each cell from an encoder's patches. Only for training: it teaches the encoder to see, as
    large captioners begin with an encoder that was trained to recognise things, and is thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(scenes.SHAPES) + 1, len(scenes.COLOURS), len(scenes.SIZES))
        self.head = torch.nn.Linear(width, sum(self.sizes))

    def loss(self, states: Tensor, cells: Tensor) -> Tensor:
        """Sum of the cross-entropies of shape, colour and size; ``states`` (B, 1 + patches, width)."""
        side = math.isqrt(states.shape[1] - 1)
        grid = states[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
        pooled = torch.nn.functional.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
        logits = self.head(pooled).split(self.sizes, dim=-1)
        losses = [
            torch.nn.functional.cross_entropy(part.flatten(0, 1), cells[:, i].flatten())
            for i, part in enumerate(logits)
        ]
        return torch.stack(losses).sum()


def train(
    model: Any,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    checkpoint: Path,
    watch: Callable[[], str],
) -> dict[str, Any]:
    """Train by AdamW with a linear warm-up and a cosine decay to zero; continues from ``checkpoint`` if it exists."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    start = 0
    spent = 0.0
    losses = []
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
        spent = saved["spent"]
        print(f"continues from step {start}", flush=True)
    begun = time.process_time()
    model.train()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 200) * (1 + math.cos(math.pi * step / steps)) / 2
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % max(1, steps // 20) == 0:
            minutes = (spent + time.process_time() - begun) / 60
            model.eval()
            print(
                f"step {step + 1} {minutes:.1f} min loss {sum(losses[-100:]) / len(losses[-100:]):.4f} {watch()}",
                flush=True,
            )
            model.train()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            aside = checkpoint.with_suffix(".part")
            torch.save({**state, "spent": minutes * 60}, aside)
            os.replace(aside, checkpoint)
    model.eval()
    return {
        "steps": steps,
        "cpu_minutes": round((spent + time.process_time() - begun) / 60, 2),
        "final_loss": round(sum(losses[-200:]) / max(1, len(losses[-200:])), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "vocabulary": len(tokenizer()),
    }
