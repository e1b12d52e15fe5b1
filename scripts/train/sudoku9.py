"""Train a masked diffusion model that fills in a 9×9 Sudoku (one core, about an hour)::

    python scripts/train/sudoku9.py --minutes 55

A text is a grid of 81 digits; the puzzle is the same text with masks instead of empty cells, which
``textguide.diffusion.infill`` fills in. Grids come from a few thousand by permutations of digits, rows, columns, bands
and stacks, so that hardly any is seen twice. A sixth of all grids, by a hash, is held out: none of them is trained on,
and only they are solutions of test puzzles.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from masked import EOS, PAD, tokenizer_of, train, write
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from textguide.tasks import sudoku

SIDE, CELLS = 9, 81
FIRST = 3
"""The id of the digit 1, after the special tokens."""
CARD = """# sudoku9: a masked diffusion model for Sudoku of 9×9

A bidirectional encoder ({parameters:,} parameters, `BertForMaskedLM` with a position for each cell) trained from random
weights by `scripts/train/sudoku9.py --minutes {budget}` for {minutes} minutes ({steps} steps of {batch} grids) on
{threads} CPU core(s).

* Text: the 81 digits of a grid; empty cells of a puzzle are masks, and
  `textguide.diffusion.infill` fills them in.
* Training grids: permutations of {grids} grids. A sixth of all grids, by a hash, is held out as solutions of test
  puzzles.
* Objective: masked diffusion; the number of masked cells is uniform on 1…{masks} in seven grids of eight,
  because puzzles have no more and a nearly empty grid has many solutions, and on 1…81 in the eighth.
* Licence: Apache-2.0, as the rest of the project.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=55.0, help="of training, whatever the machine does in them")
    parser.add_argument("--steps", type=int, help="of training, instead of minutes: the same weights on one machine")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--grids", type=int, default=4000)
    parser.add_argument("--masks", type=int, default=54, help="of seven grids of eight, at most; puzzles have up to 49")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("textguide/diffusion/models/sudoku9"))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = tokenizer_of([str(digit) for digit in range(1, SIDE + 1)], r"\d")
    model = encoder(len(tokenizer), arguments.width, arguments.layers)
    chance = random.Random(0)
    grids = torch.tensor(
        [[int(digit) for digit in sudoku.solutions("0" * CELLS, 1, chance)[0]] for _ in range(arguments.grids)]
    )
    tests = sudoku.puzzles(SIDE, 64, sudoku.TEST_CLUES[SIDE], seed=2000)
    generator = torch.Generator().manual_seed(1)

    def batches(step: int) -> Tensor:
        rows: list[Tensor] = []
        while len(rows) < arguments.batch:
            found = permuted(grids[torch.randint(len(grids), (arguments.batch,), generator=generator)], generator)
            rows += [grid for grid in found if not sudoku.held_out("".join(map(str, grid.tolist())))]
        return torch.stack(rows[: arguments.batch]) + FIRST - 1

    facts = train(
        model, batches, 0, steps=arguments.steps, minutes=arguments.minutes, rate=arguments.rate, warmup=150,
        decay=0.02, most=arguments.masks, watch=lambda model: watch(model, tokenizer, tests),
    )  # fmt: skip
    facts |= {"side": SIDE, "grids": arguments.grids, "batch": arguments.batch, "width": arguments.width}
    facts |= {"layers": arguments.layers, "masks": arguments.masks, "budget": arguments.minutes}
    print(facts)
    write(model, tokenizer, arguments.output, facts, CARD.format(**facts))


def encoder(vocabulary: int, width: int, layers: int) -> BertForMaskedLM:
    """A bidirectional encoder without dropout, whose learned positions begin as row plus column plus box.

    Attention is the plain one here: on a CPU its backward pass is three times as fast at this size as the fused one's.
    """
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32,
            intermediate_size=3 * width, max_position_embeddings=CELLS, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS, type_vocab_size=1,
            attn_implementation="eager",
        )
    )  # fmt: skip
    model.config.textguide_format = {"name": "sudoku", "side": SIDE, "has_puzzle": False}
    cell = torch.arange(CELLS)
    row, column = cell // SIDE, cell % SIDE
    codes = torch.randn(3, SIDE, width) * model.config.initializer_range
    box = row // 3 * 3 + column // 3
    model.bert.embeddings.position_embeddings.weight.data.copy_(codes[0, row] + codes[1, column] + codes[2, box])
    return model


def permuted(grids: Tensor, generator: torch.Generator) -> Tensor:
    """Each of (B, 81) grids under its own permutation, which keeps it a valid grid."""
    count = len(grids)

    def order(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).argsort(-1)

    def lines() -> Tensor:
        bands, inside = order(3), order(3, 3)
        return (3 * bands[..., None] + inside.gather(1, bands[..., None].expand(-1, -1, 3))).view(count, SIDE)

    rows, columns = lines(), lines()
    cells = grids.view(count, SIDE, SIDE)
    cells = cells.gather(1, rows[..., None].expand(-1, -1, SIDE)).gather(2, columns[:, None].expand(-1, SIDE, -1))
    turned = torch.rand(count, generator=generator) < 0.5
    cells = torch.where(turned[:, None, None], cells.transpose(1, 2), cells)
    return (order(SIDE) + 1).gather(1, cells.reshape(count, CELLS) - 1)


def watch(model: BertForMaskedLM, tokenizer: object, tests: list[tuple[str, str]]) -> str:
    """Greedy, two cells a step, the surest first."""
    mask = tokenizer.mask_token_id  # type: ignore[attr-defined]
    ids = torch.tensor([[int(c) + FIRST - 1 if c != "0" else mask for c in puzzle] for puzzle, _ in tests])
    with torch.no_grad():
        while bool((ids == mask).any()):
            logits = model(input_ids=ids).logits
            logits[..., :FIRST] = -torch.inf  # an untrained model may write masks
            top, token = logits.softmax(-1).max(-1)
            place = top.masked_fill(ids != mask, -1).topk(2).indices
            there = ids.gather(1, place)
            ids.scatter_(1, place, torch.where(there == mask, token.gather(1, place), there))
    answers = ["".join(str(token - FIRST + 1) for token in row) for row in ids.tolist()]
    solved = sum(sudoku.is_solution(p, a) for (p, _), a in zip(tests, answers, strict=True)) / len(tests)
    return f"solved {solved:.3f}"


if __name__ == "__main__":
    main()
