"""Does the guided scheduler ever let a wrong token through? Random steps without a model, in every way of stepping.

Requests of random kinds come, are aborted and preempted; every answer is compared with the plainest loop, token for
token, with its log-probabilities and its report (``tests/vllm/simulation.py``). A run goes on where the file ends::

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

os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
sys.path.insert(0, str(Path(__file__).parents[2]))
COUNTED = ("steps", "requests", "answered", "tokens", "preempted", "discarded")


def main() -> None:
    from tests.vllm.simulation import WAYS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="of each seed, over all settings of the engine")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--count", type=int, default=10_000, help="of pairs of way and seed, in this run")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    from textguide.models import bundled
    from textguide.support.files import write_json

    logging.disable(logging.CRITICAL)
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.is_file():
        found = json.loads(arguments.json.read_text())
        rows = found["rows"] if found["steps"] == arguments.steps else []
    known = {(row["way"], row["seed"]) for row in rows}
    pairs = [(way, seed) for seed in range(arguments.seeds) for way in arguments.ways if (way, seed) not in known]
    folder = str(bundled.folder())  # whose files are read through each time
    for way, seed in pairs[: arguments.count]:
        rows.append(row_of(folder, way, seed, arguments.steps))
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.json, {"steps": arguments.steps, "rows": rows})
    table = Table("way", "seeds", "steps", "requests", "answers", "tokens", "preempted", "thrown away", "wrong")
    for way in dict.fromkeys(row["way"] for row in rows):
        same = [row for row in rows if row["way"] == way]
        sums = [str(sum(row[key] for row in same)) for key in COUNTED]
        table.add_row(way, str(len(same)), *sums, str(sum(len(row["wrong"]) for row in same)))
    Console(width=120).print(table)
    raise SystemExit(any(row["wrong"] for row in rows))


def row_of(folder: str, way: str, seed: int, steps: int) -> dict[str, Any]:
    """All settings of the engine, with one seed; ``folder`` has a model's configuration."""
    from tests.vllm.simulation import SETTINGS, WAYS, Simulation

    row: dict[str, Any] = {"way": way, "seed": seed, **dict.fromkeys(COUNTED, 0), "wrong": []}
    begin = time.perf_counter()
    for name, settings in SETTINGS.items():
        simulation = Simulation(folder, **settings, **WAYS[way], seed=seed)
        try:
            simulation.run(steps=steps // len(SETTINGS))
        except AssertionError as error:
            row["wrong"].append(f"{name}: {error}")
        for key in COUNTED:
            row[key] += getattr(simulation, key)
        simulation.scheduler.shutdown()
    return {**row, "seconds": round(time.perf_counter() - begin, 1)}


if __name__ == "__main__":
    main()
