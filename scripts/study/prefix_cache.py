"""What keeping finished blocks does to a model whose attention is bidirectional.

No bundled model takes a cache, so one is trained here: a decoder with opened attention and LLaDA's interface, on the
4×4 puzzles of ``scripts/train/sudoku.py`` (about ten minutes on one core). It fills the same held-out puzzles with and
without the cache::

    python scripts/study/prefix_cache.py --json docs/results/diffusion/prefix_cache.json
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from textguide import CFG, diffusion
from textguide.diffusion.denoisers import Denoiser
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import compare_items
from textguide.forward import caches
from textguide.support.files import write_json
from textguide.tasks import sudoku

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import masked
from sudoku import training_puzzles

SIDE, CELLS = 4, 16


class OpenDecoder(torch.nn.Module):
    """A decoder that attends to all tokens, with the interface of LLaDA."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="llada", vocab_size=vocabulary, mask_token_id=masked.MASK, is_decoder=True
        )
        self.inner = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                num_attention_heads=width // 32, max_position_embeddings=2 * CELLS, pad_token_id=masked.PAD,
            )
        )  # fmt: skip

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any = None, use_cache: bool = False
    ) -> Any:
        """Logits (B, L, V) and, with ``use_cache``, what was kept."""
        done = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = torch.arange(done, done + input_ids.shape[1])[None]
        seen = attention_mask[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1).bool()
        kept = {} if past_key_values is None else {caches.cache_argument(self.inner): past_key_values}
        out = self.inner(input_ids=input_ids, attention_mask=seen, position_ids=places, use_cache=use_cache, **kept)
        return SimpleNamespace(logits=out.logits, cache=out.get("cache", out.get("past_key_values")))


class Watched(Denoiser):
    """Reads every row behind a cache a second time as a whole, and notes how far the distributions of its masks are
    apart."""

    distances: list[Tensor]
    whole: Tensor
    tokens = 0

    def __call__(self, ids: Tensor, attention: Tensor, past: Any = None, keep: bool = False) -> tuple[Tensor, Any]:
        self.tokens += ids.numel()
        logits, kept = super().__call__(ids, attention, past, keep)
        if past is None:
            self.whole = ids.clone()
        else:
            self.whole[:, -ids.shape[1] :] = ids
            exact, _ = super().__call__(self.whole, attention)
            apart = logits.softmax(-1) - exact[:, -ids.shape[1] :].softmax(-1)
            self.distances.append((apart.abs().sum(-1) / 2)[ids == self.mask_id])
        return logits, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1300, help="training steps")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--puzzles", type=int, default=1000, help="held-out puzzles")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    tokenizer = masked.tokenizer_of([str(digit) for digit in range(SIDE + 1)], r"\d")
    pairs = dict(pair for seed in range(4) for pair in training_puzzles((SIDE, 7500, seed)))
    rows = torch.tensor([tokenizer(puzzle + grid).input_ids for puzzle, grid in pairs.items()])
    order = torch.Generator().manual_seed(1)
    model = OpenDecoder(len(tokenizer), 96, 4)
    facts = masked.train(
        model,
        lambda _: rows[torch.randint(len(rows), (arguments.batch,), generator=order)],
        CELLS,
        steps=arguments.steps,
    )
    tests = sudoku.puzzles(SIDE, arguments.puzzles, sudoku.TEST_CLUES[SIDE], sudoku.TEST_SEED)
    assert not any(puzzle in pairs for puzzle, _ in tests), "a test puzzle was trained on"
    found = [compare(model, tokenizer, tests, block, guidance) for guidance in (None, CFG(1.5)) for block in (4, 8, 16)]
    show(found)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, {"training": facts, "puzzles": len(tests), "rows": found})


def compare(model: Any, tokenizer: Any, tests: list[tuple[str, str]], block: int, guidance: Any) -> dict[str, Any]:
    """The same puzzles, one cell a step, with and without the cache."""
    solved, results, tokens = [], [], []
    plain = diffusion.denoiser(model, tokenizer)
    watched = Watched(**{f.name: getattr(plain, f.name) for f in fields(Denoiser) if f.init})
    watched.distances = []
    for cache in (False, True):
        watched.tokens = 0
        out = diffusion.generate(
            watched, tokenizer, [puzzle for puzzle, _ in tests], gen_length=CELLS, block_length=block,
            guidance=guidance, cache=cache, early_end=False, warn=False,
        )  # fmt: skip
        solved.append([float(sudoku.is_solution(p, text)) for (p, _), text in zip(tests, out.texts, strict=True)])
        results.append(out.sequences)
        tokens.append(watched.tokens / len(tests))
    distances = torch.cat(watched.distances)
    found = compare_items(solved[1], solved[0])
    return {
        "guidance": "plain" if guidance is None else f"CFG {guidance.scale:g}",
        "block": block,
        "solved": mean_interval(solved[0]).mean,
        "solved_cached": mean_interval(solved[1]).mean,
        "difference": [found.difference, found.low, found.high],
        "same_cells": float((results[0] == results[1])[:, CELLS:].float().mean()),
        "distance_mean": float(distances.mean()),
        "distance_99": float(distances.quantile(0.99)),
        "tokens_read": tokens[0],
        "tokens_read_cached": tokens[1],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(title="without and with the cache")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=160).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
