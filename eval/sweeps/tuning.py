"""Choosing a guidance's scale, schedule and window: successive halving on one half of the items, a report on the other.

All candidates are tried on a few items, the better half of them on more, and so on, until the items that may choose are
used up (Jamieson and Talwalkar, arXiv 1502.07943). What each candidate did on the items so far counts, so that the one
chosen has seen them all. The report is made on items that chose nothing, with the ordinary paired interval; the figure
on the items that chose is shown beside it as what it is, too good.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import textguide
from textguide.guidance import Guidance
from textguide.guidance.spec import label as label_of
from textguide.models import bundled
from textguide.support.files import write_json

from ..results.journal import Journal
from ..results.run import RunResult
from ..statistics.intervals import mean_interval, paired_bootstrap
from .options import SweepOptions, described_model
from .sweep import run_sweep

SCALES = (1.1, 1.25, 1.5, 1.75, 2.0, 3.0)
SCHEDULES = ("constant", "linear", "linear-decreasing")
WINDOWS = ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
KEPT = 0.5
"""Share of the candidates that a round leaves."""
PROBE = 4
"""Items that are timed to learn how many the budget allows."""
LEAST = 8
"""Fewest items of the first round."""
PLAIN = "plain"

Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Round:
    """One round of halving.

    Args:
        first: number of its first item.
        items: how many it has.
        candidates: labels that took part.
        means: of all items so far, by label.
        kept: labels that go on.
    """

    first: int
    items: int
    candidates: tuple[str, ...]
    means: dict[str, float]
    kept: tuple[str, ...]


def candidates(
    guidance: Guidance,
    scales: Sequence[float] = SCALES,
    schedules: Sequence[str] = SCHEDULES,
    windows: Sequence[tuple[float, float]] = WINDOWS,
) -> list[Guidance]:
    """The guidance under every scale, schedule and window; combinations that the method refuses are left out.

    A guidance without a field ``schedule`` or ``start`` is varied in what it has.

    Raises:
        ValueError: it has no scale.
    """
    if not hasattr(guidance, "scale"):
        raise ValueError(f"guidance={label_of(guidance)!r} has no scale to choose; name one that has, such as cfg")
    found: dict[str, Guidance] = {}
    for scale, schedule, (start, stop) in itertools.product(scales, schedules, windows):
        fields: dict[str, Any] = {"scale": scale}
        if hasattr(guidance, "schedule"):
            fields["schedule"] = schedule
        if hasattr(guidance, "start"):
            fields |= {"start": start, "stop": stop}
        if schedule != "constant" and (start, stop) != (0.0, 1.0):
            continue  # a window and a schedule say the same thing twice
        one = replace(guidance, **fields)  # type: ignore[type-var]
        found.setdefault(label_of(one), one)
    return list(found.values())


def rounds_of(candidates: int, items: int, least: int = LEAST) -> list[tuple[int, int]]:
    """``(candidates, items)`` of each round: the number of candidates halves, and that of new items doubles where the
    items last; the last round takes the rest.

    Args:
        candidates: of the first round.
        items: that may choose.
        least: items of the first round, at least.
    """
    sizes = []
    left = candidates
    while left > 1:
        sizes.append(left)
        left = max(1, math.ceil(left * KEPT))
    shares = [2**n for n in range(len(sizes))]
    found, used = [], 0
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        count = max(least, items * share // sum(shares)) if number < len(sizes) - 1 else items - used
        count = min(count, items - used)
        if count <= 0:
            break
        found.append((size, count))
        used += count
    return found


def tune(
    guidance: Guidance,
    task: str,
    *,
    budget: float,
    output: Path,
    metric: str | None = None,
    limit: int | None = None,
    options: SweepOptions | None = None,
    model_args: Mapping[str, Any] | None = None,
    scales: Sequence[float] = SCALES,
    schedules: Sequence[str] = SCHEDULES,
    windows: Sequence[tuple[float, float]] = WINDOWS,
    said: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Choose among scales, schedules and windows, and report the choice on items that did not choose.

    Args:
        guidance: what is tuned; its other fields stay as they are.
        task: name of a task.
        budget: seconds, about. They are measured once on a few items, and how many items each round gets is written
            down then, so that a run that was killed goes on to the same end.
        output: folder. A killed run with the same arguments goes on where it was.
        metric: as lm-eval names it; None: the task's primary one.
        limit: most items, choice and report together.
        options: see :class:`SweepOptions`; ``limit``, ``first`` and ``select_on`` are set here.
        model_args: as for :func:`run_sweep`.
        scales, schedules, windows: what is tried.
        said: gets a line for each round.

    Returns:
        What ``tuning.json`` holds: ``chosen`` (text of the guidance), ``rounds``, ``selected`` (its mean on the items
        that chose), ``reported`` and ``plain`` (intervals on the others), ``difference`` (paired, chosen minus plain),
        ``optimism`` (selected minus reported) and ``stability``, the share of resamples of the last round's items in
        which the same candidate wins.

    Raises:
        ValueError: an argument has a value that cannot work, or the budget allows too few items.
    """
    if not budget > 0:
        raise ValueError(f"budget={budget} must be above 0 seconds")
    options = replace(options or SweepOptions(), select_on=None, limit=None, first=0, plots=False)
    tried = {label_of(one): one for one in candidates(guidance, scales, schedules, windows)}
    if len(tried) < 2:
        raise ValueError(f"{', '.join(tried) or 'nothing'} alone is tried; name more scales=, schedules= or windows=")
    identity = {
        "tune": task, "metric": metric, "limit": limit, "budget": budget, "candidates": list(tried),
        "fingerprints": {name: one.fingerprint for name, one in tried.items()}, "seed": options.seed,
        "model": described_model(model_args or {}), "num_fewshot": options.num_fewshot,
        "gen_kwargs": options.gen_kwargs,
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    arguments = _loaded(dict(model_args or {}))
    with Journal.open(output / "tuning.jsonl", identity) as journal:

        def swept(labels: Sequence[str], first: int, items: int, key: str) -> RunResult:
            run = run_sweep(
                [task], [None, *(tried[label] for label in labels)], options=replace(options, first=first, limit=items),
                model_args=arguments, output=output / key,
            )  # fmt: skip
            assert run is not None
            return run

        def values(labels: Sequence[str], first: int, items: int, key: str) -> tuple[Values, bool]:
            if key not in journal:
                run = swept(labels, first, items, key)
                entries = {label: run.get(run.task_names[0], label) for label in (PLAIN, *labels)}
                name = metric or next(iter(entries[PLAIN].items))  # type: ignore[union-attr]
                if name not in entries[PLAIN].items:  # type: ignore[union-attr]
                    known = ", ".join(entries[PLAIN].items)  # type: ignore[union-attr]
                    raise ValueError(f"metric={name!r} has no value an item; use one of {known}")
                better = entries[PLAIN].metrics[name].higher_is_better  # type: ignore[union-attr]
                found = {label: one.items[name].tolist() for label, one in entries.items() if one is not None}
                journal.append(key, {"values": found, "better": better, "metric": name})
            record = journal.done[key]
            return {label: np.asarray(row) for label, row in record["values"].items()}, record["better"]

        if "plan" not in journal:
            # From the start, if a run was killed here: what is left of it would look cheaper than it is.
            shutil.rmtree(output / "probe", ignore_errors=True)
            begun = time.perf_counter()
            swept(list(tried), 0, PROBE, "probe")
            seconds = (time.perf_counter() - begun) / PROBE
            items = int(budget / seconds)
            if limit is not None:
                items = min(items, limit)
            journal.append("plan", {"items": items - items % 2})
        items = int(journal.done["plan"]["items"])
        if items < 2 * LEAST:
            raise ValueError(
                f"budget={budget:g} s allows {items} items, and {2 * LEAST} are the fewest; raise the budget, or try "
                "fewer scales, schedules and windows"
            )
        half = items // 2
        alive, so_far, history = list(tried), {label: np.empty(0) for label in (PLAIN, *tried)}, []
        sign, first = 1, 0
        for number, (_, count) in enumerate(rounds_of(len(tried), half)):
            found, higher = values(alive, first, count, f"round-{number}")
            sign = 1 if higher else -1
            for label in (PLAIN, *alive):
                so_far[label] = np.concatenate([so_far[label], found[label]])
            means = {label: float(so_far[label].mean()) for label in alive}
            ranked = sorted(alive, key=lambda label: -sign * means[label])  # the first of equals stays in front
            kept = [label for label in alive if label in ranked[: max(1, math.ceil(len(alive) * KEPT))]]
            history.append(Round(first, count, tuple(alive), means, tuple(kept)))
            said(f"round {number + 1}: {count} items, {len(alive)} candidates; best {ranked[0]} {means[ranked[0]]:.4g}")
            first += count
            alive = kept
        last = history[-1]
        chosen = sorted(last.candidates, key=lambda label: -sign * last.means[label])[0]
        report, _ = values([chosen], half, items - half, "report")
    selected = float(so_far[chosen].mean())
    interval = mean_interval(report[chosen], seed=options.seed)
    result = {
        "task": task,
        "chosen": chosen,
        "guidance": tried[chosen].to_dict(),
        "candidates": len(tried),
        "items": {"chose": half, "report": items - half},
        "rounds": [asdict(one) for one in history],
        "selected": selected,
        "reported": interval._asdict(),
        "plain": mean_interval(report[PLAIN], seed=options.seed)._asdict(),
        "difference": paired_bootstrap(report[chosen], report[PLAIN], seed=options.seed)._asdict(),
        "optimism": sign * (selected - interval.mean),
        "stability": stability({label: sign * so_far[label] for label in last.candidates}, chosen, options.seed),
    }
    write_json(output / "tuning.json", result)
    return result


def _loaded(arguments: dict[str, Any]) -> dict[str, Any]:
    """With the model itself in place of its name: every round uses it."""
    if isinstance(name := arguments.get("pretrained", bundled.NAME), str):
        loading = {key: arguments.pop(key, None) for key in ("device", "dtype")}
        arguments["pretrained"], arguments["tokenizer"] = textguide.load(
            name, trust_remote_code=arguments.pop("trust_remote_code", False), **loading
        )
    return arguments


def stability(values: Values, chosen: str, seed: int = 0, resamples: int = 2000) -> float:
    """The share of resamples of the items in which ``chosen`` has the largest mean; ties are shared."""
    labels = list(values)
    table = np.stack([values[label] for label in labels])
    rows = np.random.default_rng(seed).integers(0, table.shape[1], size=(resamples, table.shape[1]))
    means = np.stack([row[rows].mean(1) for row in table])
    best = means >= means.max(0) - 1e-12
    return float((best[labels.index(chosen)] / best.sum(0)).mean())
