"""The effect of distilling guidance into an adapter: plain, guided and distilled decoding compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textguide.distillation.texts import openings
from textguide.engine.given_texts import as_items, distributions, leading
from textguide.forward.low_rank import merged
from textguide.generation import generate
from textguide.guidance import Guidance, algebra, as_guidance, split
from textguide.scoring import score
from textguide.tasks import selection

from ..statistics.intervals import mean_interval, paired_bootstrap
from .costs import token_costs
from .options import SweepOptions
from .sweep import run_sweep

WAYS = ("plain", "guided", "distilled")
NEW = 40
"""Number of tokens of each text."""
BATCH = 8
"""Number of texts whose distributions are compared together."""


def judge(
    model: Any,
    tokenizer: Any,
    guidance: Any,
    adapter: str,
    *,
    prompts: Sequence[Any] | None = None,
    tasks: Sequence[str] = (),
    limit: int = 200,
    models: Mapping[str, Any] | None = None,
    data: str | None = None,
    seed: int = 1,
    repeats: int = 3,
    measures: Mapping[str, Callable[[str], float]] | None = None,
) -> dict[str, Any]:
    """Compare a model without guidance, with guidance, and with an adapter into which the guidance was distilled.

    Args:
        model: the model without the adapter.
        tokenizer: its tokenizer.
        guidance: the guidance that was distilled.
        adapter: folder of the adapter.
        prompts: prompts on which the adapter was not trained. None: openings of one word from the end of the
            vocabulary's list, which training reaches last.
        tasks: names of tasks, as for ``textguide eval``.
        limit: largest number of texts, and of items per task.
        models: further models of the guidance.
        data: folder of the tasks' data.
        seed: seed of the texts.
        repeats: number of measurements of the speed, of which the median is reported.
        measures: further measures of a continuation by name, such as its sentiment, or whether it satisfies a
            constraint.

    Returns:
        ``texts``: for each way ``kl`` from the guided distribution to its own (nats per token, on texts that were
        written under guidance; None for guidance that weighs whole texts), ``perplexity`` of sampled texts under the
        plain model, ``distinct_2`` and ``repeated_4`` (shares of bigrams that are distinct, of 4-grams that occurred
        before in their text), and the means of ``measures``, each with an interval over texts. If guidance weighs
        texts, one text per prompt counts, drawn by its weight. ``tasks``: accuracy of each way, and the paired
        differences of distilled to the others. ``bill``: seconds and rows per token, and bytes of weights.
    """
    comparison = _Ways.of(model, tokenizer, guidance, adapter, models)
    texts_prompts = list(prompts) if prompts is not None else openings(tokenizer)[::-1]
    texts_prompts = [texts_prompts[number % len(texts_prompts)] for number in range(limit)]
    return {
        "texts": comparison.texts(texts_prompts, seed, measures or {}),
        "tasks": comparison.tasks(tasks, limit, data),
        "bill": comparison.bill(texts_prompts[:4], repeats),
        "limit": limit,
    }


def accuracies(
    model: Any,
    tokenizer: Any,
    guidance: Any,
    adapter: str,
    *,
    tasks: Sequence[str],
    limit: int,
    data: str | None = None,
) -> dict[str, Any]:
    """Only the part ``tasks`` of what :func:`judge` returns, with the same arguments."""
    return _Ways.of(model, tokenizer, guidance, adapter, None).tasks(tasks, limit, data)


@dataclass(frozen=True)
class _Ways:
    """The three ways of decoding.

    Args:
        model: the model without the adapter.
        student: the model with the adapter.
        guidance: the guidance that was distilled.
        tokenizer: that of the model.
        models: further models of the guidance.
    """

    model: Any
    student: Any
    guidance: Guidance | None
    tokenizer: Any
    models: dict[str, Any]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, guidance: Any, adapter: str, models: Mapping[str, Any] | None) -> _Ways:
        student = merged(copy.deepcopy(model), adapter)
        return cls(model, student, as_guidance(guidance), tokenizer, dict(models or {}))

    @property
    def ways(self) -> dict[str, tuple[Any, Guidance | None]]:
        """A model and a guidance by way."""
        return {"plain": (self.model, None), "guided": (self.model, self.guidance), "distilled": (self.student, None)}

    def texts(
        self, prompts: Sequence[Any], seed: int, measures: Mapping[str, Callable[[str], float]]
    ) -> dict[str, Any]:
        """Measures of sampled texts, by way."""
        written = {way: self._write(prompts, way, seed) for way in WAYS}
        divergences = self._divergences(prompts, written["guided"])
        results = {}
        for way, rows in written.items():
            likelihoods = score(self.model, self.tokenizer, list(prompts), list(rows))
            lengths = np.array([len(row) for row in rows], dtype=float)
            nll = mean_interval(-likelihoods.log_likelihood[0].numpy() / lengths)._asdict()
            result = {
                "kl": None if divergences is None else mean_interval(divergences[way])._asdict(),
                "nll": nll,
                "perplexity": {key: float(np.exp(value)) for key, value in nll.items() if key != "stderr"},
                "distinct_2": mean_interval([_distinct(row, 2) for row in rows])._asdict(),
                "repeated_4": mean_interval([1.0 - _distinct(row, 4) for row in rows])._asdict(),
            }
            for name, measure in measures.items():
                values = [measure(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
                result[name] = mean_interval(values)._asdict()
            results[way] = result
        return results

    def _write(self, prompts: Sequence[Any], way: str, seed: int) -> list[list[int]]:
        """One sampled text per prompt, as token ids."""
        model, guidance = self.ways[way]
        result = generate(
            model,
            self.tokenizer,
            list(prompts),
            guidance,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=NEW,
            seed=seed,
            batch_size=32,
            models=self.models if guidance is not None else None,
        )
        rows = range(len(result.new_tokens)) if result.log_weights is None else result.weighted_sample(seed)
        return [result.new_tokens[row] for row in rows]

    def _divergences(self, prompts: Sequence[Any], tokens: Sequence[list[int]]) -> dict[str, list[float]] | None:
        """KL from the guided distribution to that of each way, in nats per token, for each text.

        None for guidance that weighs whole texts, because it does not have distributions of single steps.
        """
        divergences: dict[str, list[float]] = {way: [] for way in WAYS}
        try:
            items = as_items(self.model, self.tokenizer, list(prompts), list(tokens), None, leading([self.guidance]))
            distributions(self.model, items[:1], self.guidance, tokenizer=self.tokenizer, models=self.models)
        except ValueError:
            if split(self.guidance).sampling is None:
                raise
            return None
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            lengths = [len(item.continuation) for item in batch]
            target = distributions(self.model, batch, self.guidance, tokenizer=self.tokenizer, models=self.models)
            for way in ("plain", "distilled"):
                kl = algebra.kl_divergence(target, distributions(self.ways[way][0], batch, None))
                divergences[way] += [float(part.mean()) for part in kl.split(lengths)]
            divergences["guided"] += [0.0] * len(batch)
        return divergences

    def tasks(self, tasks: Sequence[str], limit: int, data: str | None) -> dict[str, Any]:
        """Accuracy of each way on tasks, and paired differences."""
        if not tasks:
            return {}
        options = SweepOptions(data=data, limit=limit, select_on=None)
        teacher: dict[str, Any] = {"pretrained": self.model, "tokenizer": self.tokenizer}
        if self.models:
            teacher["models"] = self.models
        both = run_sweep(tasks, [None, self.guidance], options=options, model_args=teacher)
        student = {"pretrained": self.student, "tokenizer": self.tokenizer}
        own = run_sweep(tasks, [None], options=options, model_args=student)
        assert both is not None
        assert own is not None
        results: dict[str, Any] = {}
        for task in tasks:
            plain, guided = (entry for entry in both.tasks if entry.task == task)
            distilled = next(entry for entry in own.tasks if entry.task == task)
            metric = next(name for name in plain.items if name in plain.metrics)
            entries = {"plain": plain, "guided": guided, "distilled": distilled}
            values = {way: entry.items[metric] for way, entry in entries.items()}
            results[task] = {"metric": metric, **_accuracy(values)}
        return results

    def bill(self, prompts: Sequence[Any], repeats: int) -> dict[str, Any]:
        """Seconds and rows per token, and bytes of weights, by way."""
        ways = self.ways
        # The first measurement warms up: it chooses kernels and fills caches.
        token_costs(ways, self.tokenizer, prompts, self.models, new=4, repeats=1)
        costs = token_costs(ways, self.tokenizer, prompts, self.models, new=24, repeats=repeats)
        results = {}
        for way, cost in costs.items():
            weights = ways[way][0].parameters()
            results[way] = {
                "seconds a token": cost.seconds,
                "against plain": cost.seconds / costs["plain"].seconds,
                "rows a token": cost.passes,
                "bytes": sum(weight.numel() * weight.element_size() for weight in weights),
            }
        return results


def _accuracy(values: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    results: dict[str, Any] = {way: mean_interval(values[way])._asdict() for way in WAYS}
    for way in ("plain", "guided"):
        results[f"distilled - {way}"] = paired_bootstrap(values["distilled"], values[way])._asdict()
    return results


def _distinct(row: Sequence[int], n: int) -> float:
    """The share of n-grams that are distinct; 1 if there are none."""
    return selection.distinct([""], n, lambda _: list(map(str, row))) if len(row) >= n else 1.0


def show(result: Mapping[str, Any]) -> None:
    """Print the result of :func:`judge` as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", *WAYS, title=f"texts of {NEW} tokens, {result['limit']} per way")
    rows = {
        "kl": "KL(guided ‖ ·), nats per token",
        "perplexity": "perplexity under plain",
        "distinct_2": "distinct bigrams",
        "repeated_4": "repeated 4-grams",
    }
    for key, label in rows.items():
        cells = [result["texts"][way][key] for way in WAYS]
        if cells[0] is None:
            continue
        table.add_row(label, *(f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in cells))
    console.print(table)
    if result["tasks"]:
        table = Table(title="accuracy, and the differences of distilled to the others")
        for name in ("task", *WAYS, "to plain", "to guided"):
            table.add_column(name, no_wrap=name == "task")
        for task, entry in result["tasks"].items():
            cells = [f"{entry[way]['mean']:.3f}" for way in WAYS]
            for way in ("plain", "guided"):
                difference = entry[f"distilled - {way}"]
                ends = f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"
                cells.append(f"{difference['difference']:+.3f} {ends}")
            table.add_row(task, *cells)
        console.print(table)
    bill = result["bill"]
    table = Table("", *WAYS, title="bill")
    table.add_row("ms per token", *(f"{1000 * bill[way]['seconds a token']:.1f}" for way in WAYS))
    table.add_row("relative to plain", *(f"{bill[way]['against plain']:.2f}" for way in WAYS))
    table.add_row("rows per token", *(f"{bill[way]['rows a token']:.2f}" for way in WAYS))
    table.add_row("MB of weights", *(f"{bill[way]['bytes'] / 1e6:.0f}" for way in WAYS))
    console.print(table)
