"""Seconds to read prompts with worked examples in front, with the examples read once and with each prompt.

Both ways alternate in one run, each time up to the first guided token; medians, a table and JSON::

    python scripts/bench/shared_beginning.py --data DATA --json docs/results/shared-beginning.json

``DATA`` holds ``gsm8k/test.jsonl``; the examples are those of lm-eval's task.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.table import Table
from timing import machine, seconds

import textguide
from textguide import CFG
from textguide.forward import prefill
from textguide.support.files import write_json
from textguide.tasks.gsm8k import exemplars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = textguide.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    lines = (arguments.data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[: arguments.prompts]
    questions = [f"Q: {json.loads(line)['question']}\nA:" for line in lines]
    shown = Table("examples", "tokens in common", "each prompt, s", "once, s", "times as fast")
    rows = []
    for shots in arguments.shots:
        examples = "".join(f"Q: {one['question']}\nA: {one['target']}\n\n" for one in exemplars()[:shots])
        prompts = [examples + question for question in questions]

        def read(prompts: list[str] = prompts) -> None:
            textguide.generate(model, tokenizer, prompts, CFG(1.5), max_new_tokens=1)

        found: dict[str, list[float]] = {"each prompt": [], "once": []}
        read()
        for _ in range(arguments.repeats):
            found["once"].append(seconds(read, model.device))
            with mock.patch.object(prefill, "LEAST_SAVED", float("inf")):
                found["each prompt"].append(seconds(read, model.device))
        apart, once = (statistics.median(found[way]) for way in ("each prompt", "once"))
        common = len(tokenizer(examples).input_ids)
        shown.add_row(str(shots), str(common), f"{apart:.2f}", f"{once:.2f}", f"{apart / once:.2f}")
        rows.append({"examples": shots, "tokens in common": common, "seconds": found})
    Console().print(shown)
    if arguments.json:
        about = {"model": Path(arguments.model).stem, "prompts": arguments.prompts}
        write_json(arguments.json, {**about, "machine": machine(model), "rows": rows})


if __name__ == "__main__":
    main()
