"""Guided generation and scoring over files of millions of rows, by many replicas of a model, with Ray Data.

:func:`generate` and :func:`score` read JSON lines, CSV or Parquet and write a folder of Parquet files. A run that was
killed goes on where it was: called again with the same arguments it does the rows that are missing.

Row ``i`` gets what :func:`textguide.generate` gives for its prompt alone with the seed ``seed + i`` (or
:func:`textguide.score` for its continuation): its text depends on no other row, on no batch size and on no number of
replicas, but for near-ties, which rounding decides. The last digits of log-likelihoods follow the batch, whose rows
are decided by the files, ``rows_per_shard`` and ``batch_size`` alone. So a run that was killed and one that was not
write the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import pipeline, shards
from .cost_model import Engine, Load, Measured, Prediction, predict
from .estimate import Estimate, estimate
from .inputs import Inputs, scan
from .settings import Columns, Settings, default_backend
from .shards import Summary

__all__ = [
    "Columns", "Engine", "Estimate", "Load", "Measured", "Prediction", "Settings", "Summary", "estimate", "generate",
    "default_backend", "predict", "run", "score",
]  # fmt: skip


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
    ``tokens``, ``finish_reason``, ``log_likelihood``, ``log_weight`` (where the guidance weighs texts: of the row, or
    the log-evidence where it has several particles) and ``error``: what is wrong with a row, which then has no text.

    Args:
        source: a file that ends in ``.jsonl``, ``.csv`` or ``.parquet``, a folder of these, or a list.
        output: folder; one that holds a part of the same run is gone on with.
        guidance: as for :func:`textguide.generate`.
        model: a name as for :func:`textguide.load`; every replica loads its own.
        backend: ``vllm`` or ``transformers``; default: vLLM where it is installed.
        columns: which columns mean what.
        seed: of row 0; row ``i`` has ``seed + i``.
        system: a system prompt for every row, which makes prompts chats.
        models: further models by the name that the guidance gives them.
        load: options of :func:`textguide.load` or :func:`textguide.vllm_engine`, such as ``{"dtype": "float32"}``.
        rows_per_shard: rows that are written together, into one file; what a kill loses at most, times ``replicas``.
        replicas: copies of the model that work at once.
        batch_size: rows that a transformers model decodes at once; an engine of vLLM takes a shard at once.
        cpus: cores of a replica.
        gpus: GPUs of a replica (those of ``tensor_parallel_size`` among them); default: 1 where there is any.
        address: of a Ray cluster (``auto`` for the one that this machine belongs to), whose machines all see the
            files and the folder; default: Ray runs on this machine for as long as it is needed.
        progress: called with the rows that are done and all rows, shard by shard.
        **options: of :func:`textguide.generate`: ``max_new_tokens``, ``temperature``, ``stop``…

    Raises:
        ValueError: an argument cannot work, or ``output`` holds another run; the message names it.
        MissingExtraError: Ray or pyarrow is not installed.
        FolderInUseError: another process writes to ``output``.

    Example:
        >>> textguide.batch.generate("prompts.jsonl", "out", CFG(1.5), replicas=8, max_new_tokens=64)  # doctest: +SKIP
        >>> pandas.read_parquet("out").sort_values("row")  # doctest: +SKIP
    """
    settings = Settings(
        "generate", model, guidance, backend or default_backend("generate"), columns or Columns(), options, system,
        seed, dict(models or {}), dict(load or {}), rows_per_shard,
    )  # fmt: skip
    return run(
        settings, source, output, replicas=replicas, batch_size=batch_size, cpus=cpus, gpus=gpus, address=address,
        progress=progress,
    )  # fmt: skip


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
    ``error``. Arguments and errors as for :func:`generate`; transformers alone score.
    """
    settings = Settings(
        "score", model, guidance, "transformers", columns or Columns(), {}, system, 0, dict(models or {}),
        dict(load or {}), rows_per_shard,
    )  # fmt: skip
    return run(
        settings, source, output, replicas=replicas, batch_size=batch_size, cpus=cpus, gpus=gpus, address=address,
        progress=progress,
    )  # fmt: skip


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
    """Do what ``settings`` say; arguments and errors as for :func:`generate`."""
    for name, value in (("replicas", replicas), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of 1 or more")
    inputs: Inputs = scan(source, settings.rows_per_shard)
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
                settings, spans, folder, fingerprint, replicas=replicas, batch_size=batch_size, cpus=cpus, gpus=gpus,
                address=address, done=done,
            )  # fmt: skip
        return shards.summary(folder, inputs, fingerprint)
