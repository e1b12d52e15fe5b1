"""A task of lm-eval under a guidance, and under another one or none, on the same items.

Fields: ``task``, ``metric`` (under lm-eval's name, ``acc,none``), ``items``, ``first`` (the number of the first item),
``model``, ``dtype``, ``models``, ``fewshot``, ``gen``, ``repeats``, ``batch``, ``seed``, ``backend`` and ``options``
(of a diffusion model). A side may have its own ``metric``, ``models`` and ``options``. Values of perplexities are in
nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textguide.guidance.spec import label
from textguide.models import bundled

from ...results.run import RunResult
from ...sweeps.options import SweepOptions
from ...sweeps.sweep import run_sweep
from .base import SIDES, Plan, Work, check, field, guidance_of, models_of, rows_of

FIELDS = (
    "task", "metric", "items", "first", "model", "dtype", "models", "fewshot", "gen", "repeats", "batch", "seed",
    "backend", "options",
)  # fmt: skip

TOKENS = {
    "lambada_openai": 90, "lambada_mini": 90, "arc_easy": 60, "arc_challenge": 60, "piqa": 80, "boolq": 170,
    "winogrande": 60, "triviaqa": 190, "gpqa_diamond_zeroshot": 300, "sudoku4": 280,
    "continuations": 40, "continuations_positive": 200, "gsm8k_cot": 1200,
}  # fmt: skip
"""Approximate number of positions per item in one branch."""


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """Numbers per item under both sides; sides that differ only in the guidance run in one sweep."""
    check(test, FIELDS)
    model_args = {side: _model_args(test, side) for side in SIDES}
    settings = {side: guidance_of(test, side) for side in SIDES}
    options = SweepOptions(
        data=data,
        limit=int(test["items"]),
        first=int(test.get("first", 0)),
        num_fewshot=test.get("fewshot"),
        repeats=test.get("repeats"),
        gen_kwargs=test.get("gen"),
        seed=int(test.get("seed", 0)),
        select_on=None,
        plots=False,
    )
    if model_args["tested"] == model_args["baseline"]:
        distinct = list(dict.fromkeys(settings.values()))
        runs = dict.fromkeys(SIDES, _sweep(test, distinct, options, model_args["tested"], work, "sweep"))
    else:
        runs = {side: _sweep(test, [settings[side]], options, model_args[side], work, side) for side in SIDES}
    results: dict[str, list[float]] = {}
    for side, run in runs.items():
        entry = run.get(run.task_names[0], label(settings[side]))
        assert entry is not None
        metric = field(test, side, "metric")
        if metric not in entry.items:
            raise ValueError(f"metric={metric!r} does not have values per item; use one of {', '.join(entry.items)}")
        results[side] = entry.items[metric].tolist()
    return results


def _sweep(
    test: Mapping[str, Any], settings: Sequence[Any], options: SweepOptions, model_args: Any, work: Work, folder: str
) -> RunResult:
    run = run_sweep([test["task"]], settings, options=options, model_args=model_args, output=work.folder / folder)
    assert run is not None
    return run


def plan(test: Mapping[str, Any]) -> Plan:
    """The cost of both sides; an upper bound for likelihood tasks, which read the conditional branch once for both."""
    each = TOKENS.get(test["task"], 200) * int(test["items"])
    rows = sum(rows_of(guidance_of(test, side)) for side in SIDES)
    return Plan(passes=rows * max(1, int(test["items"]) // int(test.get("batch", 16))), tokens=rows * each)


def _model_args(test: Mapping[str, Any], side: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "pretrained": test.get("model", bundled.NAME),
        "dtype": test.get("dtype", "bfloat16"),
        "device": "cpu",
        "batch_size": int(test.get("batch", 16)),
    }
    models = models_of(test)
    if models:
        arguments["models"] = models
    if "backend" in test:
        arguments["backend"] = test["backend"]
    return {**arguments, **test.get("options", {}), **test[side].get("options", {})}
