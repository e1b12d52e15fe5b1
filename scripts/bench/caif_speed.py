"""What CAIF adds to a decoding step, and where the time goes.

Plain ``generate`` and CAIF with several classifiers, alternating within every repetition; medians. A guided step is
split into the language model, the classifier, and everything else (candidates, their texts, the weighing, sampling)::

    python scripts/bench/caif_speed.py --json docs/results/caif/speed.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import machine

import textguide
from textguide import CAIF, CFG, guided_decoding
from textguide.classifiers import CausalClassifier, Classifier, resolve
from textguide.support.files import write_json

TEXT = (
    "The dragon flew over Paris, France, and landed on the roof of the old opera house. People in the street below "
    "stopped and looked up. A baker came out of his shop with flour on his hands, and a child pointed at the wings. "
)


class Clock:
    """Seconds spent inside functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return call


@contextmanager
def watched(model: Any, guide: Classifier | None) -> Iterator[tuple[Clock, Clock]]:
    """Clocks of the language model and of the classifier."""
    lm, classifier = Clock(), Clock()
    model.forward = lm.timed(model.forward)
    if isinstance(guide, CausalClassifier):
        start = guide.start

        def timed_start(ids: Any) -> Any:
            state = classifier.timed(start)(ids)
            for name in ("log_prob", "append", "current"):
                setattr(state, name, classifier.timed(getattr(state, name)))
            return state

        guide.start = timed_start  # type: ignore[method-assign]
    elif guide is not None:
        guide.continuations = classifier.timed(guide.continuations)  # type: ignore[method-assign]
    try:
        yield lm, classifier
    finally:
        del model.forward
        if guide is not None:
            del guide.__dict__["start" if isinstance(guide, CausalClassifier) else "continuations"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompts")
    parser.add_argument("--new", type=int, default=24, help="tokens generated")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--classifiers", nargs="+", default=["sentiment", "profanity", "sentiment-smollm2"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = textguide.load(arguments.model)
    tokens = tokenizer(TEXT).input_ids * 8
    ids = torch.tensor([tokens[row : row + arguments.prompt] for row in range(arguments.batch)])
    guides = {name: resolve(name, model=model, tokenizer=tokenizer) for name in arguments.classifiers}
    contestants: dict[str, tuple[Classifier | None, list[Any]]] = {"plain": (None, []), "CFG": (None, [CFG(1.5)])}
    for name, guide in guides.items():
        contestants[f"CAIF {name}"] = (guide, [CAIF(guide, 1, 5.0, top_k=arguments.top_k)])
    first, guide = next(iter(guides.items()))
    contestants[f"CFG + CAIF {first}"] = (guide, [CFG(1.5), CAIF(guide, 1, 5.0, top_k=arguments.top_k)])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}

    def run(contestant: tuple[Classifier | None, list[Any]], new: int) -> dict[str, float]:
        guide, guidances = contestant
        options = {"custom_generate": guided_decoding(guidances, tokenizer=tokenizer)} if guidances else {}
        with watched(model, guide) as (lm, classifier):
            start = time.perf_counter()
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, pad_token_id=2, **options,
            )  # fmt: skip
            total = time.perf_counter() - start
        return {"total": total, "model": lm.seconds, "classifier": classifier.seconds}

    for contestant in contestants.values():
        run(contestant, 3)
    for _ in track(range(arguments.repeats), transient=True):
        for name, contestant in contestants.items():
            short, long = run(contestant, 2), run(contestant, 2 + arguments.new)
            found[name].append({part: (long[part] - short[part]) / arguments.new * 1e3 for part in long})
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"guidance": name}
        for part in ("total", "model", "classifier"):
            row[f"{part}_ms"] = statistics.median(run[part] for run in runs)
        rests = [run["total"] - run["model"] - run["classifier"] for run in runs]
        row["rest_ms"] = statistics.median(rests)
        row["rest_share"] = statistics.median(r / run["total"] for r, run in zip(rests, runs, strict=True))
        row["ratio"] = statistics.median(a["total"] / b["total"] for a, b in zip(runs, found["plain"], strict=True))
        rows.append(row)
    table = Table(
        "guidance",
        "step ms",
        "tokens a second",
        "× plain",
        "model ms",
        "classifier ms",
        "rest ms",
        "rest, share of the step",
    )
    for row in rows:
        values = [f"{row['total_ms']:.1f}", f"{1e3 * arguments.batch / row['total_ms']:.0f}", f"{row['ratio']:.2f}"]
        values += [f"{row[part]:.1f}" for part in ("model_ms", "classifier_ms", "rest_ms")]
        table.add_row(row["guidance"], *values, f"{row['rest_share']:.1%}")
    Console().print(table)
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items() if key != "json"}
        write_json(arguments.json, {"machine": machine(model), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
