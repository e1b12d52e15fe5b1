"""Which share of a run under a constraint goes into its masks, and so what could be gained beside the forward pass.

    python scripts/bench/mask_share.py [--particles 10] [--tokens 24]

CPU seconds of the one thread that does everything, from the second run of each form on, so that what is compiled once
is not counted. *masks*: of all kinds of sessions; *draws*: choosing tokens, masks included.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from constrained_ways import DOMAINS, Dates

import textguide
from textguide import AWRS
from textguide.constraints import SMILES, Session
from textguide.smc.constrained import Constrained

SECONDS: dict[str, float] = defaultdict(float)


def timed(owner: type, name: str, key: str) -> None:
    """Let a method of a class count its time."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def counted(*arguments: Any, **options: Any) -> Any:
        begun = time.thread_time()
        try:
            return method(*arguments, **options)
        finally:
            SECONDS[key] += time.thread_time() - begun

    setattr(owner, name, counted)


def sessions(kind: type = Session) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from sessions(one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default=os.environ.get("TEXTGUIDE_DATA"))
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=24)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, tokenizer = textguide.load(arguments.model)
    timed(type(model), "forward", "forward passes")
    timed(Constrained, "choose", "draws")
    forms: list[tuple[str, Any, Any]] = [("molecules", "A molecule: ", SMILES())]
    forms.append(("date", Dates.prompt, Dates(arguments.data).constraint(Dates(arguments.data).items()[0])))
    for name in ("json", "sql-scoped"):
        task = DOMAINS[name](arguments.data)
        item = task.items()[3]
        forms.append((name, [[dict(message) for message in item.messages]], task.constraint(item)))
    for kind in set(sessions()):
        if "mask" in kind.__dict__:
            timed(kind, "mask", kind.__name__)
    for name, prompt, constraint in forms:
        for tokens in (6, arguments.tokens):
            SECONDS.clear()
            begun = time.thread_time()
            guidance = AWRS(constraint, particles=arguments.particles)
            options = {"max_new_tokens": tokens, "do_sample": True, "top_k": 0, "seed": 1}
            textguide.generate(model, tokenizer, prompt, guidance, **options)
            total = time.thread_time() - begun
        parts = ", ".join(f"{key} {value:.2f}" for key, value in sorted(SECONDS.items()))
        print(f"{name}: {total:.2f} s; {parts}", flush=True)


if __name__ == "__main__":
    main()
