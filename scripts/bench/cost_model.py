"""Does the cost model predict guided throughput? Plain requests calibrate it; guided requests test its predictions.

One vLLM engine; requests of several numbers of clients, plain and with one and two branch requests, take turns::

    python scripts/bench/cost_model.py --json docs/results/serving/cost-model.json

Nothing guided enters the calibration, except the time that the logits processor takes on tensors of the engine's
vocabulary, which is measured without an engine. ``--time processor`` (the default) counts seconds of this process on
one thread, which other work on the machine disturbs less than wall time.
"""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from typing import Any

import timing
import torch

import textguide
from textguide.batch.cost_model import Engine, Load, Measured, predict
from textguide.guidance import CFG, Formula

# vLLM reads its environment when it is imported, so main() imports it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

TEXT = "The dragon flew over Paris, France, and landed on the roof of the old opera house. Number {} looked up, and"
AWAY = ("The weather report for today:", "A list of things to buy at the market on Saturday morning:")
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


def main() -> None:
    parser = timing.parser(__doc__, model=None, repeats=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32], help="of guided requests [8 32]")
    parser.add_argument("--plain", type=int, nargs="+", default=[4, 8, 32, 64], help="clients that calibrate")
    parser.add_argument("--places", type=int, default=96, help="max_num_seqs [%(default)s]")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--graphs", action="store_true", help="let vLLM compile and capture its passes")
    parser.add_argument("--time", choices=list(CLOCKS), default="processor")
    parser.set_defaults(threads=int(os.environ["OMP_NUM_THREADS"]))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    import vllm

    llm = textguide.vllm_engine(
        arguments.model,
        dtype=arguments.dtype,
        enforce_eager=not arguments.graphs,
        max_model_len=256,
        max_num_seqs=arguments.places,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        seed=0,
    )
    tokenizer = llm.get_tokenizer()
    length = len(tokenizer(TEXT.format(10)).input_ids)
    away = tuple(len(tokenizer(text).input_ids) for text in AWAY)
    plain = [Load(clients, length, arguments.tokens) for clients in arguments.plain]
    plain.append(Load(8, 5 * length, arguments.tokens))  # long prompts separate the cost of reading from writing
    guided = []
    for clients in arguments.clients:
        for branches in (1, 2):
            guided.append(Load(clients, length, arguments.tokens, away[:branches]))
    times = timing.compare({load: contestant(llm, load, length) for load in (*plain, *guided)}, arguments.repeats)
    llm.llm_engine.engine_core.shutdown()

    rates = {}
    for load, one in times.items():
        seconds = one.processor_seconds if arguments.time == "processor" else one.seconds
        rates[load] = [load.clients * load.new / value for value in seconds]
    calibration = [Measured(load, statistics.median(rates[load])) for load in plain]
    rows = [
        row(load, values, calibration, arguments.places, rule_seconds(load, len(tokenizer), CLOCKS[arguments.time]))
        for load, values in rates.items()
    ]
    columns = {
        "clients": "{clients}",
        "prompt": "{prompt}",
        "branches": "{branches}",
        "rows per step": "{rows}",
        "measured, tokens/s": "{measured:.1f} ({smallest:.1f}–{largest:.1f})",
        "predicted": "{predicted:.1f}",
        "off": "{off:+.0%}",
    }
    timing.show(rows, columns)
    engine = Engine.of(calibration, places=arguments.places)
    report = {
        "settings": {**timing.settings(arguments), "rounds": str(arguments.repeats)},
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
        "processor": f"{os.cpu_count()} CPU cores, {arguments.threads} thread",
        "engine": {"fixed": engine.fixed, "row": engine.row, "token": engine.token},
        "rows": rows,
    }
    timing.write(arguments.json, report)


def contestant(llm: Any, load: Load, length: int) -> Any:
    """A call that sends the requests of a load; ``length`` is that of one copy of the text."""
    extra = {"guidance": guidance(len(load.branches)).to_json()} if load.branches else None
    params = llm.sampling_params(max_tokens=load.new, temperature=0.0, ignore_eos=True, extra_args=extra)
    copies = load.prompt // length
    prompts = [" ".join([TEXT.format(10 + number)] * copies) for number in range(load.clients)]
    return partial(llm.generate, prompts, params, use_tqdm=False)


def guidance(branches: int) -> CFG | Formula:
    """A guidance with so many branch requests, one or two."""
    if branches == 1:
        return CFG(1.5, AWAY[0])
    return Formula(f"1.5*cond - 0.25*P({AWAY[0]!r}) - 0.25*P({AWAY[1]!r})")


def row(load: Load, rates: list[float], calibration: list[Measured], places: int, rule: float) -> dict[str, Any]:
    """What was measured of a load, and what the cost model predicts."""
    measured = statistics.median(rates)
    prediction = predict(Engine.of(calibration, combine=rule, places=places), load)
    without_rule = predict(Engine.of(calibration, places=places), load)
    return {
        "clients": load.clients,
        "prompt": load.prompt,
        "branches": len(load.branches),
        "rows": prediction.rows,
        "measured": measured,
        "smallest": min(rates),
        "largest": max(rates),
        "predicted": prediction.tokens_a_second,
        "off": prediction.tokens_a_second / measured - 1,
        "rule": rule,
        "off without the rule": without_rule.tokens_a_second / measured - 1,
    }


def rule_seconds(load: Load, vocabulary: int, clock: Any) -> float:
    """Seconds per step that the logits processor takes for each group of ``load``, on tensors only."""
    from textguide.logits_processors.vllm_plugin.batch_rows import GroupRows, Member
    from textguide.logits_processors.vllm_plugin.combination import GuidedRow, guide
    from textguide.logits_processors.vllm_plugin.requests import MAIN, Request

    if not load.branches:
        return 0.0
    readings = tuple((place, "") for place in range(1, load.rows))
    request = Request(guidance(len(load.branches)), ((1,),) * len(load.branches), readings, horizon=load.new)
    groups = []
    for number in range(load.clients):
        first = number * load.rows
        member = Member(str(number), MAIN, GuidedRow(request, list, list))
        groups.append(GroupRows(first, tuple(range(first + 1, first + load.rows)), member))
    logits = torch.randn(load.clients * load.rows, vocabulary)
    times = []
    for _ in range(7):
        start = clock()
        guide(logits, groups, [0] * load.clients)
        times.append(clock() - start)
    return statistics.median(times[2:]) / load.clients


if __name__ == "__main__":
    main()
