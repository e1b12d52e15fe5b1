"""A model that does one span of rows after another, and what becomes of rows that it cannot do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..generation import generate
from ..guidance import split
from ..models.loading import load
from ..scoring import score
from . import shards
from .inputs import Span, Values, read
from .settings import Row, Settings, finite, with_negative_prompts

Result = dict[str, Any]
"""What becomes of a row: values by column."""


class Replica:
    """One copy of the models.

    Args:
        settings: what is done.
        batch_size: rows per batch of a transformers model; an engine receives all rows of a span.
        folder: folder of the results; None: nothing is written, for :meth:`results`.
        fingerprint: of the settings.

    Raises:
        ModelUnavailableError: as for :func:`textguide.load`.
        ValueError: an option of the model cannot work.
    """

    def __init__(
        self, settings: Settings, batch_size: int = 32, folder: Path | None = None, fingerprint: str = ""
    ) -> None:
        self.settings, self.batch_size = settings, batch_size
        self.folder, self.fingerprint = folder, fingerprint
        self.models: dict[str, Any] = {}
        if settings.backend == "vllm":
            # In this process the engine makes the same steps every time; results must not depend on timing.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            from textguide.logits_processors.vllm_plugin.engine import vllm_engine

            self.model = vllm_engine(settings.model, models=dict(settings.models) or None, **settings.load)
            self.tokenizer = None
        else:
            self.model, self.tokenizer = load(settings.model, **settings.load)
            same = {name: value for name, value in settings.load.items() if not name.startswith("adapter")}
            self.models = {name: load(other, **same)[0] for name, other in settings.models.items()}

    def do(self, span: Span) -> dict[str, Any]:
        """Read a span, do its rows and write them; how many, how long."""
        begun = time.monotonic()
        assert self.folder is not None
        rows = self.results(span.start, read(span))
        shards.write(self.folder, span, self.fingerprint, self.settings, rows)
        return {
            "start": span.start,
            "rows": len(rows),
            "errors": sum(row.get("error") is not None for row in rows),
            "tokens": sum(row.get("tokens") or 0 for row in rows),
            "seconds": time.monotonic() - begun,
        }

    def results(self, start: int, values: Sequence[Values]) -> list[Result]:
        """What becomes of rows, in their order; what a row says depends on no other row.

        Args:
            start: number of the first row.
            values: what the file says.
        """
        found: dict[int, Result] = {}
        rows: list[Row] = []
        for number, given in enumerate(values, start):
            try:
                rows.append(self.settings.row(number, given))
            except ValueError as error:
                found[number] = _error(error)
        if self.settings.backend == "vllm":
            self.model.reset_prefix_cache()  # of earlier spans: whether these were done here must not matter
        failed: list[Exception] = []
        for batch, run in self._batches(rows):
            for row, result in _attempt(batch, run):
                if isinstance(result, Exception):
                    failed.append(result)
                    result = _error(result)
                found[row.number] = result
        # If every row fails, the machine is the cause and not the rows.
        if failed and len(failed) == len(rows) and not all(isinstance(error, ValueError) for error in failed):
            raise failed[0]
        settings = self.settings
        return [
            {"row": number, **_kept(given, settings), **found[number]} for number, given in enumerate(values, start)
        ]

    def _batches(self, rows: list[Row]) -> Iterator[tuple[list[Row], Callable[[list[Row]], list[Result]]]]:
        """Rows of one guidance together, those of like length side by side."""
        groups: dict[tuple[str, bool], list[Row]] = {}
        for row in rows:
            key = "" if row.guidance is None else row.guidance.fingerprint
            groups.setdefault((key, row.negative is not None), []).append(row)
        run = self._score if self.settings.task == "score" else self._generate
        for group in groups.values():
            if self.settings.backend == "vllm":
                yield group, run
                continue
            # Rows under a constraint share their numbers with others of the batch.
            alone = self.settings.task == "generate" and split(group[0].guidance).sampling is not None
            size = 1 if alone else self.batch_size
            group.sort(key=lambda row: len(row.prompt) + len(row.continuation or ""))
            yield from ((group[begin : begin + size], run) for begin in range(0, len(group), size))

    def _generate(self, rows: list[Row]) -> list[Result]:
        seeds = [self.settings.seed + row.number for row in rows]
        seed: Any = seeds
        if self.tokenizer is not None and split(rows[0].guidance).sampling is not None:  # it is alone
            (seed,) = seeds
        options = dict(self.settings.options)
        if self.models:
            options["models"] = self.models
        out = generate(
            self.model,
            self.tokenizer,
            [row.prompt for row in rows],
            _guidance(rows),
            seed=seed,
            system=self.settings.system,
            **options,
        )
        weights = out.log_weights if out.particles == 1 else out.log_evidence
        found: list[Result] = []
        for place, own in enumerate(seeds):
            one = place
            if out.particles > 1:
                try:
                    one = out.weighted_sample_of(place, own)
                except ValueError as error:  # no particle finished; other rows are not affected
                    found.append(_error(error))
                    continue
            found.append(
                {
                    "text": out.texts[one],
                    "tokens": len(out.new_tokens[one]),
                    "finish_reason": out.finish_reasons[one],
                    "log_likelihood": finite(float(out.log_likelihood[one])),
                    "log_weight": None if weights is None else finite(float(weights[place])),
                    **({"error": "the engine ended the request"} if out.finish_reasons[one] == "error" else {}),
                }
            )
        return found

    def _score(self, rows: list[Row]) -> list[Result]:
        out = score(
            self.model,
            self.tokenizer,
            [row.prompt for row in rows],
            [row.continuation for row in rows],
            _guidance(rows),
            system=self.settings.system,
            batch_size=len(rows),
            models=self.models or None,
        )
        values = zip(out.log_likelihood[0].tolist(), out.is_greedy[0].tolist(), out.tokens.tolist(), strict=True)
        return [
            {"log_likelihood": finite(likelihood), "is_greedy": greedy, "tokens": tokens}
            for likelihood, greedy, tokens in values
        ]


def _guidance(rows: list[Row]) -> Any:
    guidance = rows[0].guidance
    return guidance if rows[0].negative is None else with_negative_prompts(guidance, [row.negative for row in rows])


def _attempt(rows: list[Row], run: Callable[[list[Row]], list[Result]]) -> Iterator[tuple[Row, Result | Exception]]:
    """The result of ``run`` for each row. If it fails, it is repeated on halves until the failing rows are isolated.

    Raises:
        Exception: it is the machine that failed, and no row.
    """
    try:
        done: Sequence[Result | Exception] = run(rows)
    except Exception as error:
        if _of_the_machine(error):
            raise
        if len(rows) > 1:
            middle = len(rows) // 2
            yield from _attempt(rows[:middle], run)
            yield from _attempt(rows[middle:], run)
            return
        done = [error]
    yield from zip(rows, done, strict=True)


def _of_the_machine(error: Exception) -> bool:
    return (
        isinstance(error, (MemoryError, OSError, ImportError))
        or "out of memory" in str(error)
        or type(error).__name__ in ("EngineDeadError", "EngineGenerateError")
    )


def _error(error: Exception) -> Result:
    text = " ".join(str(error).split())
    return {"error": text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"}


def _kept(values: Values, settings: Settings) -> Mapping[str, Any]:
    if isinstance(values, str):
        return {}
    kept = {}
    for column in settings.columns.keep:
        value = values.get(column)
        kept[column] = value if column in settings.kept else _text(value)
    return kept


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
