"""The cost of a token in several ways of decoding, measured in turns."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from textguide.generation import generate
from textguide.guidance import as_guidance, split
from textguide.support.errors import NoParticleLeftWarning


@dataclass(frozen=True)
class Cost:
    """The cost of one token.

    Args:
        seconds: per token, over all prompts of the batch.
        passes: rows that are read per row that is written, over all models and parts of models.
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
    """Measure the seconds and the rows per token of several ways of decoding.

    All ways are measured in turn, and this is repeated, so that a change in the machine's load affects all of them. All
    particles of a text count as one text.

    Args:
        ways: a model and a guidance by name; None decodes plainly.
        tokenizer: the tokenizer of all models.
        prompts: one batch.
        models: further models by the name that branches use.
        new: number of tokens per text.
        repeats: number of measurements per way.

    Returns:
        Medians of the seconds, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rows: dict[str, float] = {}
    further = dict(models or {})
    for _ in range(repeats):
        for name, (model, guidance) in ways.items():
            # A constraint determines the end of a text, so its texts may be shorter.
            constrained = split(as_guidance(guidance)).sampling is not None
            length: dict[str, Any] = {} if constrained else {"min_new_tokens": new}
            start = time.perf_counter()
            with _rows_read([model, *further.values()]) as read, warnings.catch_warnings():
                warnings.simplefilter("ignore", NoParticleLeftWarning)
                result = generate(
                    model,
                    tokenizer,
                    list(prompts),
                    guidance,
                    models=further,
                    max_new_tokens=new,
                    do_sample=True,
                    seed=0,
                    **length,
                )
            written = sum(map(len, result.new_tokens)) / result.particles
            seconds[name].append((time.perf_counter() - start) / written)
            rows[name] = sum(read) / written
    return {name: Cost(statistics.median(values), rows[name]) for name, values in seconds.items()}


@contextmanager
def _rows_read(models: Sequence[Any]) -> Iterator[list[int]]:
    """The number of rows of every call of the models."""
    rows: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        rows.append(len(ids))

    hooks = [model.register_forward_pre_hook(note, with_kwargs=True) for model in models]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()
