"""``textguide batch`` on many rows, killed in the middle: does it lose or repeat rows, and how fast is it?

::

    python scripts/bench/batch.py --rows 10000 --replicas 2 --json docs/results/serving/batch.json

The run is killed (SIGKILL) when ``--kill-at`` of its shards are written, and started again. Then every row is counted,
a few shards are made again in this process, without Ray and without a kill, and compared byte by byte, and some rows
are compared with ``textguide.generate`` of their prompt alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing
import torch

import textguide
from textguide import CFG

WHO = ["The dragon", "My grandmother", "A baker", "The captain", "Nobody", "The old teacher", "A child", "The river"]
DOES = ["flew over", "looked at", "could not find", "remembered", "walked through", "sang about", "painted", "lost"]
WHAT = ["the city of Paris", "a small garden", "the letter", "an island", "the long winter", "a broken clock"]
AWAY = ["The weather report for today:", "A list of numbers:", None, None]
ENGINE = {"max_model_len": 64, "enforce_eager": True, "max_num_seqs": 64}
SETTINGS = ("model", "backend", "rows", "rows_per_shard", "replicas", "batch_size", "tokens", "kill_at")
BROKEN = 100
"""Every so many rows, one is broken."""


def main() -> None:
    parser = timing.parser(__doc__, model=None)
    parser.add_argument("--model", default="smollm2-small")
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--rows-per-shard", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--kill-at", type=float, default=0.5, help="share of the shards [%(default)g]")
    parser.add_argument("--compared", type=int, default=2, help="shards made again [%(default)s]")
    arguments = parser.parse_args()
    import ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(arguments.rows)))
        report = {
            "settings": {name: getattr(arguments, name) for name in SETTINGS},
            "versions": {"ray": ray.__version__, "torch": torch.__version__},
            "processor": f"{timing.machine()['cores']} CPU cores, {platform.machine()}",
            **run(arguments, folder),
            **compare(arguments, folder),
        }
    print(json.dumps(report, indent=1))
    timing.write(arguments.json, report)


def rows_of(count: int) -> list[dict[str, Any]]:
    """Short prompts, half of them with their own negative prompt, and one broken row in a hundred."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{draw.choice(WHO)} {draw.choice(DOES)} {draw.choice(WHAT)} {number} times, and"
        away = draw.choice(AWAY)
        row = {"prompt": prompt}
        if away is not None:
            row["away"] = away
        rows.append(row if is_good(number) else {"promt": prompt})
    return rows


def is_good(number: int) -> bool:
    """Whether a row is not one of the broken ones."""
    return number % BROKEN != BROKEN - 1


def command_of(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The command of the run."""
    options = {
        "--out": folder / "out",
        "--model": arguments.model,
        "--backend": arguments.backend,
        "--negative-prompt-column": "away",
        "--rows-per-shard": arguments.rows_per_shard,
        "--replicas": arguments.replicas,
        "--batch-size": arguments.batch_size,
        "--max-new-tokens": arguments.tokens,
        "--temperature": 1,
        "--seed": 1,
        "--dtype": "float32",
    }
    if arguments.backend == "vllm":
        options["--engine-args"] = ",".join(f"{name}={str(value).lower()}" for name, value in ENGINE.items())
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-W", "ignore", "-m", "textguide", "batch", str(folder / "rows.jsonl"), *words, "--json"]


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run, kill, and run again."""
    command = command_of(arguments, folder)
    out = folder / "out"
    first, killed = run_and_kill(arguments, command, folder)
    time.sleep(3)  # a write that was under way may still end
    before = written(out)
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    resumed = time.monotonic() - start
    after = written(out)
    summary = json.loads(done.stdout.splitlines()[-1])
    changed = sum(after.get(name) != modified for name, modified in before.items())
    return {
        "shards": {"all": len(after), "before the kill": len(before), "written twice": changed},
        "summary": {name: value for name, value in summary.items() if name != "folder"},
        "seconds": {
            "first shard": None if first is None else round(first, 1),
            "until the kill": round(killed, 1),
            "second run": round(resumed, 1),
        },
        "rows_a_second": round((len(after) - len(before)) * arguments.rows_per_shard / resumed, 1),
    }


def run_and_kill(arguments: argparse.Namespace, command: list[str], folder: Path) -> tuple[float | None, float]:
    """Seconds to the first shard (None if several came together) and to the kill."""
    log = folder / "log"
    start = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
    shards = -(-arguments.rows // arguments.rows_per_shard)
    first = None
    while True:
        count = len(written(folder / "out"))
        if count >= arguments.kill_at * shards:
            break
        if process.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"it ended with code {process.returncode} before it was killed: {tail}")
        if count and first is None:
            first = time.monotonic() - start
        time.sleep(0.05)
    process.kill()
    process.wait()
    return first, time.monotonic() - start


def written(out: Path) -> dict[str, int]:
    """The shards that are written, with the time of each."""
    return {file.name: file.stat().st_mtime_ns for file in out.glob("rows-*")}


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Count the rows, make shards again, and compare rows with ``textguide.generate``."""
    import pandas

    from textguide.batch import Columns, Settings
    from textguide.batch.inputs import scan
    from textguide.batch.replica import Replica

    torch.set_num_threads(1)  # as in replicas of one core; another number changes the last digits
    table = pandas.read_parquet(folder / "out").sort_values("row").reset_index(drop=True)
    load: dict[str, Any] = {"dtype": "float32", **(ENGINE if arguments.backend == "vllm" else {})}
    settings = Settings(
        "generate",
        arguments.model,
        CFG(1.5),
        arguments.backend,
        Columns(negative_prompt="away"),
        {"max_new_tokens": arguments.tokens, "temperature": 1.0, "stop": None},
        None,
        1,
        {},
        load,
        arguments.rows_per_shard,
    )
    inputs = scan(folder / "rows.jsonl", arguments.rows_per_shard)
    again = folder / "again"
    again.mkdir()
    shared = settings.sharing_memory(arguments.replicas)
    replica = Replica(shared, arguments.batch_size, again, settings.fingerprint(inputs))
    for span in random.Random(1).sample(inputs.spans, arguments.compared):
        replica.do(span)
    same = sum((folder / "out" / file.name).read_bytes() == file.read_bytes() for file in again.glob("rows-*"))

    drawn = random.Random(2).sample(range(arguments.rows), min(60, arguments.rows))
    chosen = [number for number in drawn if is_good(number)][:50]
    rows = rows_of(arguments.rows)
    equal = 0
    for number in chosen:
        row = rows[number]
        guidance = CFG(1.5, row.get("away"))
        options = {"max_new_tokens": arguments.tokens, "temperature": 1.0, "seed": 1 + number}
        out = textguide.generate(replica.model, replica.tokenizer, [row["prompt"]], guidance, **options)
        equal += out.texts[0] == table["text"][number]
    return {
        "rows": {
            "in order, each once": list(table["row"]) == list(range(arguments.rows)),
            "with an error": int(table["error"].notna().sum()),
            "broken": arguments.rows // BROKEN,
        },
        "shards made anew without Ray": {"compared": arguments.compared, "equal byte by byte": same},
        "rows alone by textguide.generate": {"compared": len(chosen), "equal": equal},
    }


if __name__ == "__main__":
    main()
