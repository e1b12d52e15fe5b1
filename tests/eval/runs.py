"""A run with two tasks and three settings, for tests of what is made of runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from textguide.eval import RunResult, TaskResult, measure

PLAIN = [1, 0, 0, 1, 0, 1, 0, 0]
GUIDED = {1.25: [1, 1, 0, 1, 1, 1, 0, 0], 1.5: [1, 1, 1, 1, 0, 0, 0, 0]}
NLL = [2.0, 3.0, 1.0, 4.0, 2.5, 0.5, 1.5, 2.25]


def entry(task: str, label: str, scale: float | None, values: list[int], **more: Any) -> TaskResult:
    ids = tuple(f"{task}-{i}" for i in range(len(values)))
    return TaskResult(
        task,
        label,
        scale,
        {"acc,none": measure(values), "word_perplexity,none": measure(NLL, "perplexity", [3] * 8)},
        {"acc,none": np.array(values), "word_perplexity,none": np.array(NLL) + (scale or 0)},
        {"word_perplexity,none": np.full(8, 3.0)},
        item_ids=ids,
        confidences=np.linspace(0.1, 0.9, 8),
        **more,
    )


def sweep(**more: Any) -> RunResult:
    tasks = [entry("a|b", "plain", 1.0, PLAIN, truncated=2)]
    tasks += [entry("a|b", f"cfg {scale:g}", scale, values) for scale, values in GUIDED.items()]
    tasks += [entry("c", "plain", 1.0, PLAIN), entry("c", "cfg 1.5", 1.5, PLAIN)]
    guidances = {"plain": None, **{f"cfg {scale:g}": {"method": "cfg", "scale": scale} for scale in GUIDED}}
    values: dict[str, Any] = {"identity": {"model": "tiny", "seed": 7}, "seed": 7, "date": 1e9, **more}
    return RunResult(tasks, guidances, **values)
