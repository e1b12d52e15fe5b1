"""How alike the weights of particles are, without and with each lookahead, for a pattern that the model finds unlikely.

    python scripts/bench/lookahead.py [--populations 40] [--pilots 60] [--hmm FILE]

``value`` is learned from rollouts of the same pattern behind the same prompt: as many texts as ``--pilots``
populations have, which are its cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from constrained_ways import learned

import textguide
from textguide.constraints import Regex
from textguide.forward import caches
from textguide.guidance import AWRS
from textguide.smc.constrained import Constrained
from textguide.smc.lookahead import lookahead_of
from textguide.smc.lookahead.value import ValueLookahead
from textguide.smc.starting import vocabulary_of

PATTERN = "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
PROMPT = "My favourite fruit is "
LIMIT = 16


class Bench:
    """One model, prompt and pattern."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.tokenizer = textguide.load(arguments.model)
        self.vocabulary = vocabulary_of(self.model, self.model.generation_config, self.tokenizer)
        self.constraint, self.particles = Regex(arguments.pattern), arguments.particles
        self.ids = self.tokenizer(arguments.prompt, return_tensors="pt").input_ids

    @torch.no_grad()
    def run(self, lookahead: Any, populations: int, threshold: float, seed: int) -> Any:
        """Populations that are written together, and the seconds that they took."""
        began = time.perf_counter()
        guidance = AWRS(self.constraint, self.particles, threshold, lookahead=lookahead)
        rows = populations * self.particles
        state = Constrained(
            guidance, self.constraint.start(self.vocabulary), self.vocabulary, rows,
            torch.Generator().manual_seed(seed), limit=LIMIT,
            lookahead=lookahead_of(lookahead, self.constraint, self.vocabulary),
            prompts=[self.ids[0].tolist()] * rows,
        )  # fmt: skip
        cache, name = caches.new_cache(self.model), caches.cache_argument(self.model)
        given = self.ids.expand(rows, -1)
        for index in range(LIMIT):
            scores = self.model(given, use_cache=True, logits_to_keep=1, **{name: cache}).logits[:, -1]
            tokens = state.choose(scores, index == LIMIT - 1)
            state.advance(tokens, index == LIMIT - 1)
            ancestors = state.resample()
            given = tokens[:, None]
            if ancestors is not None:
                cache.reorder_cache(ancestors)
                given = given[ancestors]
            if not any(state.open):
                break
        return state, time.perf_counter() - began

    def value(self, populations: int) -> ValueLookahead:
        """Learned from rollouts."""
        rows = populations * self.particles
        return learned(self.model, self.tokenizer, self.constraint, tuple(self.ids[0].tolist()), LIMIT, rows, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pattern", default=PATTERN)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--populations", type=int, default=40)
    parser.add_argument("--pilots", type=int, default=60)
    parser.add_argument("--together", type=int, default=20, help="populations in one batch")
    parser.add_argument("--hmm", metavar="FILE")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    contestants: dict[str, Any] = {"none": None, "automaton": "automaton"}
    if arguments.hmm:
        contestants["hmm"] = arguments.hmm
    if arguments.pilots:
        contestants["value"] = bench.value(arguments.pilots)
    found = {}
    for name, lookahead in contestants.items():
        sizes, evidence, seconds, texts, moved = [], [], 0.0, [], 0
        for part in range(0, arguments.populations, arguments.together):
            count = min(arguments.together, arguments.populations - part)
            state, took = bench.run(lookahead, count, arguments.threshold, part)
            outcome = state.outcome()
            sizes += outcome.ess.tolist()
            evidence += outcome.log_evidence.exp().tolist()
            moved += outcome.resamplings
            seconds += took
            rows = [row.session.text for row in state._rows]
            size = arguments.particles
            texts += [len(set(rows[at : at + size])) for at in range(0, len(rows), size)]
        error = statistics.stdev(evidence) / len(evidence) ** 0.5 if len(evidence) > 1 else None
        found[name] = {
            "median_ess": statistics.median(sizes), "evidence": statistics.mean(evidence), "standard_error": error,
            "different_texts": statistics.mean(texts), "resamplings": moved / len(sizes), "seconds": seconds,
        }  # fmt: skip
        print(name, json.dumps(found[name]), flush=True)
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"settings": vars(arguments) | {"output": None}, "found": found}, indent=2)
        )


if __name__ == "__main__":
    main()
