"""Is every answer of a guided vLLM engine that of the transformers path, token for token?

Runs mixed requests (guided and plain, scales, negatives, schedules, seeds, greedy and sampled, patterns with their
log-weights, stops, lengths) through engines with different settings and kinds of arrival, in float32, and compares each
with the transformers path::

    python scripts/bench/serve_exactness.py --requests 200 --json docs/results/serving/exactness.json

It also runs on several devices (here: processes that share the CPU), or with steps that are scheduled ahead, on a
random model. With ``--adapters`` requests run with LoRA adapters, and guide against them. Rows that ``--json`` has are
not measured again, so an interrupted run continues::

    python scripts/bench/serve_exactness.py --model tiny --ways 'two tensor ranks' 'two data ranks' --json devices.json
    python scripts/bench/serve_exactness.py --model tiny --adapters --json devices.json

If two answers differ, the difference of the two tokens' log-probabilities at that position is printed. A difference
below ``--tie`` nats is counted as a near-tie.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timing
from engines import PARALLEL, TINY, close, low_rank, start, tiny_llama
from rich.console import Console
from served import earlier
from serving_mix import Answer, Spec, margin, methods, mix, references

import textguide

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

# Differences from the common settings. 64 and 48 tokens per step split most prompts into chunks; 20 blocks of 32 tokens
# hold a few of the groups that may run together. Without block_size, blocks have 128 tokens.
SMALL_CACHE = {"block_size": 32, "num_gpu_blocks_override": 20}
ENGINES: dict[str, dict[str, Any]] = {
    "unchunked": {"max_num_batched_tokens": 2048, "enable_prefix_caching": False},
    "budget 64": {"max_num_batched_tokens": 64, "enable_prefix_caching": False},
    "budget 48, prefix caching": {"max_num_batched_tokens": 48, "enable_prefix_caching": True, "block_size": 32},
    "prefix caching": {"max_num_batched_tokens": 2048, "enable_prefix_caching": True, "block_size": 32},
    "small cache": {"max_num_batched_tokens": 64, "enable_prefix_caching": False, **SMALL_CACHE},
    "small cache, prefix caching": {"max_num_batched_tokens": 96, "enable_prefix_caching": True, **SMALL_CACHE},
}
ARRIVALS = ("at once", "staggered", "aborts")
KEYS = ("way", "engine", "arrival", "requests", "adapters")
"""The fields that identify a row of the report."""


def main() -> None:
    parser = timing.parser(__doc__, model=None)
    parser.add_argument("--model", default="smollm2", help="tiny: a random Llama of 4 layers and 4 heads")
    parser.add_argument("--requests", "--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--ways", nargs="+", choices=list(PARALLEL), default=["one device"])
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=list(ARRIVALS))
    parser.add_argument("--methods", action="store_true", help="guided requests carry all methods in turn, as JSON")
    parser.add_argument("--with", dest="amateur", metavar="PATH", help="a second model, for the methods that need one")
    parser.add_argument("--adapters", action="store_true", help="requests run with two random LoRA adapters, or none")
    parser.add_argument("--tie", type=float, default=1e-4, help="nats below which a difference is a near-tie [1e-4]")
    parser.add_argument("--cache", type=Path, help="a file that stores the reference answers")
    arguments = parser.parse_args()
    timing.quiet(arguments)
    if arguments.model == "tiny":
        arguments.model = tiny_llama()
    expected = References(arguments)
    settings = settings_of(arguments, timing.machine(expected.model))
    rows = earlier_rows(arguments.json, settings)
    done = {tuple(row.get(name) for name in KEYS) for row in rows}
    of_run = {"requests": arguments.requests, "adapters": len(expected.adapters)}
    console = Console()
    # A process that has scheduled steps ahead once always does, so this comes last.
    ways = sorted(arguments.ways, key="steps ahead".__eq__)
    for way, name in [(way, name) for way in ways for name in arguments.engines]:
        waiting = [one for one in arguments.arrivals if (way, name, one, *of_run.values()) not in done]
        if not waiting:
            continue
        expected.prepare()
        engine = engine_of(arguments, {**ENGINES[name], **PARALLEL[way]}, expected.adapters)
        for arrival in waiting:
            begin = time.perf_counter()
            answers, figures = Run(engine, expected.specs, arrival).run()
            row = expected.compare(answers, arguments.tie)
            row |= {"way": way, "engine": name, "arrival": arrival, **of_run}
            row |= {"seconds": round(time.perf_counter() - begin, 1), **figures}
            rows.append(row)
            console.print(row)
        close(engine)
        # After every engine, so that an interrupted run leaves its rows.
        timing.write(arguments.json, {**settings, "rows": rows})
    wrong = sum(row["wrong"] for row in rows)
    console.print(f"{sum(row['compared'] for row in rows)} answers, {wrong} wrong")
    raise SystemExit(bool(wrong))


def settings_of(arguments: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    """The settings that all rows of a report share."""
    import vllm

    return {
        "seed": arguments.seed,
        "tie": arguments.tie,
        "dtype": "float32",
        "methods": arguments.methods,
        "further_model": arguments.amateur,
        "model": "tiny" if arguments.model == str(TINY) else arguments.model,
        "vllm": vllm.__version__,
        "machine": machine,
    }


def earlier_rows(path: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same settings."""
    report = earlier(path, settings)
    if report is None:
        return []
    defaults = {"requests": report.get("requests"), "adapters": 0}  # older files have them once, or not at all
    return [{**defaults, **row} for row in report["rows"]]


def engine_of(arguments: argparse.Namespace, settings: dict[str, Any], adapters: dict[str, str]) -> Any:
    """A vLLM engine for the requests of this run."""
    options: dict[str, Any] = {"max_model_len": 160, "max_num_seqs": 16, **settings}
    if arguments.methods:
        options["classifier"] = "sentiment"
    if arguments.amateur:
        options["models"] = {"amateur": arguments.amateur}
    if adapters:
        options |= {"adapters": adapters, "max_loras": 3}
    return start(arguments.model, **options)


# -- the transformers path ---------------------------------------------------------------------------------------------


class References:
    """The requests, and the answers of the transformers path to them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.cache = arguments.cache
        self.model, self.tokenizer = textguide.load(arguments.model, device="cpu", dtype="float32")
        self.models: dict[str, Any] = {}
        if arguments.amateur:
            self.models["amateur"] = textguide.load(arguments.amateur, device="cpu", dtype="float32")[0]
        makers = methods(bool(self.models)) if arguments.methods else None
        self.adapters: dict[str, str] = {}
        if arguments.adapters:
            folder = Path(tempfile.gettempdir()) / "textguide-tiny-adapters"
            for number, name in enumerate(("one", "two")):
                self.adapters[name] = low_rank(arguments.model, folder / name, number)
            self.models |= {"base": self.model, **textguide.models.adapters(self.model, self.adapters)}
        self.specs = mix(arguments.requests, arguments.seed, makers, list(self.adapters))
        self.answers: list[Answer] = []

    def prepare(self) -> None:
        """Make the answers, once."""
        if not self.answers:
            self.answers = references(self.model, self.tokenizer, self.specs, self.cache, self.models)

    def compare(self, answers: Sequence[Answer | None], tie: float) -> dict[str, Any]:
        """Compare an engine's answers with these; None is a request that was aborted."""
        comparison = Comparison(tie)
        for spec, expected, answer in zip(self.specs, self.answers, answers, strict=True):
            if answer is None:
                continue
            if not comparison.add(spec, expected, answer):
                self.explain(comparison, spec, expected[0], answer[0])
        return comparison.report()

    def explain(self, comparison: Comparison, spec: Spec, theirs: list[int], ours: list[int]) -> None:
        """Find the first token that differs, and whether rounding could decide between the two."""
        pairs = enumerate(zip(ours, theirs, strict=False))
        position = next((number for number, (own, other) in pairs if own != other), None)
        if position is None:  # one of them stopped earlier
            comparison.wrong += 1
            comparison.differences.append({"spec": str(spec), "ours": ours, "theirs": theirs, "margin": None})
            return
        written = theirs[:position]
        gap = margin(self.model, self.tokenizer, spec, written, theirs[position], ours[position], self.models)
        if abs(gap) < comparison.tie:
            comparison.near_ties += 1
        else:
            comparison.wrong += 1
        comparison.differences.append({"spec": str(spec), "place": position, "margin": gap})


@dataclass
class Comparison:
    """Counts of answers, and the largest differences of equal ones."""

    tie: float
    compared: int = 0
    equal: int = 0
    near_ties: int = 0
    wrong: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)
    equal_of_method: dict[str, list[int]] = field(default_factory=dict)
    weight_gaps: list[float] = field(default_factory=list)
    likelihood_gaps: list[float] = field(default_factory=list)

    def add(self, spec: Spec, expected: Answer, answer: Answer) -> bool:
        """Count an answer; returns whether its tokens are the expected ones."""
        theirs, weight, likelihood = expected
        ours, own_weight, own_likelihood = answer
        counts = self.equal_of_method.setdefault(spec.method, [0, 0])
        self.compared += 1
        counts[1] += 1
        if ours != theirs or (own_weight is None) != (weight is None):
            return False
        self.equal += 1
        counts[0] += 1
        if weight is not None:
            self.weight_gaps.append(abs(weight - own_weight))
        if spec.logprobs is not None:
            self.likelihood_gaps.append(abs(likelihood - own_likelihood))
        return True

    def report(self) -> dict[str, Any]:
        """The fields of a row."""
        return {
            "compared": self.compared,
            "equal": self.equal,
            "near_ties": self.near_ties,
            "wrong": self.wrong,
            "differences": self.differences,
            "equal_of_method": self.equal_of_method,
            "weights": len(self.weight_gaps),
            "largest_weight_difference": max(self.weight_gaps, default=0.0),
            "log_likelihoods": len(self.likelihood_gaps),
            "largest_log_likelihood_difference": max(self.likelihood_gaps, default=0.0),
        }


# -- the engine --------------------------------------------------------------------------------------------------------


class Run:
    """All requests in one engine.

    Args:
        engine: of :func:`engines.start`.
        specs: the requests.
        arrival: of :data:`ARRIVALS`: all at the start, a few per step, or all with aborts.
    """

    def __init__(self, engine: Any, specs: Sequence[Spec], arrival: str) -> None:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        from textguide.logits_processors.vllm_plugin.adapters import adapters_of

        self.engine = engine
        self.specs = specs
        self.staggered = arrival == "staggered"
        self.params = [SamplingParams(**spec.sampling()) for spec in specs]
        adapters = adapters_of(engine.vllm_config)
        self.loras = {name: adapter.request(LoRARequest) for name, adapter in adapters.items()}
        self.draw = random.Random(1)
        aborted = [n for n in range(len(specs)) if arrival == "aborts" and self.draw.random() < 0.3]
        self.deadlines = {number: self.draw.randrange(0, 30) for number in aborted}
        self.names: dict[int, str] = {}
        """The engine's own names of requests, by which they are aborted."""
        self.running: set[int] = set()
        self.answers: list[Answer | None] = [None] * len(specs)
        self.counts = dict.fromkeys(("discarded_steps", "preemptions", "branch_tokens"), 0)

    def run(self) -> tuple[list[Answer | None], dict[str, Any]]:
        """Answers in order, None for requests that were aborted, and the engine's figures."""
        before = counters(self.engine)
        waiting = list(range(len(self.specs)))
        steps = 0
        while waiting or self.running:
            self.send(waiting)
            for output in self.engine.step():
                self.receive(output)
            steps += 1
            self.abort(steps)
        self.flush()
        after = counters(self.engine)
        figures = {name: after[name] - before.get(name, 0) for name in after if name != "cache_in_use"}
        if not self.deadlines:
            # The engine's counters add up to the answers' reports, and the request of flush() has two tokens.
            assert figures["engines_branch_tokens"] == self.counts["branch_tokens"], (figures, self.counts)
            assert figures["tokens"] == sum(len(answer[0]) for answer in self.answers) + 2, figures
        return self.answers, {
            **figures,
            "cache_in_use": after["cache_in_use"],
            "discarded_steps": self.counts["discarded_steps"],
            "guided_preemptions": self.counts["preemptions"],
            "branch_tokens": self.counts["branch_tokens"],
            "aborted": len([number for number in self.deadlines if self.answers[number] is None]),
        }

    def send(self, waiting: list[int]) -> None:
        """Send the requests that arrive before the next step."""
        count = self.draw.choice((0, 0, 1, 3)) if self.staggered else len(waiting)
        if not self.running:
            count = max(count, 1)  # a step without requests would wait forever
        for _ in range(min(count, len(waiting))):
            number = waiting.pop(0)
            spec = self.specs[number]
            options = {} if spec.adapter is None else {"lora_request": self.loras[spec.adapter]}
            name = self.engine.add_request(str(number), spec.prompt, self.params[number], **options)
            self.names[number] = name if isinstance(name, str) else str(number)
            self.running.add(number)

    def receive(self, output: Any) -> None:
        """Store the answer of a request that has finished."""
        number = int(output.request_id)
        if not output.finished or number not in self.running:
            return
        self.running.discard(number)
        report = (output.kv_transfer_params or {}).get("textguide", {})
        completion = output.outputs[0]
        likelihood = None if completion.logprobs is None else float(completion.cumulative_logprob)
        self.answers[number] = (list(completion.token_ids), report.get("log_weight"), likelihood)
        for name in self.counts:
            self.counts[name] += report.get(name, 0)

    def abort(self, steps: int) -> None:
        """Abort the running requests whose deadline has passed."""
        for number in sorted(self.running & self.deadlines.keys()):
            if self.deadlines[number] <= steps // 2:
                self.engine.abort_request([self.names[number]], internal=True)
                self.running.discard(number)

    def flush(self) -> None:
        """Run one more request, with whose steps the engine reports the rest of those that were aborted."""
        from vllm import SamplingParams

        self.engine.add_request("last", "The", SamplingParams(max_tokens=2, temperature=0.0))
        while not any(output.finished for output in self.engine.step()):
            pass


def counters(engine: Any) -> Mapping[str, float]:
    """vLLM's figures and ours, summed over engines."""
    from prometheus_client import CollectorRegistry
    from vllm.v1.metrics.reader import get_metrics_snapshot

    from textguide.logits_processors.vllm_plugin.metrics import GuidanceMetrics

    if not hasattr(engine, "figures"):
        engine.figures = CollectorRegistry()
        engine.logger_manager.stat_loggers.insert(0, GuidanceMetrics(registry=engine.figures))
    names = {
        "vllm:num_preemptions": "preemptions",
        "vllm:kv_cache_usage_perc": "cache_in_use",
        "vllm:generation_tokens": "tokens",
    }
    values = dict.fromkeys(names.values(), 0.0)
    for metric in get_metrics_snapshot():
        if metric.name in names:
            values[names[metric.name]] += metric.value
    samples = [sample for metric in engine.figures.collect() for sample in metric.samples]
    ours = sum(sample.value for sample in samples if sample.name == "textguide:branch_tokens_total")
    return {**values, "engines_branch_tokens": ours}


if __name__ == "__main__":
    main()
