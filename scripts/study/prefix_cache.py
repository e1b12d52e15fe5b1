"""What keeping keys does to a model whose attention is bidirectional: those of finished blocks, and inside of a block.

No bundled model takes a cache, so decoders with opened attention and LLaDA's interface are trained here: on the 4×4
puzzles of ``scripts/train/sudoku.py`` (about four minutes on one core), and for what is kept inside of a block on the
molecules of ``scripts/train/molecules.py`` too. Held-out prompts are filled with and without what is measured::

    python scripts/study/prefix_cache.py --json docs/results/diffusion/prefix_cache.json
    python scripts/study/prefix_cache.py --delayed --puzzles 300 --data molsets-0.3.1-py3-none-any.whl --work FOLDER \\
        --json docs/results/diffusion/delayed_cache.json
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from textguide import CFG, diffusion
from textguide.diffusion import DelayedCache
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import compare_items
from textguide.forward import caches
from textguide.support.files import write_json
from textguide.tasks import molecules, sudoku

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import masked
from molecules import LENGTH, sample
from sudoku import training_puzzles

SIDE, CELLS = 4, 16
DELAYED = [
    DelayedCache(refresh=1), DelayedCache(refresh=2), DelayedCache(refresh=4), DelayedCache(refresh=8),
    DelayedCache(refresh=8, delay=4), DelayedCache(refresh=8, reads="block"),
]  # fmt: skip


class OpenDecoder(torch.nn.Module):
    """A decoder that attends to all tokens, with the interface of LLaDA."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="llada", vocab_size=vocabulary, mask_token_id=masked.MASK, is_decoder=True
        )
        self.inner = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                num_attention_heads=width // 32, max_position_embeddings=length, pad_token_id=masked.PAD,
            )
        )  # fmt: skip

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any = None, use_cache: bool = False,
        position_ids: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Logits (B, L, V) and, with ``use_cache``, what was kept."""
        done = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = torch.arange(done, done + input_ids.shape[1])[None] if position_ids is None else position_ids
        seen = attention_mask[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1).bool()
        kept = {} if past_key_values is None else {caches.cache_argument(self.inner): past_key_values}
        out = self.inner(input_ids=input_ids, attention_mask=seen, position_ids=places, use_cache=use_cache, **kept)
        return SimpleNamespace(logits=out.logits, cache=out.get("cache", out.get("past_key_values")))


class Sudoku:
    """Held-out puzzles: one cell a step; solved or not."""

    name, measure, masks = "sudoku", "solved", CELLS
    options: ClassVar[dict[str, Any]] = {"early_end": False}

    def __init__(self, items: int) -> None:
        self.tokenizer = masked.tokenizer_of([str(digit) for digit in range(SIDE + 1)], r"\d")
        pairs = dict(pair for seed in range(4) for pair in training_puzzles((SIDE, 7500, seed)))
        self.rows = torch.tensor([self.tokenizer(puzzle + grid).input_ids for puzzle, grid in pairs.items()])
        self.prompts = [puzzle for puzzle, _ in sudoku.puzzles(SIDE, items, sudoku.TEST_CLUES[SIDE], sudoku.TEST_SEED)]
        assert not any(puzzle in pairs for puzzle in self.prompts), "a test puzzle was trained on"

    def judge(self, texts: list[str]) -> list[float]:
        return [float(sudoku.is_solution(p, text)) for p, text in zip(self.prompts, texts, strict=True)]


class Molecules:
    """Prompts with four property bins: a token a step, drawn at temperature 0.7; valid or not."""

    name, measure, masks = "molecules", "valid", LENGTH
    options: ClassVar[dict[str, Any]] = {"early_end": False, "temperature": 0.7}

    def __init__(self, items: int, data: Path) -> None:
        texts = sample(data, 20000)
        found = [(molecules.bins_of(text), text) for text in texts]
        pieces = sorted({piece for text in texts for piece in re.findall(molecules.PATTERN, text)})
        self.tokenizer = masked.tokenizer_of([*molecules.prompt_tokens(), *pieces], molecules.PATTERN)
        self.rows = torch.full((len(found), len(molecules.EDGES) + LENGTH), masked.EOS)
        for row, (bins, text) in zip(self.rows, found, strict=True):
            ids = self.tokenizer(molecules.prompt_of(bins) + text).input_ids if bins else []
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        self.rows = self.rows[[bins is not None for bins, _ in found]]
        chance = random.Random(0)
        self.bins = [tuple(chance.randrange(len(e) + 1) for e in molecules.EDGES.values()) for _ in range(items)]
        self.prompts = [molecules.prompt_of(bins) for bins in self.bins]

    def judge(self, texts: list[str]) -> list[float]:
        return molecules.report(self.bins, texts).valid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delayed", action="store_true", help="keys inside of a block, in place of finished blocks")
    parser.add_argument("--data", type=Path, help="the molsets wheel; without it there are no molecules")
    parser.add_argument("--steps", type=int, default=1300, help="training steps")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--puzzles", type=int, default=1000, help="held-out puzzles")
    parser.add_argument("--molecules", type=int, default=200, help="prompts for molecules")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keep the trained models there")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    found, training = [], {}
    tasks: list[Callable[[], Any]] = [lambda: Sudoku(arguments.puzzles)]
    if arguments.delayed and arguments.data:
        tasks.append(lambda: Molecules(arguments.molecules, arguments.data))
    for made in tasks:
        task = made()
        model, training[task.name] = trained(task, arguments)
        sizes = (task.masks,) if arguments.delayed else (4, 8, 16)
        for guidance in (None, CFG(1.5)):
            for block in sizes:
                for cache in DELAYED if arguments.delayed else [True]:
                    found.append(compare(model, task, block, guidance, cache))
                    print(found[-1], flush=True)
    show(found)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        told = {name: getattr(arguments, name) for name in ("puzzles", "molecules")}
        write_json(arguments.json, {"training": training, **told, "rows": found})


def trained(task: Any, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A model of a task's rows, and how it was trained."""
    torch.manual_seed(0)
    prompt = task.rows.shape[1] - task.masks
    model = OpenDecoder(len(task.tokenizer), 96, 4, task.rows.shape[1])
    file = None if arguments.work is None else arguments.work / f"{task.name}.pt"
    if file is not None and file.is_file():
        weights, facts = torch.load(file)
        model.load_state_dict(weights)
        return model.eval(), facts
    order = torch.Generator().manual_seed(1)
    facts = masked.train(
        model,
        lambda _: task.rows[torch.randint(len(task.rows), (arguments.batch,), generator=order)],
        prompt,
        steps=arguments.steps,
    )
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save((model.state_dict(), facts), file)
    return model, facts


def compare(model: Any, task: Any, block: int, guidance: Any, cache: Any) -> dict[str, Any]:
    """The same prompts, one token a step, with and without."""
    options: dict[str, Any] = {**task.options, "gen_length": task.masks, "block_length": block, "guidance": guidance}
    found = diffusion.cache_agreement(model, task.tokenizer, task.prompts, cache=cache, **options)
    seconds = []
    for one in (False, cache):
        begun = time.process_time()
        diffusion.generate(model, task.tokenizer, task.prompts, cache=one, seed=0, warn=False, **options)
        seconds.append((time.process_time() - begun) / len(task.prompts))
    judged = [task.judge(out.texts) for out in (found.kept, found.exact)]
    apart, count = compare_items(*judged), len(task.prompts)
    return {
        "task": task.name,
        "guidance": "plain" if guidance is None else f"CFG {guidance.scale:g}",
        "block": block,
        "cache": "prefix" if cache is True else f"refresh {cache.refresh}, delay {cache.delay}, {cache.reads}",
        task.measure: mean_interval(judged[1]).mean,
        f"{task.measure}_cached": mean_interval(judged[0]).mean,
        "difference": [apart.difference, apart.low, apart.high],
        "same_cells": found.equal_tokens,
        "largest_difference": found.largest_difference,
        "distance_mean": float(found.distances.mean()),
        "distance_99": float(found.distances.quantile(0.99)),
        "passes": [found.exact.passes, found.kept.passes],
        "tokens_read": found.exact.tokens / count,
        "tokens_read_cached": found.kept.tokens / count,
        "seconds": seconds[0],
        "seconds_cached": seconds[1],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(title="without and with the cache")
    names = [name for name in rows[0] if name not in ("solved", "solved_cached")]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    Console(width=200).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{one:+.3f}" if isinstance(one, float) else str(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
