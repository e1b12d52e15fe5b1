"""How many tokens a second a guided vLLM engine writes, by the number of branch requests beside each request.

The same requests, plain and with formulas over one to four prompts, take turns in one engine::

    python scripts/bench/vllm_branches.py --json docs/results/serving/branches.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

NEGATIVES = ("A list:", "The weather report for today:", "Dear Sir or Madam,", "def main():")


def formula(branches: int) -> str | None:
    """A guidance with so many branch requests, as JSON; None for none."""
    from textguide.guidance import CFG, Formula

    if branches == 0:
        return None
    if branches == 1:
        return CFG(1.5, NEGATIVES[0]).to_json()
    away = "".join(f" - {0.5 / branches}*P({text!r})" for text in NEGATIVES[:branches])
    return Formula(f"1.5*cond{away}").to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--places", type=int, default=40, help="max_num_seqs: all requests run at once [40]")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--graphs", action="store_true", help="let vLLM compile and capture its passes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    import torch
    import vllm
    from rich.console import Console
    from rich.table import Table
    from serving_mix import STARTS
    from timing import machine

    import textguide
    from textguide.support.files import write_json

    llm = textguide.vllm_engine(
        arguments.model, dtype=arguments.dtype, enforce_eager=not arguments.graphs, max_model_len=128,
        max_num_seqs=arguments.places, seed=0,
    )  # fmt: skip
    prompts = [STARTS[n % len(STARTS)] for n in range(arguments.requests)]
    counts = range(len(NEGATIVES) + 1)
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    for round_ in range(arguments.rounds + 1):  # the first one warms up
        for count in counts:
            extra = {"guidance": formula(count)} if count else None
            params: Any = llm.sampling_params(
                max_tokens=arguments.tokens, temperature=0.0, ignore_eos=True, extra_args=extra
            )
            start = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            if round_:
                speeds[count].append(arguments.requests * arguments.tokens / (time.perf_counter() - start))
    llm.llm_engine.engine_core.shutdown()
    rows = []
    table = Table("branch requests", "tokens a second, median", "smallest", "largest", "of plain in the same round")
    for count, values in speeds.items():
        row = {"branches": count, "median": statistics.median(values), "smallest": min(values), "largest": max(values)}
        ratio = statistics.median(one / plain for one, plain in zip(values, speeds[0], strict=True))
        rows.append({**row, "of_plain": ratio})
        cells = [f"{row[name]:.0f}" for name in ("median", "smallest", "largest")]
        table.add_row(str(count), *cells, f"{ratio:.2f}")
    Console().print(table)
    if arguments.json:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        here = SimpleNamespace(device=SimpleNamespace(type=kind), dtype=arguments.dtype)
        settings = {name: getattr(arguments, name) for name in ("model", "requests", "tokens", "rounds")}
        write_json(arguments.json, {**settings, "vllm": vllm.__version__, "machine": machine(here), "rows": rows})


if __name__ == "__main__":
    main()
