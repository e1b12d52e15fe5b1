"""Does the guided scheduler ever let a wrong token through? Random steps without a model, in every way of stepping.

Requests of random kinds arrive, are aborted and preempted. Every answer is compared with the plainest loop, token for
token, with its log-probabilities and its report (``tests/vllm/simulation.py``). A run continues after the rows that its
file has::

    python scripts/bench/scheduler_steps.py --seeds 20 --steps 10000 --json docs/results/serving/scheduler-steps.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import timing

from textguide.models import bundled

os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
sys.path.insert(0, str(Path(__file__).parents[2]))
COUNTED = ("steps", "requests", "answered", "tokens", "preempted", "discarded")


def main() -> None:
    from tests.vllm.simulation import WAYS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="of each seed, over all settings of the engine")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--count", type=int, default=10_000, help="pairs of way and seed, in this run")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--json", "--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows = earlier_rows(arguments.json, arguments.steps)
    known = {(row["way"], row["seed"]) for row in rows}
    pairs = [(way, seed) for seed in range(arguments.seeds) for way in arguments.ways if (way, seed) not in known]
    folder = str(bundled.folder())  # looked up once, because that reads the model's file
    for way, seed in pairs[: arguments.count]:
        rows.append(row_of(folder, way, seed, arguments.steps))
        timing.write(arguments.json, {"steps": arguments.steps, "rows": rows})
    timing.show(summary(rows), {name: f"{{{name}}}" for name in ("way", "seeds", *COUNTED, "wrong")})
    raise SystemExit(any(row["wrong"] for row in rows))


def earlier_rows(path: Path | None, steps: int) -> list[dict[str, Any]]:
    """The rows of an earlier run with as many steps."""
    if path is None or not path.is_file():
        return []
    report = json.loads(path.read_text())
    return report["rows"] if report["steps"] == steps else []


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sums of all seeds for each way of stepping."""
    sums = []
    for way in dict.fromkeys(row["way"] for row in rows):
        same = [row for row in rows if row["way"] == way]
        counts = {name: sum(row[name] for row in same) for name in COUNTED}
        sums.append({"way": way, "seeds": len(same), **counts, "wrong": sum(len(row["wrong"]) for row in same)})
    return sums


def row_of(folder: str, way: str, seed: int, steps: int) -> dict[str, Any]:
    """All settings of the engine with one seed; ``folder`` has a model's configuration."""
    from tests.vllm.simulation import SETTINGS, WAYS, Simulation

    row: dict[str, Any] = {"way": way, "seed": seed, **dict.fromkeys(COUNTED, 0), "wrong": []}
    start = time.perf_counter()
    for name, settings in SETTINGS.items():
        simulation = Simulation(folder, **settings, **WAYS[way], seed=seed)
        try:
            simulation.run(steps=steps // len(SETTINGS))
        except AssertionError as error:
            row["wrong"].append(f"{name}: {error}")
        for key in COUNTED:
            row[key] += getattr(simulation, key)
        simulation.scheduler.shutdown()
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    main()
