"""Does the cost model predict guided throughput? Plain requests calibrate it, guided requests are held against it.

One vLLM engine; requests of several numbers of clients, plain and with one and two branch requests, take turns::

    python scripts/bench/cost_model.py --json docs/results/serving/cost-model.json

Nothing that is guided goes into the calibration, but for the time that the logits processor takes on tensors of the
engine's vocabulary, which is measured without an engine. With ``--time processor`` (the default) seconds are those of
this process on one thread, which other work on the machine disturbs less than the wall's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

TEXT = "The dragon flew over Paris, France, and landed on the roof of the old opera house. Number {} looked up, and"
AWAY = ("The weather report for today:", "A list of things to buy at the market on Saturday morning:")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32], help="of guided requests [8 32]")
    parser.add_argument("--plain", type=int, nargs="+", default=[4, 8, 32, 64], help="clients that calibrate")
    parser.add_argument("--places", type=int, default=96, help="max_num_seqs [%(default)s]")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--graphs", action="store_true", help="let vLLM compile and capture its passes")
    parser.add_argument("--time", choices=("processor", "wall"), default="processor")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = measure(arguments)
    show(report)
    if arguments.json:
        from textguide.support.files import write_json

        write_json(arguments.json, report)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads in turns, then predictions."""
    import torch
    import vllm

    import textguide
    from textguide.batch.cost_model import Engine, Load, Measured, predict

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    llm = textguide.vllm_engine(
        arguments.model, dtype=arguments.dtype, enforce_eager=not arguments.graphs, max_model_len=256,
        max_num_seqs=arguments.places, max_num_batched_tokens=4096, enable_prefix_caching=False, seed=0,
    )  # fmt: skip
    tokenizer = llm.get_tokenizer()
    length = len(tokenizer(TEXT.format(10)).input_ids)
    away = tuple(len(tokenizer(text).input_ids) for text in AWAY)
    plain = [Load(clients, length, arguments.tokens) for clients in arguments.plain]
    plain.append(Load(8, 5 * length, arguments.tokens))  # tells reading from writing
    guided = [
        Load(clients, length, arguments.tokens, away[:branches]) for clients in arguments.clients for branches in (1, 2)
    ]
    clock = time.process_time if arguments.time == "processor" else time.perf_counter
    rates: dict[Load, list[float]] = {load: [] for load in (*plain, *guided)}
    for round_ in range(arguments.rounds + 1):  # the first one warms up
        for load, found in rates.items():
            params = llm.sampling_params(
                max_tokens=arguments.tokens, temperature=0.0, ignore_eos=True, extra_args=extra(len(load.branches))
            )
            times = load.prompt // length
            prompts = [" ".join([TEXT.format(10 + n)] * times) for n in range(load.clients)]
            begun = clock()
            llm.generate(prompts, params, use_tqdm=False)
            if round_:
                found.append(load.clients * load.new / (clock() - begun))
    llm.llm_engine.engine_core.shutdown()
    size = len(tokenizer)
    measured = [Measured(load, statistics.median(rates[load])) for load in plain]
    rows = []
    for load in (*plain, *guided):
        rule = rule_seconds(load, size, clock)
        engine = Engine.of(measured, combine=rule, places=arguments.places)
        said, found = predict(engine, load), statistics.median(rates[load])
        without = predict(Engine.of(measured, places=arguments.places), load).tokens_a_second
        rows.append(
            {
                "clients": load.clients, "prompt": load.prompt, "branches": len(load.branches), "rows": said.rows,
                "measured": found, "smallest": min(rates[load]), "largest": max(rates[load]),
                "predicted": said.tokens_a_second, "off": said.tokens_a_second / found - 1,
                "rule": rule, "off without the rule": without / found - 1,
            }
        )  # fmt: skip
    engine = Engine.of(measured, places=arguments.places)
    return {
        "settings": {name: str(value) for name, value in vars(arguments).items() if name != "json"},
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
        "processor": f"{os.cpu_count()} CPU cores, {os.environ['OMP_NUM_THREADS']} thread",
        "engine": {"fixed": engine.fixed, "row": engine.row, "token": engine.token},
        "rows": rows,
    }


def guidance(branches: int) -> Any:
    """A guidance with so many branch requests, one or two."""
    from textguide.guidance import CFG, Formula

    if branches == 1:
        return CFG(1.5, AWAY[0])
    return Formula(f"1.5*cond - 0.25*P({AWAY[0]!r}) - 0.25*P({AWAY[1]!r})")


def extra(branches: int) -> dict[str, Any] | None:
    """``extra_args`` of a request with so many branch requests."""
    return {"guidance": guidance(branches).to_json()} if branches else None


def rule_seconds(load: Any, vocabulary: int, clock: Any) -> float:
    """Seconds a step that the logits processor takes for each group of ``load``, on tensors alone."""
    import torch

    from textguide.logits_processors.vllm_plugin.batch_rows import GroupRows, Member
    from textguide.logits_processors.vllm_plugin.combination import GuidedRow, guide
    from textguide.logits_processors.vllm_plugin.requests import MAIN, Request

    if not load.branches:
        return 0.0
    readings = tuple((place, "") for place in range(1, load.rows))
    asked = Request(guidance(len(load.branches)), ((1,),) * len(load.branches), readings, horizon=load.new)
    groups = [
        GroupRows(n * load.rows, tuple(range(n * load.rows + 1, (n + 1) * load.rows)), Member(str(n), MAIN, drawing))
        for n in range(load.clients)
        for drawing in [GuidedRow(asked, list, list)]
    ]
    logits = torch.randn(load.clients * load.rows, vocabulary)
    times = []
    for _ in range(7):
        begun = clock()
        guide(logits, groups, [0] * load.clients)
        times.append(clock() - begun)
    return statistics.median(times[2:]) / load.clients


def show(report: dict[str, Any]) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("clients", "prompt", "branches", "rows a step", "measured, tokens/s", "predicted", "off")
    for row in report["rows"]:
        cells = [str(row[name]) for name in ("clients", "prompt", "branches", "rows")]
        cells.append(f"{row['measured']:.1f} ({row['smallest']:.1f}–{row['largest']:.1f})")
        table.add_row(*cells, f"{row['predicted']:.1f}", f"{row['off']:+.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
