"""How much work a run is, before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine import branch_inputs
from ..generation import LONGEST
from ..guidance import split
from ..models import small
from ..models.loading import locate
from . import shards
from .cost_model import Engine, Load, Measured, predict
from .inputs import sample, scan
from .settings import Settings, with_negative_prompts

SAMPLE = 200
"""Size of the sample of rows."""


@dataclass(frozen=True)
class Estimate:
    """How much work a run is.

    Args:
        rows: of all files.
        left: rows that are not written yet.
        shards: files that are going to be written in all.
        wrong: share of the rows in the sample that have an error.
        prompt: mean tokens of a prompt.
        branches: mean number of extra branches per row.
        branch_tokens: mean tokens that all extra branches of a row read.
        new: tokens that are generated (at most) or scored (on average) per row.
        passes: rows that the model reads, once for every token of every branch, over all rows that are left; at most.
        seconds: how long it takes at most; None without measured rates.
    """

    rows: int
    left: int
    shards: int
    wrong: float
    prompt: float
    branches: float
    branch_tokens: float
    new: float
    passes: float
    seconds: float | None = None


def estimate(
    settings: Settings,
    source: Any,
    output: str | Path | None = None,
    *,
    plain: Mapping[int, float] | None = None,
    places: int | None = None,
    replicas: int = 1,
) -> Estimate:
    """Count the rows, and estimate the work from a sample of them.

    Args:
        settings: of the run.
        source: as for :func:`textguide.batch.generate`.
        output: the folder, of which what is there already is left out.
        plain: tokens per second of one replica without guidance, by the number of concurrent requests, two of
            them or more: the cost model predicts the time of the run from it (generation alone).
        places: ``max_num_seqs``, or ``batch_size``; default: the largest of ``plain``.
        replicas: copies of the model that run in parallel.

    Raises:
        ValueError: an argument is invalid, or ``output`` has another run.
    """
    inputs = scan(source, settings.rows_per_shard)
    left = inputs.spans
    if output is not None and Path(output).is_dir():
        settings = settings.reading(inputs)
        shards.check(Path(output), settings, inputs)
        left = tuple(shards.left(Path(output), inputs, settings.fingerprint(inputs)))
    rows = sum(map(len, left))
    tokenizer = _tokenizer(settings.model)
    looked = sample(inputs, SAMPLE)
    counts = []
    for values in looked:
        try:
            counts.append(_tokens(settings, values, tokenizer))
        except ValueError:
            continue
    means = [sum(column) / len(counts) for column in zip(*counts, strict=True)] if counts else [0.0] * 4
    prompt, branches, branch_tokens, new = means
    found = Estimate(
        rows=inputs.rows,
        left=rows,
        shards=len(inputs.spans),
        wrong=1 - len(counts) / len(looked),
        prompt=prompt,
        branches=branches,
        branch_tokens=branch_tokens,
        new=new,
        passes=rows * (1 + branches) * new,
    )
    if not plain or settings.task == "score" or not counts:
        return found
    whole = round(branches)
    load = Load(
        clients=max(plain) if places is None else places,
        prompt=max(1, round(prompt)),
        new=max(1, round(new)),
        branches=(round(branch_tokens / whole),) * whole if whole else (),
    )
    measured = [Measured(replace(load, clients=clients, branches=()), rate) for clients, rate in plain.items()]
    engine = Engine.of(measured, places=places or max(plain))
    rate = predict(engine, load).tokens_a_second * replicas
    return replace(found, seconds=rows * new / rate)


def _tokens(settings: Settings, values: Any, tokenizer: Any) -> tuple[int, int, int, int]:
    """Of one row: tokens of its prompt, extra branches, tokens that these read, tokens that are written or scored."""
    row = settings.row(0, values)
    prompts = branch_inputs.canonical_prompts([row.prompt], settings.system, tokenizer)
    own = branch_inputs.encode(prompts[0], tokenizer, "prompt")
    guidance = row.guidance if row.negative is None else with_negative_prompts(row.guidance, [row.negative])
    branching = split(guidance).branching
    branches = []
    if branching is not None:
        branches = branch_inputs.branch_rows(branching, cond=[own], tokenizer=tokenizer, prompts=prompts)
    new = settings.options.get("max_new_tokens") or LONGEST
    if settings.task == "score":
        text = row.continuation
        new = len(tokenizer(text, add_special_tokens=False).input_ids if isinstance(text, str) else text)
    return len(own), len(branches), sum(len(rows[0]) for rows in branches), new


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    is_small = model in small.NAMES and not Path(model).is_dir()
    return AutoTokenizer.from_pretrained(small.TOKENIZER if is_small else locate(model))
