"""Constrained sampling compared with genlm-control, and with plain decoding, in one run.

genlm-control runs in its own environment, in turns with textguide, on the same model, prompts and Python functions::

    python -m venv peer && peer/bin/pip install genlm-control==0.4.1
    python scripts/bench/constrained.py --peer-python peer/bin/python --json docs/results/constrained.json

Calls are calls of the Python function. At the limit of tokens, genlm-control forces the end and calls it for its whole
vocabulary. Those calls are left out of its column for the easy constraint, whose texts have no natural end.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
from constrained_peer import PREDICATES
from rich.console import Console

import textguide
from textguide import AWRS
from textguide.constraints import Predicate, Regex, Vocabulary
from textguide.smc.trie import Trie
from textguide.support.errors import NoParticleLeftWarning

DATE_CHAT = "On which date did people first land on the moon? Answer with the date alone, as YYYY-MM-DD."
DATES: dict[str, Any] = {
    "asked for": [{"role": "user", "content": DATE_CHAT}],
    "hinted": "The moon landing took place on (YYYY-MM-DD): ",
    "unlikely": "Date of birth: ",
}
EASY = "The dragon flew over Paris and"
LONG = r"[A-Za-z ,.'\n]{400,900}"
"""Letters and punctuation, too many for the limit, so that every row reaches it."""
TEXTGUIDE = "textguide"
PEER = "genlm-control"


def main() -> None:
    parser = timing.parser(__doc__, repeats=3)
    parser.add_argument("--peer-python", type=Path, help="python of an environment with genlm-control [none]")
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--limit", type=int, default=14, help="tokens per text")
    parser.add_argument("--new", type=int, default=32, help="tokens per text, against plain decoding")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", NoParticleLeftWarning)
    model, tokenizer = timing.load(arguments)
    build = building(model, tokenizer)
    peer = Peer(arguments.peer_python, model) if arguments.peer_python else None
    rows = against_peer(model, tokenizer, peer, arguments)
    if peer is not None:
        peer.close()
    masked = against_plain(model, tokenizer, arguments)
    columns = {
        "constraint": "{constraint}",
        "prompt": "{prompt}",
        "particles": "{particles}",
        "who": "{who}",
        "ms per step": "{step_ms:.0f}",
        "calls per step": "{calls_a_step:.1f}",
        "calls per token": "{calls_a_token:.2f}",
    }
    timing.show(rows, columns, "medians over seeds")
    columns = {"particles": "{particles}", "step ms": "{step_ms:.1f}", "plain": "{plain_ms:.1f}", "×": "{ratio:.2f}"}
    timing.show(masked, columns, "known mask, against plain decoding of as many rows")
    Console().print("building: " + ", ".join(f"{name} {value:.3g}" for name, value in build.items()))
    peer_versions = None if peer is None else peer.versions
    timing.finish(arguments, model, peer=peer_versions, build=build, rows=rows, **{"known mask": masked})


class Peer:
    """genlm-control in its own process, called over pipes."""

    def __init__(self, python: Path, model: Any) -> None:
        script = Path(__file__).with_name("constrained_peer.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [str(python), str(script), model.config._name_or_path, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.versions = self._read()

    def run(self, **request: Any) -> dict[str, Any]:
        """Run one request and return the figures of it."""
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


def against_peer(model: Any, tokenizer: Any, peer: Peer | None, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both samplers on the same prompts and functions."""
    cases = [("date", name, prompt, count) for name, prompt in DATES.items() for count in arguments.particles]
    cases += [("easy", "continued", EASY, count) for count in arguments.particles]
    rows = []
    for number, (predicate, name, prompt, count) in enumerate(cases):
        request = {"predicate": predicate, "prompt": encode(tokenizer, prompt), "limit": arguments.limit}
        calls: dict[tuple[str, int], Callable[[], dict[str, Any]]] = {}
        for seed in range(arguments.repeats):
            calls[TEXTGUIDE, seed] = partial(ours, model, tokenizer, **request, particles=count, seed=seed)
            if peer is not None:
                calls[PEER, seed] = partial(peer.run, **request, particles=count, seed=seed)
        # Seeds differ, so each call runs once; the first case warms up both processes.
        times = timing.compare(calls, 1, model.device, warmup=int(number == 0), title=f"{predicate}, {name}")
        for who in dict.fromkeys(who for who, _ in calls):
            runs = [one.results[0] for (other, _), one in times.items() if other == who]
            rows.append({"constraint": predicate, "prompt": name, "particles": count, "who": who, **medians(runs)})
    return rows


def ours(
    model: Any, tokenizer: Any, predicate: str, prompt: list[int], limit: int, particles: int, seed: int
) -> dict[str, Any]:
    """One run of AWRS under a Python function."""
    is_prefix, is_complete = PREDICATES[predicate]
    constraint = Predicate(on_bytes(is_prefix), on_bytes(is_complete), on="bytes")
    guidance = AWRS(constraint, particles=particles)
    start = time.perf_counter()
    out = textguide.generate(model, tokenizer, [prompt], guidance, max_new_tokens=limit, seed=seed)
    seconds = time.perf_counter() - start
    lengths = [len(tokens) for tokens in out.new_tokens]
    assert out.finished is not None
    assert out.log_evidence is not None
    return {
        "seconds": seconds,
        "steps": max(lengths),
        "tokens": sum(lengths),
        "calls": out.constraint_calls,
        "calls_at_the_limit": 0,
        "finished": int(out.finished.sum()),
        "log_evidence": float(out.log_evidence[0]),
    }


def on_bytes(function: Callable[[str], bool]) -> Callable[[bytes], bool]:
    """The function on bytes; False for bytes that are not a text, as on the peer's side."""

    def decoded(text: bytes) -> bool:
        try:
            return bool(function(text.decode()))
        except UnicodeDecodeError:
            return False

    return decoded


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds."""
    calls = [run["calls"] - run["calls_at_the_limit"] for run in runs]
    steps = [run["steps"] for run in runs]
    return {
        "step_ms": 1e3 * timing.ratio([run["seconds"] for run in runs], steps),
        "calls_a_step": timing.ratio(calls, steps),
        "calls_a_token": timing.ratio(calls, [run["tokens"] for run in runs]),
        "calls_at_the_limit": statistics.median(run["calls_at_the_limit"] for run in runs),
        "finished": [run["finished"] for run in runs],
        "log_evidence": [run["log_evidence"] for run in runs],
    }


def against_plain(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Particles under a known mask, and plain decoding of as many rows."""
    new = arguments.new
    generate = partial(textguide.generate, model, tokenizer, [encode(tokenizer, EASY)], max_new_tokens=new, seed=0)
    rows = []
    for count in arguments.particles:
        plain = partial(generate, min_new_tokens=new, do_sample=True, top_k=0, num_return_sequences=count)
        contestants = {
            "plain": plain,
            "constrained": partial(generate, guidance=AWRS(Regex(LONG), particles=count)),
        }
        times = timing.compare(contestants, arguments.repeats + 2, model.device, title="known mask")
        for out in times["constrained"].results:
            assert max(map(len, out.new_tokens)) >= new - 1
        rows.append(
            {
                "particles": count,
                "plain_ms": times["plain"].milliseconds / new,
                "step_ms": times["constrained"].milliseconds / new,
                "ratio": times["constrained"].ratio(times["plain"]),
            }
        )
    return rows


def building(model: Any, tokenizer: Any) -> dict[str, float]:
    """Seconds and megabytes to build what a run needs, once per tokenizer or pattern."""
    figures = {}
    before = timing.resident_bytes()
    start = time.perf_counter()
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size, [tokenizer.eos_token_id])
    figures["vocabulary_s"] = time.perf_counter() - start
    figures["trie_s"] = timing.seconds(partial(Trie, vocabulary))
    figures["vocabulary_and_trie_mb"] = (timing.resident_bytes() - before) / 1e6
    before = timing.resident_bytes()
    figures["regex_s"] = timing.seconds(partial(Regex(LONG).start, vocabulary))
    figures["regex_mb"] = (timing.resident_bytes() - before) / 1e6
    return figures


def encode(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of a text or a chat."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt).input_ids)
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


if __name__ == "__main__":
    main()
