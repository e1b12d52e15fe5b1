"""Constrained sampling beside genlm-control, and beside plain decoding, in one run.

The peer runs in an environment of its own, alternately with this one, on the same model, prompts and Python functions::

    python -m venv peer && peer/bin/pip install genlm-control==0.4.1
    python scripts/bench/constrained.py --peer-python peer/bin/python --json docs/results/constrained.json

Calls are questions to the Python function. Those that the peer asks at the limit of tokens, where it forces the end and
asks about its whole vocabulary, are left out of its column for the easy constraint, which has texts of no natural end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from constrained_peer import PREDICATES
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import machine, resident

import textguide
from textguide import AWRS
from textguide.constraints import Predicate, Regex, Vocabulary
from textguide.smc.trie import Trie
from textguide.support.errors import NoParticleLeftWarning

DATES: dict[str, Any] = {
    "asked for": [
        {
            "role": "user",
            "content": "On which date did people first land on the moon? Answer with the date alone, as YYYY-MM-DD.",
        }
    ],
    "hinted": "The moon landing took place on (YYYY-MM-DD): ",
    "unlikely": "Date of birth: ",
}
EASY = "The dragon flew over Paris and"
LONG = r"[A-Za-z ,.'\n]{400,900}"
"""Letters and marks, too many for the limit, so that every row writes to it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--peer-python", type=Path, help="python of an environment with genlm-control; none: ours alone"
    )
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--limit", type=int, default=14, help="tokens a text")
    parser.add_argument("--new", type=int, default=32, help="tokens a text beside plain decoding")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore", NoParticleLeftWarning)
    model, tokenizer = textguide.load(arguments.model)
    built = building(model, tokenizer)
    peer = Peer(arguments.peer_python, model, arguments.threads) if arguments.peer_python else None
    rows = compare(model, tokenizer, peer, arguments)
    if peer is not None:
        peer.close()
    masked = beside_plain(model, tokenizer, arguments)
    report = {
        "machine": machine(model),
        "peer": None if peer is None else peer.hello,
        "settings": {k: str(v) for k, v in vars(arguments).items() if k not in ("peer_python", "json")},
        "build": built,
        "rows": rows,
        "known mask": masked,
    }
    show(rows, masked, built)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


class Peer:
    """genlm-control in a process of its own, asked over pipes."""

    def __init__(self, python: Path, model: Any, threads: int) -> None:
        script = Path(__file__).with_name("constrained_peer.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [str(python), str(script), model.config._name_or_path, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.hello = self._read()

    def run(self, **request: Any) -> dict[str, Any]:
        """One run."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the peer ended; is genlm-control installed in its environment?")
        answer: dict[str, Any] = json.loads(line)
        return answer


def compare(model: Any, tokenizer: Any, peer: Peer | None, arguments: Any) -> list[dict[str, Any]]:
    """Both samplers on the same prompts and functions, alternating."""
    cases = [("date", name, prompt, count) for name, prompt in DATES.items() for count in arguments.particles]
    cases += [("easy", "continued", EASY, count) for count in arguments.particles]
    ours(model, tokenizer, "date", encode(tokenizer, DATES["hinted"]), 2, arguments.limit, 0)
    if peer is not None:
        ids = encode(tokenizer, DATES["hinted"])
        peer.run(predicate="date", prompt=ids, particles=2, limit=arguments.limit, seed=0)
    result = []
    for predicate, name, prompt, count in track(cases, description="beside the peer", transient=True):
        ids = encode(tokenizer, prompt)
        runs: dict[str, list[dict[str, Any]]] = {"textguide": [], "genlm-control": []}
        for seed in range(arguments.repeats):
            runs["textguide"].append(ours(model, tokenizer, predicate, ids, count, arguments.limit, seed))
            if peer is not None:
                runs["genlm-control"].append(
                    peer.run(predicate=predicate, prompt=ids, particles=count, limit=arguments.limit, seed=seed)
                )
        for who, found in runs.items():
            if found:
                result.append(
                    {"constraint": predicate, "prompt": name, "particles": count, "who": who, **median(found)}
                )
    return result


def ours(model: Any, tokenizer: Any, name: str, ids: list[int], count: int, limit: int, seed: int) -> dict[str, Any]:
    prefix_fn, complete_fn = PREDICATES[name]
    constraint = Predicate(decoded(prefix_fn), decoded(complete_fn), on="bytes")
    start = time.perf_counter()
    out = textguide.generate(
        model, tokenizer, [ids], AWRS(constraint, particles=count), max_new_tokens=limit, seed=seed
    )
    seconds = time.perf_counter() - start
    lengths = [len(tokens) for tokens in out.new_tokens]
    assert out.finished is not None
    assert out.log_evidence is not None
    return {
        "seconds": seconds, "steps": max(lengths), "tokens": sum(lengths), "calls": out.constraint_calls,
        "calls_at_the_limit": 0, "finished": int(out.finished.sum()), "log_evidence": float(out.log_evidence[0]),
    }  # fmt: skip


def decoded(function: Any) -> Any:
    """The function on bytes; False where they are no text, as the peer's side has it."""

    def on_bytes(text: bytes) -> bool:
        try:
            return bool(function(text.decode()))
        except UnicodeDecodeError:
            return False

    return on_bytes


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds."""
    calls = [run["calls"] - run["calls_at_the_limit"] for run in runs]
    return {
        "step_ms": 1e3 * statistics.median(run["seconds"] / run["steps"] for run in runs),
        "calls_a_step": statistics.median(c / run["steps"] for c, run in zip(calls, runs, strict=True)),
        "calls_a_token": statistics.median(c / run["tokens"] for c, run in zip(calls, runs, strict=True)),
        "calls_at_the_limit": statistics.median(run["calls_at_the_limit"] for run in runs),
        "finished": [run["finished"] for run in runs],
        "log_evidence": [run["log_evidence"] for run in runs],
    }


def beside_plain(model: Any, tokenizer: Any, arguments: Any) -> list[dict[str, Any]]:
    """Particles under a known mask and plain decoding of as many rows, alternating."""
    ids = encode(tokenizer, EASY)
    new = arguments.new
    result = []
    for count in arguments.particles:

        def plain(count: int = count) -> float:
            start = time.perf_counter()
            textguide.generate(
                model, tokenizer, [ids], max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0,
                num_return_sequences=count, seed=0,
            )  # fmt: skip
            return (time.perf_counter() - start) / new

        def constrained(count: int = count) -> float:
            start = time.perf_counter()
            out = textguide.generate(
                model, tokenizer, [ids], AWRS(Regex(LONG), particles=count), max_new_tokens=new, seed=0
            )
            assert max(map(len, out.new_tokens)) >= new - 1
            return (time.perf_counter() - start) / new

        plain(), constrained()
        pairs = [(plain(), constrained()) for _ in range(arguments.repeats + 2)]
        result.append({
            "particles": count,
            "plain_ms": 1e3 * statistics.median(p for p, _ in pairs),
            "step_ms": 1e3 * statistics.median(c for _, c in pairs),
            "ratio": statistics.median(c / p for p, c in pairs),
        })  # fmt: skip
    return result


def building(model: Any, tokenizer: Any) -> dict[str, float]:
    """Seconds and megabytes to make what a run needs, once for a tokenizer or a pattern."""
    figures = {}
    before, start = resident(), time.perf_counter()
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size, [tokenizer.eos_token_id])
    figures["vocabulary_s"] = time.perf_counter() - start
    start = time.perf_counter()
    Trie(vocabulary)
    figures["trie_s"] = time.perf_counter() - start
    figures["vocabulary_and_trie_mb"] = (resident() - before) / 1e6
    before, start = resident(), time.perf_counter()
    Regex(LONG).start(vocabulary)
    figures["regex_s"] = time.perf_counter() - start
    figures["regex_mb"] = (resident() - before) / 1e6
    return figures


def encode(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of a text or a chat."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt).input_ids)
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def show(rows: list[dict[str, Any]], masked: list[dict[str, Any]], built: dict[str, float]) -> None:
    """Print the tables."""
    console = Console(width=120)
    table = Table(title="medians over seeds")
    for column in ("constraint", "prompt", "particles", "who", "ms a step", "calls a step", "calls a token"):
        table.add_column(column, justify="right" if column in ("particles",) or " a " in column else "left")
    for row in rows:
        table.add_row(
            row["constraint"], row["prompt"], str(row["particles"]), row["who"], f"{row['step_ms']:.0f}",
            f"{row['calls_a_step']:.1f}", f"{row['calls_a_token']:.2f}",
        )  # fmt: skip
    console.print(table)
    for row in masked:
        console.print(
            f"known mask, {row['particles']} particles: {row['step_ms']:.1f} ms a step, plain decoding of as many rows "
            f"{row['plain_ms']:.1f}: {row['ratio']:.2f}×"
        )
    console.print("building: " + ", ".join(f"{name} {value:.3g}" for name, value in built.items()))


if __name__ == "__main__":
    main()
