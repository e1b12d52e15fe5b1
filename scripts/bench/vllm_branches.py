"""Tokens per second of a guided vLLM engine, by the number of branch requests for each request.

The same requests, plain and with formulas over one to four prompts, take turns in one engine::

    python scripts/bench/vllm_branches.py --json docs/results/serving/branches.json
"""

from __future__ import annotations

import os
import statistics
from functools import partial
from types import SimpleNamespace

import timing
import torch
from serving_mix import STARTS

import textguide
from textguide.guidance import CFG, Formula

# vLLM reads its environment when it is imported, so main() imports it.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

NEGATIVES = ("A list:", "The weather report for today:", "Dear Sir or Madam,", "def main():")


def guidance(branches: int) -> str | None:
    """A guidance with so many branch requests, as JSON; None for none."""
    if branches == 0:
        return None
    if branches == 1:
        return CFG(1.5, NEGATIVES[0]).to_json()
    away = "".join(f" - {0.5 / branches}*P({text!r})" for text in NEGATIVES[:branches])
    return Formula(f"1.5*cond{away}").to_json()


def main() -> None:
    parser = timing.parser(__doc__, model=None, repeats=5)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--places", type=int, default=40, help="max_num_seqs: all requests run together [%(default)s]")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--graphs", action="store_true", help="let vLLM compile and capture its passes")
    arguments = parser.parse_args()
    import vllm

    llm = textguide.vllm_engine(
        arguments.model,
        dtype=arguments.dtype,
        enforce_eager=not arguments.graphs,
        max_model_len=128,
        max_num_seqs=arguments.places,
        seed=0,
    )
    prompts = [STARTS[n % len(STARTS)] for n in range(arguments.requests)]
    contestants = {}
    for branches in range(len(NEGATIVES) + 1):
        extra = {"guidance": guidance(branches)} if branches else None
        params = llm.sampling_params(max_tokens=arguments.tokens, temperature=0.0, ignore_eos=True, extra_args=extra)
        contestants[branches] = partial(llm.generate, prompts, params, use_tqdm=False)
    times = timing.compare(contestants, arguments.repeats)
    llm.llm_engine.engine_core.shutdown()
    rows = []
    for branches, one in times.items():
        speeds = [arguments.requests * arguments.tokens / seconds for seconds in one.seconds]
        row = {"branches": branches, "median": statistics.median(speeds), "smallest": min(speeds)}
        rows.append({**row, "largest": max(speeds), "of_plain": times[0].ratio(one)})
    columns = {
        "branch requests": "{branches}",
        "tokens per second, median": "{median:.0f}",
        "smallest": "{smallest:.0f}",
        "largest": "{largest:.0f}",
        "of plain in the same round": "{of_plain:.2f}",
    }
    timing.show(rows, columns)
    settings = {name: getattr(arguments, name) for name in ("model", "requests", "tokens")}
    settings |= {"rounds": arguments.repeats, "vllm": vllm.__version__}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = timing.machine(SimpleNamespace(device=device, dtype=arguments.dtype))
    timing.write(arguments.json, {**settings, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
