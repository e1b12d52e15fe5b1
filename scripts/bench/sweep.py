"""The cost of scoring under guidance: lm-eval's plain model, one guided scale, and a sweep, on the same LAMBADA rows::

python scripts/bench/sweep.py --data DATA --json docs/results/sweep.json
"""

from __future__ import annotations

import logging
import statistics
from functools import partial
from typing import Any

import lm_eval
import timing
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from textguide import CFG, tasks
from textguide.eval import GuidedLM
from textguide.models import bundled

SCALES = [1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0]
PLAIN = "lm-eval, plain"
ONE_SCALE = "textguide, one guided scale"


def main() -> None:
    parser = timing.parser(__doc__, model=None, repeats=3)
    parser.add_argument("--data", help="folder with local data files [$TEXTGUIDE_DATA]")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    timing.quiet(arguments)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    requests = lambada(arguments.data, arguments.rows)
    folder = str(bundled.folder())
    plain = HFLM(pretrained=folder, batch_size=arguments.batch_size, device=arguments.device, dtype="float32")
    read = 0
    for request in requests:
        context, target = request.args
        read += len(plain.tok_encode(context + target)) - 1

    def score(settings: list[Any]) -> None:
        lm = GuidedLM(
            pretrained=plain.model, tokenizer=plain.tokenizer, batch_size=arguments.batch_size, settings=settings
        )
        for number in range(len(settings)):
            lm.current = number
            lm.loglikelihood(requests, disable_tqdm=True)

    contestants = {
        PLAIN: partial(plain.loglikelihood, requests, disable_tqdm=True),
        "textguide, plain": partial(score, [None]),
        ONE_SCALE: partial(score, [CFG(1.5)]),
        f"textguide, {len(SCALES)} scales": partial(score, [CFG(scale) for scale in SCALES]),
    }
    plain.loglikelihood(requests[:16], disable_tqdm=True)  # a whole round would warm up for minutes
    times = timing.compare(contestants, arguments.repeats, plain.model.device, warmup=0, memory=True)
    rows = []
    for name, one in times.items():
        rows.append(
            {
                "method": name,
                "seconds": statistics.median(one.seconds),
                "of_plain": one.ratio(times[PLAIN]),
                "of_one_scale": one.ratio(times[ONE_SCALE]),
                "tokens_per_second": read / statistics.median(one.seconds),
                "memory_mb": one.megabytes,
            }
        )
    columns = {
        "method": "{method}",
        "seconds": "{seconds:.1f}",
        "× lm-eval plain": "{of_plain:.2f}",
        "× one scale": "{of_one_scale:.2f}",
        "context tokens/s": "{tokens_per_second:.0f}",
        "memory MB": "{memory_mb:.0f}",
    }
    timing.show(rows, columns, f"LAMBADA, first {len(requests)} rows, batch {arguments.batch_size}: medians")
    report = {"settings": timing.settings(arguments), "rows": rows}
    machine = {**timing.machine(plain.model), "lm_eval": lm_eval.__version__}
    timing.write(arguments.json, {"machine": machine, **report})


def lambada(data: str | None, rows: int) -> list[Any]:
    """The first ``rows`` requests of LAMBADA, as lm-eval builds them."""
    specs, manager = tasks.resolve(["lambada_openai"], data)
    task = manager.load(specs)["tasks"]["lambada_openai"]
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=rows)
    return [Instance("loglikelihood", one.doc, one.args, one.idx, one.metadata) for one in task.instances]


if __name__ == "__main__":
    main()
