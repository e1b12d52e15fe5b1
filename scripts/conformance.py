"""Every class of transformers that writes text, under guidance, against the oracle; writes docs/models.md and the facts
that the package ships (textguide/forward/facts.json).

A tiny random model of each class is built from its configuration. What it is then held to is in
``tests/conformance/checks.py``. Each class runs in its own process, with a limit on its memory and time, and its
result is written immediately, so that ``--resume`` continues an interrupted run.

    python scripts/conformance.py                          # everything, then docs/models.md
    python scripts/conformance.py --only LlamaForCausalLM T5ForConditionalGeneration
    python scripts/conformance.py --family gemma3 mamba --check score
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
import warnings
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402

import textguide  # noqa: E402
from tests.conformance import facts, table  # noqa: E402
from tests.conformance.building import NotBuilt, build  # noqa: E402
from tests.conformance.checks import CHECKS, CannotRun, reference, run  # noqa: E402
from tests.conformance.classes import ModelClass, all_classes  # noqa: E402
from textguide.forward.facts import FILE as FACTS  # noqa: E402
from textguide.support.files import write_text  # noqa: E402

MEMORY = 4 << 30
"""Bytes that a class may use in addition to the memory of the imports."""


def examine(entry: ModelClass, checks: list[str], seed: int) -> dict[str, Any]:
    """The row of one class."""
    started = time.monotonic()
    row: dict[str, Any] = {**dataclasses.asdict(entry), "title": entry.title, "cells": {}}
    try:
        model = build(entry, seed)
        row["facts"] = facts.established(model)
        row["parameters"] = sum(p.numel() for p in model.parameters())
        oracle = reference(model)
    except NotBuilt as error:
        return {**row, "not_built": str(error)}
    except CannotRun as error:
        return {**row, "not_run": str(error)}
    except Exception as error:
        return {**row, "not_built": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    row["note"] = oracle.note
    for check in checks:
        row["cells"][check] = dataclasses.asdict(run(oracle, check))
    row["seconds"] = round(time.monotonic() - started, 1)
    return row


def child(sender: Connection, entry: ModelClass, checks: list[str], seed: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        sender.send(examine(entry, checks, seed))


class Running:
    """One class in its own process."""

    def __init__(self, entry: ModelClass, checks: list[str], seed: int) -> None:
        self.entry, self.started = entry, time.monotonic()
        self.receiver, sender = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.get_context("fork").Process(target=child, args=(sender, entry, checks, seed))
        self.process.start()
        sender.close()

    def result(self, limit: float) -> dict[str, Any] | None:
        """The row, or None if it is not there yet."""
        if self.receiver.poll():
            try:
                row: dict[str, Any] = self.receiver.recv()
            except EOFError:
                self.process.join()
                return self._failed(f"the process ended with {self.process.exitcode}")
            self.process.join()
            return row
        if time.monotonic() - self.started > limit:
            self.process.kill()
            self.process.join()
            return self._failed(f"no result within {limit:.0f} s")
        return None

    def _failed(self, why: str) -> dict[str, Any]:
        cells = {check: {"result": "error", "detail": why} for check in CHECKS}
        return {**dataclasses.asdict(self.entry), "title": self.entry.title, "cells": cells, "note": ""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these classes")
    parser.add_argument("--family", nargs="+", metavar="NAME", help="only these families")
    parser.add_argument("--check", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="only these checks")
    parser.add_argument("--json", type=Path, help="the results; default: docs/results/models.json for a whole run")
    parser.add_argument("--resume", action="store_true", help="keep what the results already hold")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (default: 1)")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one class may take (default: 1800)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    classes = all_classes()
    chosen = [one for one in classes if is_chosen(one, options)]
    if not chosen:
        parser.error("no class has that name; see --only and --family")
    whole = len(chosen) == len(classes) and len(options.check) == len(CHECKS)
    path = options.json or (ROOT / "docs" / "results" / "models.json" if whole else None)
    rows = examine_all(chosen, path, options)
    if whole and path is not None:
        write_text(FACTS, facts.text(list(rows.values())))
        page = ROOT / "docs" / "models.md"
        before = page.read_text(encoding="utf-8") if page.exists() else ""
        write_text(page, table.page(json.loads(path.read_text()), before))
    counts = table.counts(list(rows.values()))
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 1 if counts["wrong cells"] else 0


def is_chosen(entry: ModelClass, options: argparse.Namespace) -> bool:
    """Whether ``--only`` and ``--family`` leave a class in."""
    if options.only and entry.name not in options.only and entry.title not in options.only:
        return False
    return not options.family or entry.family in options.family


def examine_all(chosen: list[ModelClass], path: Path | None, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The rows of all classes by title, ``--jobs`` of them at a time; saved in ``path`` after each class."""
    rows: dict[str, dict[str, Any]] = {}
    if options.resume and path is not None and path.exists():
        rows = {row["title"]: row for row in json.loads(path.read_text())["models"]}
    waiting = [one for one in chosen if one.title not in rows]
    running: list[Running] = []
    while waiting or running:
        while waiting and len(running) < options.jobs:
            running.append(Running(waiting.pop(0), options.check, options.seed))
        wait([one.receiver for one in running], timeout=5)
        for one in list(running):
            row = one.result(options.limit)
            if row is None:
                continue
            running.remove(one)
            rows[row["title"]] = row
            print(table.line(row), flush=True)
            if path is not None:
                save(path, rows, options.seed)
    return rows


def save(path: Path, rows: dict[str, dict[str, Any]], seed: int) -> None:
    """The results so far."""
    report = {
        "versions": {
            "textguide": textguide.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seed": seed,
        "models": sorted(rows.values(), key=lambda row: (row["family"], row["title"])),
    }
    write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
