"""Guided generation and scoring over files of millions of rows, by many replicas of a model, with Ray Data.

:func:`generate` and :func:`score` read JSON lines, CSV or Parquet and write a folder of Parquet files. If a run is
killed, another call with the same arguments does the missing rows.

The result of row ``i`` is that of :func:`textguide.generate` for its prompt with the seed ``seed + i`` (or of
:func:`textguide.score` for its continuation). It does not depend on other rows, the batch size or the number of
replicas, except for near-ties, which rounding decides. The last digits of log-likelihoods depend on the batch, whose
rows only depend on the files, ``rows_per_shard`` and ``batch_size``. A resumed run therefore writes the same bytes as
a run without interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..support.checks import whole_number
from . import pipeline, shards
from .cost_model import Engine, Load, Measured, Prediction, predict
from .estimate import Estimate, estimate
from .inputs import Inputs, scan
from .settings import Columns, Settings, default_backend
from .shards import Summary

__all__ = [
    "Columns",
    "Engine",
    "Estimate",
    "Load",
    "Measured",
    "Prediction",
    "Settings",
    "Summary",
    "default_backend",
    "estimate",
    "generate",
    "predict",
    "run",
    "score",
]


def generate(
    source: Any,
    output: str | Path,
    guidance: Any = None,
    *,
    model: str = "smollm2",
    backend: str | None = None,
    columns: Columns | None = None,
    seed: int = 0,
    system: str | None = None,
    models: Mapping[str, str] | None = None,
    load: Mapping[str, Any] | None = None,
    rows_per_shard: int = 1000,
    replicas: int = 1,
    batch_size: int = 32,
    cpus: float = 1.0,
    gpus: float | None = None,
    address: str | None = None,
    progress: Callable[[int, int], Any] | None = None,
    **options: Any,
) -> Summary:
    """Continue the prompt of every row of files under guidance, and write a folder of Parquet files.

    Columns of the result: ``row`` (its number, counted over all files from 0), those of ``columns.keep``, ``text``,
    ``tokens``, ``finish_reason``, ``log_likelihood``, ``log_weight`` (if the guidance weights texts: that of the row,
    or the log-evidence if it has several particles) and ``error``: why a row has no text.

    Args:
        source: a file that ends in ``.jsonl``, ``.csv`` or ``.parquet``, a folder of these, or a list.
        output: folder; an unfinished run in it is resumed.
        guidance: as for :func:`textguide.generate`.
        model: a name as for :func:`textguide.load`; every replica loads its own.
        backend: ``vllm`` or ``transformers``; default: vLLM if it is installed.
        columns: names of the columns.
        seed: of row 0; row ``i`` has ``seed + i``.
        system: a system prompt for every row, which makes prompts chats.
        models: other models by the name that the guidance uses.
        load: options of :func:`textguide.load` or :func:`textguide.vllm_engine`, such as ``{"dtype": "float32"}``.
        rows_per_shard: rows per file; an interruption loses at most that many rows per replica.
        replicas: copies of the model that run in parallel.
        batch_size: rows per batch of a transformers model; a vLLM engine receives whole shards.
        cpus: cores per replica.
        gpus: GPUs per replica, including those of ``tensor_parallel_size``; default: 1 if there is a GPU.
        address: address of a Ray cluster (``auto``: the one that this machine belongs to), whose machines can all
            access the files and the folder; default: Ray is started on this machine for the duration of the run.
        progress: called after each shard with the number of finished rows and of all rows.
        **options: options of :func:`textguide.generate`: ``max_new_tokens``, ``temperature``, ``stop``…

    Raises:
        ValueError: an argument is invalid, or ``output`` has another run; the message names it.
        MissingExtraError: Ray or pyarrow is not installed.
        FolderInUseError: another process writes to ``output``.

    Example:
        >>> textguide.batch.generate("prompts.jsonl", "out", CFG(1.5), replicas=8, max_new_tokens=64)  # doctest: +SKIP
        >>> pandas.read_parquet("out").sort_values("row")  # doctest: +SKIP
    """
    settings = Settings(
        task="generate",
        model=model,
        guidance=guidance,
        backend=backend or default_backend("generate"),
        columns=columns or Columns(),
        options=options,
        system=system,
        seed=seed,
        models=dict(models or {}),
        load=dict(load or {}),
        rows_per_shard=rows_per_shard,
    )
    return run(
        settings,
        source,
        output,
        replicas=replicas,
        batch_size=batch_size,
        cpus=cpus,
        gpus=gpus,
        address=address,
        progress=progress,
    )


def score(
    source: Any,
    output: str | Path,
    guidance: Any = None,
    *,
    model: str = "smollm2",
    columns: Columns | None = None,
    system: str | None = None,
    models: Mapping[str, str] | None = None,
    load: Mapping[str, Any] | None = None,
    rows_per_shard: int = 1000,
    replicas: int = 1,
    batch_size: int = 32,
    cpus: float = 1.0,
    gpus: float | None = None,
    address: str | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Summary:
    """Score the continuation of every row of files under guidance, as :func:`textguide.score` does.

    Columns of the result: ``row``, those of ``columns.keep``, ``log_likelihood`` in nats, ``is_greedy``, ``tokens`` and
    ``error``. Arguments and errors as for :func:`generate`; only transformers can score.
    """
    settings = Settings(
        task="score",
        model=model,
        guidance=guidance,
        backend="transformers",
        columns=columns or Columns(),
        system=system,
        models=dict(models or {}),
        load=dict(load or {}),
        rows_per_shard=rows_per_shard,
    )
    return run(
        settings,
        source,
        output,
        replicas=replicas,
        batch_size=batch_size,
        cpus=cpus,
        gpus=gpus,
        address=address,
        progress=progress,
    )


def run(
    settings: Settings,
    source: Any,
    output: str | Path,
    *,
    replicas: int = 1,
    batch_size: int = 32,
    cpus: float = 1.0,
    gpus: float | None = None,
    address: str | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Summary:
    """Run ``settings``; arguments and errors as for :func:`generate`."""
    whole_number("replicas", replicas, 1)
    whole_number("batch_size", batch_size, 1)
    inputs: Inputs = scan(source, settings.rows_per_shard)
    settings = settings.reading(inputs)
    fingerprint = settings.fingerprint(inputs)
    with shards.claimed(output, settings, inputs) as folder:
        spans: Sequence[Any] = shards.left(folder, inputs, fingerprint)
        rows = inputs.rows - sum(map(len, spans))

        def done(result: Mapping[str, Any]) -> None:
            nonlocal rows
            rows += result["rows"]
            if progress is not None:
                progress(rows, inputs.rows)

        if progress is not None:
            progress(rows, inputs.rows)
        if spans:
            pipeline.run(
                settings,
                spans,
                folder,
                fingerprint,
                replicas=replicas,
                batch_size=batch_size,
                cpus=cpus,
                gpus=gpus,
                address=address,
                done=done,
            )
        return shards.summary(folder, inputs, fingerprint)
