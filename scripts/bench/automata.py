"""What it takes to look ahead under a pattern for the first time, and in a later process that finds it on disk.

    python scripts/bench/automata.py [--states 128] [--patterns PATTERN …]

CPU seconds of one thread: all moves by tokens, and the sums of a hidden Markov model's emissions over them. The model
is random, which changes no time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import textguide
from textguide.constraints import Regex, Vocabulary
from textguide.constraints.automata import automaton_of, token_automaton
from textguide.constraints.automata.expressions import TooLargeError
from textguide.smc.lookahead.hidden_markov import HiddenMarkov
from textguide.smc.lookahead.markov import MarkovLookahead
from textguide.support import kept

PATTERNS = (
    "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"[\w.]{1,64}@[\w]{1,32}\.[a-z]{2,6}",
    r'\{"name": "[^"\\]{1,40}", "age": [0-9]{1,3}, "tags": \[("[a-z]{1,12}"(, "[a-z]{1,12}"){0,5})?\]\}',
    r"[A-Z][a-z ,]{20,200}\.",
    r"[A-Za-z ,]{1,1500}\.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--states", type=int, default=128)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = textguide.load(arguments.model)
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size)
    shape = (arguments.states, vocabulary.size)
    markov = HiddenMarkov(*(torch.rand(*size).softmax(-1) for size in (shape[:1], shape[:1] * 2, shape)))
    table = Table("pattern", "states", "moves", "moves: new, s", "kept, s", "sums: new, s", "kept, s", "MB")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TEXTGUIDE_CACHE"] = folder
        for pattern in arguments.patterns:
            table.add_row(pattern, *measured(pattern, vocabulary, markov, Path(folder) / "compiled"))
        token_automaton._tree.cache_clear()
        tree = seconds(lambda: token_automaton._tree(vocabulary))[0]
    Console(width=160).print(
        table, f"the index of the vocabulary, once: {tree:.2f} s; kept from {kept.WORTH} s on", markup=False
    )


def measured(pattern: str, vocabulary: Vocabulary, markov: HiddenMarkov, folder: Path) -> list[str]:
    before = size(folder)
    found: list[list[float | None]] = []
    states, moves = 0, "too many"
    for _ in range(2):
        token_automaton._build.cache_clear()
        automaton = automaton_of(Regex(pattern), vocabulary)
        assert automaton is not None
        states = automaton.size
        listing, error = seconds(lambda: automaton.moves)  # noqa: B023 - called at once
        summing = None
        if error is None:
            moves = f"{len(automaton.moves.tokens):,}"
            summing, error = seconds(lambda: MarkovLookahead(automaton, markov)._edges)  # noqa: B023
        found.append([listing, None if error else summing])
    (a, b), (c, d) = found
    times = ["–" if value is None else f"{value:.2f}" for value in (a, c, b, d)]
    return [str(states), moves, *times, f"{(size(folder) - before) / 1e6:.1f}"]


def seconds(function: Callable[[], Any]) -> tuple[float, TooLargeError | None]:
    begun = time.process_time()
    try:
        function()
    except TooLargeError as error:
        return time.process_time() - begun, error
    return time.process_time() - begun, None


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


if __name__ == "__main__":
    main()
