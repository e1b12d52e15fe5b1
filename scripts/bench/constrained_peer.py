"""The same constrained runs with genlm-control, for ``constrained.py``; it runs in its own environment.

Reads one JSON object per line (``predicate``, ``prompt`` ids, ``particles``, ``limit``, ``seed``) and answers with one.
The constraints are defined here, so that both sides call the same functions.
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

DIGIT = "[0-9]"
PARTS = [*[DIGIT] * 4, "-", *[DIGIT] * 2, "-", *[DIGIT] * 2]
EASY = re.compile("[\x00-gi-pr-y{-\x7f]*")


def prefix_pattern(parts: list[str]) -> str:
    """A pattern for every prefix of the concatenated parts."""
    pattern = ""
    for part in reversed(parts):
        pattern = f"(?:{part}{pattern})?"
    return pattern


DATE = re.compile("".join(PARTS))
DATE_PREFIX = re.compile(prefix_pattern(PARTS))


def is_date_prefix(text: str) -> bool:
    """Whether the text begins a date such as 1969-07-20."""
    return DATE_PREFIX.fullmatch(text) is not None


def is_date(text: str) -> bool:
    """Whether the text is a date."""
    return DATE.fullmatch(text) is not None


def is_easy(text: str) -> bool:
    """Whether the text is ASCII without z, q and h."""
    return EASY.fullmatch(text) is not None


PREDICATES = {"date": (is_date_prefix, is_date), "easy": (is_easy, is_easy)}


def serve(folder: str, threads: int) -> None:
    """Answer requests until the input ends."""
    import asyncio
    import importlib.metadata
    import random

    import numpy as np
    import torch
    from genlm.control import AWRS, Potential, PromptedLLM

    torch.set_num_threads(threads)

    class Counted(Potential):
        """Predicates on texts as a potential on tokens, which counts their calls."""

        def __init__(self, vocabulary: Any, name: str, limit: int) -> None:
            super().__init__(vocabulary)
            self.limit = limit
            self.is_prefix, self.is_complete = PREDICATES[name]
            self.calls = 0
            self.calls_at_the_limit = 0

        def _log_value(self, context: Any, function: Any) -> float:
            self.calls += 1
            # Only the forced end checks texts this long, for nearly every token of the vocabulary.
            self.calls_at_the_limit += len(context) >= self.limit
            try:
                text = b"".join(map(bytes, context)).decode()
            except UnicodeDecodeError:
                return -np.inf
            return 0.0 if function(text) else -np.inf

        async def prefix(self, context: Any) -> float:
            return self._log_value(context, self.is_prefix)

        async def complete(self, context: Any) -> float:
            return self._log_value(context, self.is_complete)

    llm = PromptedLLM.from_name(folder, backend="hf")
    version = importlib.metadata.version("genlm-control")
    print(json.dumps({"version": version, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        llm.prompt_ids = request["prompt"]
        llm.model.clear_cache()
        random.seed(request["seed"])
        np.random.seed(request["seed"])  # noqa: NPY002
        torch.manual_seed(request["seed"])
        potential = Counted(llm.vocab, request["predicate"], request["limit"])
        sampler = AWRS(llm, potential, seed=request["seed"])
        start = time.perf_counter()
        llm.model.cache_kv(request["prompt"])  # otherwise every step reads the whole text again
        sequences = asyncio.run(
            sampler.smc(n_particles=request["particles"], ess_threshold=0.5, max_tokens=request["limit"])
        )
        seconds = time.perf_counter() - start
        lengths = [len(context) for context in sequences.contexts]
        answer = {
            "seconds": seconds,
            "steps": max(lengths),
            "tokens": sum(lengths),
            "calls": potential.calls,
            "calls_at_the_limit": potential.calls_at_the_limit,
            "finished": sum(weight > -np.inf for weight in sequences.log_weights),
            "log_evidence": float(sequences.log_ml),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
