"""What CAIF adds to a decoding step, and where the time goes.

A guided step is split into the language model, the classifier, and everything else (candidates, their texts, the
reweighting, sampling)::

    python scripts/bench/caif_speed.py --json docs/results/caif/speed.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import timing
import torch
from decode import TEXT

from textguide import CAIF, CFG, guided_decoding
from textguide.classifiers import CausalClassifier, Classifier, resolve

PARTS = ("total", "model", "classifier")
PREFILL = 2
"""Tokens of the run that is subtracted, so that the prompt's pass is not part of a step."""


class Stopwatch:
    """Adds up the seconds that are spent inside of functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return call


@contextmanager
def watched(model: Any, classifier: Classifier | None) -> Iterator[tuple[Stopwatch, Stopwatch]]:
    """Stopwatches of the language model and of the classifier."""
    model_watch = Stopwatch()
    classifier_watch = Stopwatch()
    # Guided passes may run a view of the model, which is another instance of its class.
    forward = type(model).forward
    type(model).forward = model_watch.timed(forward)
    name = "start" if isinstance(classifier, CausalClassifier) else "continuations"
    if isinstance(classifier, CausalClassifier):
        start = classifier.start

        # A causal classifier keeps a state for each run, whose methods do the work.
        def timed_start(ids: Any) -> Any:
            state = classifier_watch.timed(start)(ids)
            for method in ("log_prob", "append", "current"):
                setattr(state, method, classifier_watch.timed(getattr(state, method)))
            return state

        classifier.start = timed_start
    elif classifier is not None:
        classifier.continuations = classifier_watch.timed(classifier.continuations)
    try:
        yield model_watch, classifier_watch
    finally:
        type(model).forward = forward
        if classifier is not None:
            del classifier.__dict__[name]


def main() -> None:
    parser = timing.parser(__doc__, repeats=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompts")
    parser.add_argument("--new", type=int, default=24, help="tokens generated")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--classifiers", nargs="+", default=["sentiment", "profanity", "sentiment-smollm2"])
    arguments = parser.parse_args()
    model, tokenizer = timing.load(arguments)
    tokens = tokenizer(TEXT).input_ids * 8
    ids = torch.tensor([tokens[row : row + arguments.prompt] for row in range(arguments.batch)], device=model.device)

    def run(classifier: Classifier | None, guidances: list[Any], new: int) -> dict[str, float]:
        options = {"custom_generate": guided_decoding(guidances, tokenizer=tokenizer)} if guidances else {}
        with watched(model, classifier) as (model_watch, classifier_watch):
            start = time.perf_counter()
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=2,
                **options,
            )
            total = time.perf_counter() - start
        return {"total": total, "model": model_watch.seconds, "classifier": classifier_watch.seconds}

    contestants: dict[str, tuple[Classifier | None, list[Any]]] = {"plain": (None, []), "CFG": (None, [CFG(1.5)])}
    for name in arguments.classifiers:
        classifier = resolve(name, model=model, tokenizer=tokenizer)
        caif = CAIF(classifier, 1, 5.0, top_k=arguments.top_k)
        contestants[f"CAIF {name}"] = (classifier, [caif])
    first = f"CAIF {arguments.classifiers[0]}"
    classifier, guidances = contestants[first]
    contestants[f"CFG + {first}"] = (classifier, [CFG(1.5), *guidances])

    calls = {}
    for name, contestant in contestants.items():
        for new in (PREFILL, PREFILL + arguments.new):
            calls[name, new] = partial(run, *contestant, new)
    times = timing.compare(calls, arguments.repeats, model.device)
    steps = {}
    for name in contestants:
        pairs = zip(times[name, PREFILL].results, times[name, PREFILL + arguments.new].results, strict=True)
        steps[name] = [
            {part: 1e3 * (long[part] - short[part]) / arguments.new for part in PARTS} for short, long in pairs
        ]
    rows = [row(name, runs, steps["plain"], arguments.batch) for name, runs in steps.items()]
    columns = {
        "guidance": "{guidance}",
        "step ms": "{total_ms:.1f}",
        "tokens per second": "{tokens_a_second:.0f}",
        "× plain": "{ratio:.2f}",
        "model ms": "{model_ms:.1f}",
        "classifier ms": "{classifier_ms:.1f}",
        "rest ms": "{rest_ms:.1f}",
        "rest, share of the step": "{rest_share:.1%}",
    }
    timing.show(rows, columns)
    timing.finish(arguments, model, rows=rows)


def row(name: str, runs: list[dict[str, float]], plain: list[dict[str, float]], batch: int) -> dict[str, Any]:
    """Medians of the milliseconds of a step and its parts."""
    result: dict[str, Any] = {"guidance": name}
    for part in PARTS:
        result[f"{part}_ms"] = statistics.median(run[part] for run in runs)
    rests = [run["total"] - run["model"] - run["classifier"] for run in runs]
    totals = [run["total"] for run in runs]
    result["rest_ms"] = statistics.median(rests)
    result["rest_share"] = timing.ratio(rests, totals)
    result["ratio"] = timing.ratio(totals, [run["total"] for run in plain])
    result["tokens_a_second"] = 1e3 * batch / result["total_ms"]
    return result


if __name__ == "__main__":
    main()
