"""``textguide batch`` on many rows, killed in the middle: does it lose rows, does it do rows twice, how fast is it?

::

    python scripts/bench/batch.py --rows 10000 --replicas 2 --json docs/results/serving/batch.json

The run is killed (SIGKILL) when ``--kill-at`` of its shards are written, and started again. Then every row is counted,
a few shards are made anew in this process, without Ray and without a kill, and compared byte by byte, and some rows are
compared with ``textguide.generate`` of their prompt alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WHO = ["The dragon", "My grandmother", "A baker", "The captain", "Nobody", "The old teacher", "A child", "The river"]
DOES = ["flew over", "looked at", "could not find", "remembered", "walked through", "sang about", "painted", "lost"]
WHAT = ["the city of Paris", "a small garden", "the letter", "an island", "the long winter", "a broken clock"]
AWAY = ["The weather report for today:", "A list of numbers:", None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-small")
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--rows-per-shard", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--kill-at", type=float, default=0.5, help="share of the shards [%(default)g]")
    parser.add_argument("--compared", type=int, default=2, help="shards made anew [%(default)s]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    print(json.dumps(report, indent=1))
    if arguments.json is not None:
        from textguide.support.files import write_json

        write_json(arguments.json, report)


def rows(count: int) -> list[dict[str, Any]]:
    """Short prompts, half of them with a negative prompt of their own, and one row in a hundred that is broken."""
    draw = random.Random(0)
    found: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{draw.choice(WHO)} {draw.choice(DOES)} {draw.choice(WHAT)} {number} times, and"
        away = draw.choice(AWAY)
        row = {"prompt": prompt, **({} if away is None else {"away": away})}
        found.append({"promt": prompt} if number % 100 == 99 else row)
    return found


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill, go on, and compare."""
    source, out = folder / "rows.jsonl", folder / "out"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(arguments.rows)))
    shards = -(-arguments.rows // arguments.rows_per_shard)
    command = [
        sys.executable, "-W", "ignore", "-m", "textguide", "batch", str(source), "--out", str(out),
        "--model", arguments.model, "--backend", arguments.backend, "--negative-prompt-column", "away",
        "--rows-per-shard", str(arguments.rows_per_shard), "--replicas", str(arguments.replicas),
        "--batch-size", str(arguments.batch_size), "--max-new-tokens", str(arguments.tokens), "--temperature", "1",
        "--seed", "1", "--dtype", "float32", "--json",
    ]  # fmt: skip
    if arguments.backend == "vllm":
        command += ["--engine-args", ENGINE]
    begun = time.monotonic()
    said = folder / "said"
    with said.open("w") as stream:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
    first = None
    while (there := len(list(out.glob("rows-*")))) < arguments.kill_at * shards:
        if running.poll() is not None:
            tail = said.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"it ended with code {running.returncode} before it was killed: {tail}")
        if there and first is None:
            first = time.monotonic() - begun
        time.sleep(0.05)
    running.kill()
    running.wait()
    killed = time.monotonic() - begun
    time.sleep(3)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("rows-*")}
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    resumed = time.monotonic() - begun
    summary = json.loads(done.stdout.splitlines()[-1])
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("rows-*")}
    return {
        **about(arguments),
        "shards": {"all": len(after), "before the kill": len(before), "written twice": changed(before, after)},
        "summary": {name: value for name, value in summary.items() if name != "folder"},
        "seconds": {
            "first shard": None if first is None else round(first, 1),
            "until the kill": round(killed, 1),
            "second run": round(resumed, 1),
        },
        "rows_a_second": round((len(after) - len(before)) * arguments.rows_per_shard / resumed, 1),
        **compared(arguments, source, out),
    }


ENGINE = "max_model_len=64,enforce_eager=true,max_num_seqs=64"


def changed(before: dict[str, int], after: dict[str, int]) -> int:
    """Files that are not what they were."""
    return sum(after.get(name) != time for name, time in before.items())


def compared(arguments: argparse.Namespace, source: Path, out: Path) -> dict[str, Any]:
    """Rows counted; shards made anew; rows against ``textguide.generate``."""
    import pandas
    import torch

    import textguide
    from textguide import CFG
    from textguide.batch import Columns, Settings
    from textguide.batch.inputs import scan
    from textguide.batch.replica import Replica

    torch.set_num_threads(1)  # as replicas of one core have; another number gives other last digits
    table = pandas.read_parquet(out).sort_values("row").reset_index(drop=True)
    load: dict[str, Any] = {"dtype": "float32"}
    if arguments.backend == "vllm":
        load |= {"max_model_len": 64, "enforce_eager": True, "max_num_seqs": 64}
    settings = Settings(
        "generate", arguments.model, CFG(1.5), arguments.backend, Columns(negative_prompt="away"),
        {"max_new_tokens": arguments.tokens, "temperature": 1.0, "stop": None}, None, 1, {}, load,
        arguments.rows_per_shard,
    )  # fmt: skip
    inputs = scan(source, arguments.rows_per_shard)
    fingerprint = settings.fingerprint(inputs)
    anew = out.parent / "anew"
    anew.mkdir()
    replica = Replica(settings.sharing_memory(arguments.replicas), arguments.batch_size, anew, fingerprint)
    spans = random.Random(1).sample(inputs.spans, arguments.compared)
    for span in spans:
        replica.do(span)
    same = sum((out / file.name).read_bytes() == file.read_bytes() for file in anew.glob("rows-*"))
    equal = 0
    drawn = random.Random(2).sample(range(arguments.rows), min(60, arguments.rows))
    chosen = [row for row in drawn if row % 100 != 99][:50]
    given = rows(arguments.rows)
    for number in chosen:
        text = textguide.generate(
            replica.model, replica.tokenizer, [given[number]["prompt"]],
            CFG(1.5, given[number].get("away")), max_new_tokens=arguments.tokens, temperature=1.0, seed=1 + number,
        ).texts[0]  # fmt: skip
        equal += text == table["text"][number]
    return {
        "rows": {
            "in order, each once": list(table["row"]) == list(range(arguments.rows)),
            "with an error": int(table["error"].notna().sum()),
            "broken": arguments.rows // 100,
        },
        "shards made anew without Ray": {"compared": len(spans), "equal byte by byte": same},
        "rows alone by textguide.generate": {"compared": len(chosen), "equal": equal},
    }


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    import platform

    import psutil
    import ray
    import torch

    names = ("model", "backend", "rows", "rows_per_shard", "replicas", "batch_size", "tokens", "kill_at")
    return {
        "settings": {name: getattr(arguments, name) for name in names},
        "versions": {"ray": ray.__version__, "torch": torch.__version__},
        "processor": f"{psutil.cpu_count()} CPU cores, {platform.machine()}",
    }


if __name__ == "__main__":
    main()
