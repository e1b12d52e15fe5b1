"""What a token costs under several ways of decoding, measured in turns."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import textguide
from textguide.guidance import as_guidance, split
from textguide.support.errors import NoParticleLeftWarning


@dataclass(frozen=True)
class Cost:
    """What a token costs.

    Args:
        seconds: per token, over all prompts of the batch.
        passes: rows read per row that is written, over all models and parts of models.
    """

    seconds: float
    passes: float


def token_costs(
    ways: Mapping[str, tuple[Any, Any]],
    tokenizer: Any,
    prompts: Sequence[Any],
    models: Mapping[str, Any] | None,
    *,
    new: int = 16,
    repeats: int = 3,
) -> dict[str, Cost]:
    """Seconds and rows a token, each way once and then again: medians. All particles of a text count as one text.

    Args:
        ways: a model and a guidance by name; None decodes plainly.
        tokenizer: that of all of them.
        prompts: one batch.
        models: further models by the name that branches use.
        new: tokens that each text gets.
        repeats: how often each way is measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rows: dict[str, float] = {}
    further = dict(models or {})
    for _ in range(repeats):
        for name, (model, guidance) in ways.items():
            count = [0]

            def add(_: Any, args: Any, kwargs: Any, count: list[int] = count) -> None:
                ids = kwargs.get("input_ids", args[0] if args else None)
                count[0] += len(ids)

            hooks = [one.register_forward_pre_hook(add, with_kwargs=True) for one in (model, *further.values())]
            # A constraint says itself where a text may end, and here it may be cut off before.
            whole: dict[str, Any] = {"min_new_tokens": new} if split(as_guidance(guidance)).sampling is None else {}
            begun = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoParticleLeftWarning)
                out = textguide.generate(
                    model, tokenizer, list(prompts), guidance, models=further, max_new_tokens=new, do_sample=True,
                    seed=0, **whole,
                )  # fmt: skip
            written = sum(map(len, out.new_tokens)) / out.particles
            seconds[name].append((time.perf_counter() - begun) / written)
            for hook in hooks:
                hook.remove()
            rows[name] = count[0] / written
    return {name: Cost(statistics.median(values), rows[name]) for name, values in seconds.items()}
