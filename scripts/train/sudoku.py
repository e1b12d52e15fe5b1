"""Train a bundled masked diffusion model for Sudoku (one core, under 15 minutes with the puzzles)::

    python scripts/train/sudoku.py --side 4 --steps 1300 --batch 64
    python scripts/train/sudoku.py --side 6 --steps 5000 --batch 32

The prompt is the puzzle, a digit a cell with 0 for an empty one; the target is the solution. A sixth of all grids is
held out: no training puzzle has one of them as its solution, which is checked against the test puzzles at the end.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from masked import small_encoder, tokenizer_of, train, write

from textguide.tasks import sudoku

CLUES = {4: (4, 10), 6: (10, 24)}
CARD = """# sudoku{side}: a masked diffusion model for Sudoku of {side}×{side}

A bidirectional encoder ({parameters:,} parameters, `ModernBertForMaskedLM`) trained from random weights by
`scripts/train/sudoku.py --side {side} --steps {steps}` for {minutes} minutes on {threads} CPU core(s),
{batch} rows per step.

* Text: the digits of the puzzle (0 for an empty cell), then the digits of the solution.
* Training puzzles: {puzzles}, with {low} to {high} clues and one solution each. A sixth of all grids is held out as
  solutions of test puzzles; no test puzzle is a training puzzle (checked when the model was written).
* Objective: masked diffusion, the number of masked target cells uniform. A tenth of the prompts was masked
  completely and a tenth partially, so that the model has learned the unconditional branch of guidance.
* It is small and was trained briefly: it makes mistakes, which makes the effect of guidance measurable.
* Licence: Apache-2.0, as the rest of the project.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, choices=(4, 6), default=6)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--puzzles", type=int, default=30000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder [textguide/diffusion/models/sudokuSIDE]")
    arguments = parser.parse_args()

    side, cells = arguments.side, arguments.side**2
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = tokenizer_of([str(digit) for digit in range(side + 1)], r"\d")
    with ProcessPoolExecutor(2) as pool:
        shares = list(pool.map(training_puzzles, [(side, arguments.puzzles // 4, seed) for seed in range(4)]))
    pairs = list({puzzle: (puzzle, grid) for share in shares for puzzle, grid in share}.values())
    rows = torch.tensor([tokenizer(puzzle + solution).input_ids for puzzle, solution in pairs])
    model = small_encoder(len(tokenizer), arguments.width, arguments.layers, 2 * cells)
    model.config.textguide_format = {"name": "sudoku", "side": side, "has_puzzle": True}
    order = torch.Generator().manual_seed(1)

    def batches(step: int) -> torch.Tensor:
        return rows[torch.randint(len(rows), (arguments.batch,), generator=order)]

    tests = sudoku.puzzles(side, 64, sudoku.TEST_CLUES[side], seed=2000)
    held = torch.tensor([tokenizer(puzzle).input_ids + [tokenizer.mask_token_id] * cells for puzzle, _ in tests])

    def watch(model: torch.nn.Module) -> str:
        answers = tokenizer.batch_decode(filled(model, held, tokenizer.mask_token_id)[:, cells:])
        right = [sudoku.is_solution(puzzle, text) for (puzzle, _), text in zip(tests, answers, strict=True)]
        return f"solved {sum(right) / len(tests):.3f}"

    facts = train(model, batches, cells, steps=arguments.steps, watch=watch)
    seen = {puzzle for puzzle, _ in pairs}
    shown = sudoku.puzzles(side, 400, sudoku.TEST_CLUES[side], sudoku.TEST_SEED)
    assert not any(puzzle in seen for puzzle, _ in shown), "a test puzzle was trained on"
    facts |= {"side": side, "puzzles": len(pairs)}
    facts |= {name: getattr(arguments, name) for name in ("batch", "width", "layers")}
    print(facts, watch(model))
    folder = arguments.output or Path(f"textguide/diffusion/models/sudoku{side}")
    write(model, tokenizer, folder, facts, CARD.format(low=CLUES[side][0], high=CLUES[side][1], **facts))


@torch.no_grad()
def filled(model: torch.nn.Module, puzzles: torch.Tensor, mask: int) -> torch.Tensor:
    """Puzzles with their solutions: greedily, two cells per step, the most confident first."""
    ids = puzzles.clone()
    for _ in range(ids.shape[1] // 4):  # half of a row are the cells of the solution
        top, token = model(input_ids=ids).logits.softmax(-1).max(-1)
        place = top.masked_fill(ids != mask, -1).topk(2).indices
        ids.scatter_(1, place, token.gather(1, place))
    return ids


def training_puzzles(job: tuple[int, int, int]) -> list[tuple[str, str]]:
    side, count, seed = job
    return sudoku.puzzles(side, count, CLUES[side], seed, lambda grid: not sudoku.held_out(grid))


if __name__ == "__main__":
    main()
