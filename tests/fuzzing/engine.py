"""The fuzzer of the engine: ``python -m tests.fuzzing.engine --cases 20000 --seed 0 --resume fuzz.jsonl``.

Each line of the log is a case with its outcome; a run that was stopped continues after its last line. A finding is made
smaller, and ``--replay LINE`` runs it again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from .cases import Case, draw, from_json, smaller
from .running import Outcome, run


def shrunk(case: Case, outcome: Outcome, tries: int = 60) -> tuple[Case, Outcome]:
    """The smallest case found that is a finding of the same sort."""
    found = True
    while found and tries > 0:
        found = False
        for candidate in smaller(case):
            tries -= 1
            again = run(candidate)
            if again.kind == "FINDING" and _sort(again) == _sort(outcome):
                case, outcome, found = candidate, again, True
                break
            if tries <= 0:
                break
    return case, outcome


def _sort(outcome: Outcome) -> str:
    return outcome.detail.split(":")[0].split("[")[0].split(" of row")[0].split(" row")[0]


def fuzz(cases: int, seed: int, log: Path | None = None, stop_at: int | None = None) -> Counter[str]:
    """Run the cases of ``seed`` that ``log`` does not have yet; return how often each outcome occurred.

    Args:
        stop_at: number of findings after which the run ends; None: never.
    """
    counts: Counter[str] = Counter()
    done = -1
    if log is not None and log.exists():
        for line in log.read_text().splitlines():
            record = json.loads(line)
            done = record["number"]
            counts[record["outcome"]] += 1
    begun = time.monotonic()
    for number in range(done + 1, cases):
        case = draw(number, seed)
        outcome = run(case)
        counts[outcome.kind] += 1
        record = {"number": number, "outcome": outcome.kind}
        if outcome.kind != "equal":
            record["detail"] = outcome.detail
        if outcome.kind == "FINDING":
            small, again = shrunk(case, outcome)
            record |= {"case": case.to_json(), "small": small.to_json(), "small_detail": again.detail}
            print(f"{number} {again.detail}\n  --replay '{small.to_json()}'", flush=True)
        if log is not None:
            with log.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
        if number % 500 == 499:
            print(f"{number + 1} cases, {time.monotonic() - begun:.0f} s, {dict(counts)}", flush=True)
        if stop_at is not None and counts["FINDING"] >= stop_at:
            break
    return counts


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="log, one JSON object per case")
    parser.add_argument("--replay", help="a case as JSON")
    parser.add_argument("--stop-at", type=int, help="number of findings after which the run ends")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.replay:
        outcome = run(from_json(arguments.replay))
        print(outcome.kind, outcome.detail)
        return int(outcome.kind == "FINDING")
    counts = fuzz(arguments.cases, arguments.seed, arguments.resume, arguments.stop_at)
    print(dict(counts))
    return int(counts["FINDING"] > 0)


if __name__ == "__main__":
    sys.exit(main())
