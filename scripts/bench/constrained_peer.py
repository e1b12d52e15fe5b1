"""The same constrained runs with genlm-control, for ``constrained.py``; it runs in an environment of its own.

Reads one JSON object a line (``predicate``, ``pattern``, ``schema``, ``lark`` or ``smiles``; ``prompt`` ids,
``particles``, ``limit``, ``seed``) and answers with one (``seconds``, ``steps``, ``tokens``, ``calls``, ``texts``…).
The functions live here, so that both sides ask the same ones.
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any


def optional(parts: list[str]) -> str:
    """A pattern for every beginning of the concatenated parts."""
    pattern = ""
    for part in reversed(parts):
        pattern = f"(?:{part}{pattern})?"
    return pattern


DIGIT = "[0-9]"
PARTS = [*[DIGIT] * 4, "-", *[DIGIT] * 2, "-", *[DIGIT] * 2]
DATE = re.compile("".join(PARTS))
DATE_PREFIX = re.compile(optional(PARTS))
EASY = re.compile("[\x00-gi-pr-y{-\x7f]*")
"""ASCII without z, q and h."""


def date_prefix(text: str) -> bool:
    """Whether the text begins a date such as 1969-07-20."""
    return DATE_PREFIX.fullmatch(text) is not None


def date_complete(text: str) -> bool:
    """Whether the text is a date."""
    return DATE.fullmatch(text) is not None


def easy(text: str) -> bool:
    """Whether the text is ASCII without z, q and h."""
    return EASY.fullmatch(text) is not None


PREDICATES = {"date": (date_prefix, date_complete), "easy": (easy, easy)}


def potential(llm: Any, asked: Any, request: dict[str, Any]) -> Any:
    """The constraint of a request on the tokens of the model: a predicate by name or of the domain, or its own forms.

    Args:
        asked: makes a potential of two predicates on texts.
    """
    from genlm.control import BoolCFG, JsonSchema

    limit = request["limit"]
    if "pattern" in request:
        import regex

        pattern = regex.compile(request["pattern"])
        return asked(
            llm.vocab,
            lambda text: pattern.fullmatch(text, partial=True) is not None,
            lambda text: pattern.fullmatch(text) is not None,
            limit,
        )
    if "smiles" in request:
        import partialsmiles

        def parses(text: str, partial: bool) -> bool:
            try:
                partialsmiles.ParseSmiles(text, partial=partial)
            except (partialsmiles.Error, IndexError):
                return False
            return True

        return asked(llm.vocab, lambda text: parses(text, True), lambda text: parses(text, False), limit)
    if "schema" in request:
        return JsonSchema(request["schema"]).coerce(llm, f=b"".join)
    if "lark" in request:
        return BoolCFG.from_lark(request["lark"]).coerce(llm, f=b"".join)
    return asked(llm.vocab, *PREDICATES[request["predicate"]], limit)


def serve(folder: str, threads: int) -> None:
    """Answer requests until the input ends."""
    import asyncio
    import importlib.metadata
    import random

    import numpy as np
    import torch
    from genlm.control import AWRS, EOS, Potential, PromptedLLM

    torch.set_num_threads(threads)

    class Asked(Potential):
        """A predicate on texts as a potential on tokens."""

        def __init__(self, vocabulary: Any, prefix_fn: Any, complete_fn: Any, limit: int) -> None:
            super().__init__(vocabulary)
            self.limit = limit
            self.prefix_fn, self.complete_fn = prefix_fn, complete_fn
            self.calls = self.at_the_limit = 0

        def _ask(self, context: Any, function: Any) -> float:
            self.calls += 1
            # Only the forced end asks about texts this long: about every token of the vocabulary.
            self.at_the_limit += len(context) >= self.limit
            try:
                text = b"".join(map(bytes, context)).decode()
            except UnicodeDecodeError:
                return -np.inf
            return 0.0 if function(text) else -np.inf

        async def prefix(self, context: Any) -> float:
            return self._ask(context, self.prefix_fn)

        async def complete(self, context: Any) -> float:
            return self._ask(context, self.complete_fn)

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
        try:
            asked = potential(llm, Asked, request)
        except Exception as error:  # whatever its packages raise for a form that they do not have
            print(json.dumps({"refused": f"{type(error).__name__}: {error}"[:300]}), flush=True)
            continue
        sampler = AWRS(llm, asked, seed=request["seed"])
        start = time.perf_counter()
        llm.model.cache_kv(request["prompt"])  # without it every step reads the whole text again
        sequences = asyncio.run(
            sampler.smc(n_particles=request["particles"], ess_threshold=0.5, max_tokens=request["limit"])
        )
        seconds = time.perf_counter() - start
        lengths = [len(context) for context in sequences.contexts]
        texts = [b"".join(bytes(t) for t in c if t is not EOS).decode(errors="replace") for c in sequences.contexts]
        weights = [float(weight) for weight in sequences.log_weights]
        print(
            json.dumps({
                "seconds": seconds, "steps": max(lengths), "tokens": sum(lengths),
                "calls": getattr(asked, "calls", None), "calls_at_the_limit": getattr(asked, "at_the_limit", None),
                "texts": texts, "lengths": lengths, "log_weights": [w if w > -np.inf else None for w in weights],
                "finished": sum(weight > -np.inf for weight in weights), "log_evidence": float(sequences.log_ml),
            }),
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
