"""What became of guidance in an adapter: plain, guided and distilled decoding side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import textguide
from textguide.distillation.texts import openings
from textguide.engine.given_texts import as_items, distributions, leading
from textguide.forward.low_rank import merged
from textguide.guidance import Guidance, algebra, as_guidance, split
from textguide.tasks import selection

from ..statistics.intervals import mean_interval, paired_bootstrap
from .costs import token_costs
from .options import SweepOptions
from .sweep import run_sweep

WAYS = ("plain", "guided", "distilled")
NEW = 40
"""Tokens of each text that is written."""
AT_ONCE = 8


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
    """Compare a model as it is, under guidance, and with the adapter that was trained to stand for the guidance.

    Args:
        model: the model as it is.
        tokenizer: its tokenizer.
        guidance: what was distilled.
        adapter: folder of the adapter.
        prompts: what texts begin with; the adapter should not have been trained on them. None: openings of one word
            from the end of the vocabulary's list, which training reaches last.
        tasks: names of tasks, as for ``textguide eval``.
        limit: texts, and items a task, at most.
        models: further models of the guidance.
        data: folder of the tasks' data.
        seed: of the texts.
        repeats: how often speed is measured; medians are told.
        measures: what else is measured of the continuations, by name: a mood, whether they keep to a form.

    Returns:
        ``texts``: for each way ``kl`` from the guided distribution to its own (nats a token, on texts that guidance
        wrote; None for guidance that weighs whole texts), ``perplexity`` of sampled texts under the plain model,
        ``distinct_2`` and ``repeated_4`` (shares of bigrams that are distinct, of 4-grams that occurred before in their
        text), and the means of ``measures``, each with an interval over texts. Of texts that guidance weighs one a
        prompt counts, drawn by its weight.
        ``tasks``: accuracy of each way, and the differences of distilled to the others, paired. ``bill``: seconds and
        rows a token, and bytes of weights.
    """
    guide = as_guidance(guidance)
    student = merged(copy.deepcopy(model), adapter)
    chosen = list(prompts) if prompts is not None else openings(tokenizer)[::-1]
    chosen = [chosen[n % len(chosen)] for n in range(limit)]
    ways: dict[str, tuple[Any, Guidance | None]] = {
        "plain": (model, None), "guided": (model, guide), "distilled": (student, None)
    }  # fmt: skip
    written: dict[str, list[list[int]]] = {}
    for way, (one, guided) in ways.items():
        out = textguide.generate(
            one, tokenizer, chosen, guided, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
            max_new_tokens=NEW, seed=seed, batch_size=32, models=models if guided is not None else None,
        )  # fmt: skip
        rows = out.weighted_sample(seed) if out.log_weights is not None else range(len(out.new_tokens))
        written[way] = [out.new_tokens[row] for row in rows]
    texts: dict[str, Any] = {}
    divergences = _divergences(model, student, tokenizer, guide, chosen, written["guided"], models or {})
    for way in WAYS:
        own = written[way]
        nll = -_log_likelihood(model, tokenizer, chosen, own)
        lengths = np.array([len(tokens) for tokens in own], dtype=float)
        perplexity = mean_interval(nll / lengths)
        texts[way] = {
            "kl": None if divergences is None else mean_interval(divergences[way])._asdict(),
            "nll": perplexity._asdict(),
            "perplexity": {key: float(np.exp(value)) for key, value in perplexity._asdict().items() if key != "stderr"},
            "distinct_2": mean_interval([_distinct(tokens, 2) for tokens in own])._asdict(),
            "repeated_4": mean_interval([1.0 - _distinct(tokens, 4) for tokens in own])._asdict(),
            **{
                name: mean_interval(
                    [measure(tokenizer.decode(row, skip_special_tokens=True)) for row in own]
                )._asdict()
                for name, measure in (measures or {}).items()
            },
        }  # fmt: skip
    # The first one warms up: a kernel that is chosen, a cache that is filled.
    token_costs(ways, tokenizer, chosen[:4], models, new=4, repeats=1)
    costs = token_costs(ways, tokenizer, chosen[:4], models, new=24, repeats=repeats)
    bill = {
        way: {
            "seconds a token": cost.seconds, "against plain": cost.seconds / costs["plain"].seconds,
            "rows a token": cost.passes,
            "bytes": sum(weight.numel() * weight.element_size() for weight in ways[way][0].parameters()),
        }
        for way, cost in costs.items()
    }  # fmt: skip
    return {
        "texts": texts,
        "tasks": _tasks(ways, tokenizer, tasks, limit, data, models),
        "bill": bill,
        "limit": limit,
    }


def _log_likelihood(model: Any, tokenizer: Any, prompts: Sequence[Any], tokens: Sequence[list[int]]) -> np.ndarray:
    return textguide.score(model, tokenizer, list(prompts), list(tokens)).log_likelihood[0].numpy()


def _divergences(
    model: Any, student: Any, tokenizer: Any, guide: Any, prompts: Sequence[Any], tokens: Any, models: Mapping[str, Any]
) -> dict[str, list[float]] | None:
    """KL from the guided distribution to each way's, nats a token, of each text that guidance wrote; None where it
    weighs whole texts, and has no distribution of single steps."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        items = as_items(model, tokenizer, list(prompts), list(tokens), None, leading([guide]))
        distributions(model, items[:1], guide, tokenizer=tokenizer, models=models)
    except ValueError:
        if split(guide).sampling is None:
            raise
        return None
    for start in range(0, len(items), AT_ONCE):
        batch = items[start : start + AT_ONCE]
        lengths = [len(item.continuation) for item in batch]
        target = distributions(model, batch, guide, tokenizer=tokenizer, models=models)
        for way, one in (("plain", model), ("distilled", student)):
            own = distributions(one, batch, None)
            kl = algebra.kl_divergence(target, own)
            found[way] += [float(part.mean()) for part in kl.split(lengths)]
        found["guided"] += [0.0] * len(batch)
    return found


def _distinct(row: Sequence[int], n: int) -> float:
    """The share of n-grams that are distinct; 1 where there is none."""
    return selection.distinct([""], n, lambda _: list(map(str, row))) if len(row) >= n else 1.0


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
    """The part ``tasks`` of what :func:`judge` returns; arguments as there."""
    ways = {"plain": (model, None), "guided": (model, as_guidance(guidance))}
    student = merged(copy.deepcopy(model), adapter)
    return _tasks({**ways, "distilled": (student, None)}, tokenizer, tasks, limit, data, None)


def _tasks(
    ways: Mapping[str, tuple[Any, Any]], tokenizer: Any, tasks: Sequence[str], limit: int, data: str | None, models: Any
) -> dict[str, Any]:
    if not tasks:
        return {}
    options = SweepOptions(data=data, limit=limit, select_on=None)
    more = {"models": dict(models)} if models else {}
    both = run_sweep(
        tasks, [None, ways["guided"][1]], options=options,
        model_args={"pretrained": ways["plain"][0], "tokenizer": tokenizer, **more},
    )  # fmt: skip
    own = run_sweep(
        tasks, [None], options=options, model_args={"pretrained": ways["distilled"][0], "tokenizer": tokenizer}
    )
    assert both is not None
    assert own is not None
    found: dict[str, Any] = {}
    for task in tasks:
        plain, guided = (one for one in both.tasks if one.task == task)
        distilled = next(one for one in own.tasks if one.task == task)
        metric = next(name for name in plain.items if name in plain.metrics)
        values = {"plain": plain.items[metric], "guided": guided.items[metric], "distilled": distilled.items[metric]}
        found[task] = {
            "metric": metric,
            **{way: mean_interval(values[way])._asdict() for way in WAYS},
            **{
                f"distilled - {way}": paired_bootstrap(values["distilled"], values[way])._asdict()
                for way in ("plain", "guided")
            },
        }
    return found


def show(found: Mapping[str, Any]) -> None:
    """Print it as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", *WAYS, title=f"texts of {NEW} tokens, {found['limit']} a way")
    for key, label in (
        ("kl", "KL(guided ‖ ·), nats a token"), ("perplexity", "perplexity under plain"),
        ("distinct_2", "distinct bigrams"), ("repeated_4", "repeated 4-grams"),
    ):  # fmt: skip
        cells = [found["texts"][way][key] for way in WAYS]
        if cells[0] is None:
            continue
        table.add_row(label, *(f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in cells))
    console.print(table)
    if found["tasks"]:
        table = Table(title="accuracy, and what distilled has more")
        for name in ("task", *WAYS, "than plain", "than guided"):
            table.add_column(name, no_wrap=name == "task")
        for task, row in found["tasks"].items():
            cells = [f"{row[way]['mean']:.3f}" for way in WAYS]
            ends = [row[f"distilled - {way}"] for way in ("plain", "guided")]
            table.add_row(task, *cells, *(f"{e['difference']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}]" for e in ends))
        console.print(table)
    table = Table("", *WAYS, title="bill")
    bill = found["bill"]
    table.add_row("ms a token", *(f"{1000 * bill[way]['seconds a token']:.1f}" for way in WAYS))
    table.add_row("against plain", *(f"{bill[way]['against plain']:.2f}" for way in WAYS))
    table.add_row("rows a token", *(f"{bill[way]['rows a token']:.2f}" for way in WAYS))
    table.add_row("MB of weights", *(f"{bill[way]['bytes'] / 1e6:.0f}" for way in WAYS))
    console.print(table)
