"""Choosing a guidance's scale, schedule and window: successive halving on one half of the items, a report on the other.

All candidates are tried on a few items, the better half of them on more items, and so on, until the first half of the
items is used up (Jamieson and Talwalkar, arXiv 1502.07943). A candidate is ranked by all of its items so far, so that
the chosen one was tried on all of them. The report uses the second half, with the ordinary paired interval; the mean on
the first half, which is biased upwards by the choice, is shown too.
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

from textguide.guidance import Guidance
from textguide.guidance.spec import label as label_of
from textguide.models import bundled, load
from textguide.support import files
from textguide.support.files import write_json

from ..results.journal import Journal
from ..results.run import RunResult
from ..statistics.intervals import mean_interval, paired_bootstrap
from .options import SweepOptions
from .sweep import model_identity, run_sweep

SCALES = (1.1, 1.25, 1.5, 1.75, 2.0, 3.0)
SCHEDULES = ("constant", "linear", "linear-decreasing")
WINDOWS = ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
KEPT = 0.5
"""Share of the candidates that take part in the next round."""
PROBE = 4
"""Number of items that are timed to estimate how many the budget allows."""
LEAST = 8
"""Least number of items in the first round."""
PLAIN = "plain"

Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Round:
    """One round of halving.

    Args:
        first: number of its first item.
        items: its number of items.
        candidates: labels that took part.
        means: means over all items so far, by label.
        kept: labels that take part in the next round.
    """

    first: int
    items: int
    candidates: tuple[str, ...]
    means: dict[str, float]
    kept: tuple[str, ...]


def candidates(
    guidance: Guidance | Sequence[Guidance],
    scales: Sequence[float] = SCALES,
    schedules: Sequence[str] = SCHEDULES,
    windows: Sequence[tuple[float, float]] = WINDOWS,
) -> list[Guidance]:
    """The guidance, or each of several, with every scale, schedule and window.

    A guidance that does not have the fields ``schedule`` or ``start`` is varied only in its other fields.

    Args:
        guidance: one guidance with a scale, or several.
        scales, schedules, windows: the values to try.

    Raises:
        ValueError: a guidance does not have a scale.
    """
    every = [guidance] if isinstance(guidance, Guidance) else list(guidance)
    for one in every:
        if not hasattr(one, "scale"):
            raise ValueError(f"guidance={label_of(one)!r} does not have a scale to choose; use one that has, e.g. cfg")
    variants: dict[str, Guidance] = {}
    for one, scale, schedule, (start, stop) in itertools.product(every, scales, schedules, windows):
        if schedule != "constant" and (start, stop) != (0.0, 1.0):
            continue  # a schedule already varies guidance over the text, as a window does
        fields: dict[str, Any] = {"scale": scale}
        if hasattr(one, "schedule"):
            fields["schedule"] = schedule
        if hasattr(one, "start"):
            fields |= {"start": start, "stop": stop}
        variant = replace(one, **fields)  # type: ignore[type-var]
        variants.setdefault(label_of(variant), variant)
    return list(variants.values())


def rounds_of(candidates: int, items: int, least: int = LEAST) -> list[tuple[int, int]]:
    """``(candidates, items)`` of each round: the number of candidates halves while the number of new items doubles.

    The last round uses all remaining items.

    Args:
        candidates: number of candidates in the first round.
        items: number of items of all rounds.
        least: least number of items in the first round.
    """
    sizes = []
    left = candidates
    while left > 1:
        sizes.append(left)
        left = max(1, math.ceil(left * KEPT))
    shares = [2**number for number in range(len(sizes))]
    rounds = []
    used = 0
    for number, size in enumerate(sizes):
        count = items - used
        if number < len(sizes) - 1:
            count = min(count, max(least, items * shares[number] // sum(shares)))
        if count <= 0:
            break
        rounds.append((size, count))
        used += count
    return rounds


def tune(
    guidance: Guidance | Sequence[Guidance],
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
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Choose a scale, a schedule and a window on one half of the items, and report the choice on the other half.

    Args:
        guidance: the guidance to tune, or several to choose among; their other fields are not changed.
        task: name of a task.
        budget: approximate time in seconds. The time per item is measured once on a few items; the number of items that
            follows is written down, so that a resumed run has the same rounds.
        output: folder; an unfinished run with the same arguments is resumed.
        metric: under lm-eval's name; None: the task's primary metric.
        limit: largest number of items, for the choice and the report together.
        options: see :class:`SweepOptions`; ``limit``, ``first`` and ``select_on`` are set here.
        model_args: as for :func:`run_sweep`.
        scales, schedules, windows: the values to try.
        progress: called with a line after each round.

    Returns:
        The content of ``tuning.json``: ``chosen`` (the guidance as text), ``rounds``, ``selected`` (its mean on the
        items of the choice), ``reported`` and ``plain`` (intervals on the other items), ``difference`` (paired, chosen
        minus plain), ``optimism`` (selected minus reported) and ``stability``, the share of resamples of the last
        round's items in which the same candidate wins.

    Raises:
        ValueError: an argument is invalid, or the budget allows too few items.
    """
    if not budget > 0:
        raise ValueError(f"budget={budget} must be above 0 seconds")
    options = replace(options or SweepOptions(), select_on=None, limit=None, first=0, plots=False)
    tried = {label_of(candidate): candidate for candidate in candidates(guidance, scales, schedules, windows)}
    if len(tried) < 2:
        names = ", ".join(tried) or "nothing"
        raise ValueError(f"there is only {names} to try; name more scales=, schedules= or windows=")
    identity = {
        "tune": task,
        "metric": metric,
        "limit": limit,
        "budget": budget,
        "candidates": list(tried),
        "fingerprints": {name: candidate.fingerprint for name, candidate in tried.items()},
        "seed": options.seed,
        "model": model_identity(model_args or {}),
        "num_fewshot": options.num_fewshot,
        "gen_kwargs": options.gen_kwargs,
    }
    files.folder(output, "output").mkdir(parents=True, exist_ok=True)
    arguments = _load_model(dict(model_args or {}))
    with Journal.open(output / "tuning.jsonl", identity) as journal:
        trials = _Trials(task, tried, metric, options, arguments, output, journal)
        items = trials.items_within(budget, limit)
        half = items // 2
        rounds, values, sign = _halve(trials, half, progress)
        last = rounds[-1]
        chosen = _ranked(last.candidates, last.means, sign)[0]
        report, _ = trials.values([chosen], half, items - half, "report")
    selected = float(values[chosen].mean())
    interval = mean_interval(report[chosen], seed=options.seed)
    result = {
        "task": task,
        "chosen": chosen,
        "guidance": tried[chosen].to_dict(),
        "candidates": len(tried),
        "items": {"chose": half, "report": items - half},
        "rounds": [asdict(one) for one in rounds],
        "selected": selected,
        "reported": interval._asdict(),
        "plain": mean_interval(report[PLAIN], seed=options.seed)._asdict(),
        "difference": paired_bootstrap(report[chosen], report[PLAIN], seed=options.seed)._asdict(),
        "optimism": sign * (selected - interval.mean),
        "stability": stability({label: sign * values[label] for label in last.candidates}, chosen, options.seed),
    }
    write_json(output / "tuning.json", result)
    return result


def _load_model(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the model itself instead of its name, since every round uses it."""
    name = arguments.get("pretrained", bundled.NAME)
    if isinstance(name, str):
        loading = {key: arguments.pop(key, None) for key in ("device", "dtype")}
        loading["trust_remote_code"] = arguments.pop("trust_remote_code", False)
        arguments["pretrained"], arguments["tokenizer"] = load(name, **loading)
    return arguments


@dataclass(frozen=True)
class _Trials:
    """The candidates, and how they are tried on items of the task; the arguments are those of :func:`tune`."""

    task: str
    tried: Mapping[str, Guidance]
    metric: str | None
    options: SweepOptions
    model_args: Mapping[str, Any]
    output: Path
    journal: Journal

    def items_within(self, budget: float, limit: int | None) -> int:
        """The number of items that the budget allows, which is measured in the first run and then written down.

        Raises:
            ValueError: it is too small for two halves.
        """

        def measure() -> dict[str, int]:
            # An earlier, interrupted measurement is removed: resumed, it would look cheaper than it is.
            shutil.rmtree(self.output / "probe", ignore_errors=True)
            start = time.perf_counter()
            self._sweep(list(self.tried), 0, PROBE, "probe")
            seconds = (time.perf_counter() - start) / PROBE
            items = int(budget / seconds)
            if limit is not None:
                items = min(items, limit)
            return {"items": items - items % 2}

        items = int(self.journal.record("plan", measure)["items"])
        if items < 2 * LEAST:
            raise ValueError(
                f"budget={budget:g} s allows {items} items, and at least {2 * LEAST} are needed; raise the budget, or "
                "try fewer scales, schedules and windows"
            )
        return items

    def values(self, labels: Sequence[str], first: int, items: int, key: str) -> tuple[Values, bool]:
        """The metric per item of plain decoding and of some candidates, and whether higher values are better.

        Args:
            labels: of the candidates.
            first: number of the first item.
            items: number of items.
            key: names the folder of the sweep, and its record in the journal.

        Raises:
            ValueError: the task does not have the metric per item.
        """

        def measure() -> dict[str, Any]:
            run = self._sweep(labels, first, items, key)
            entries = {}
            for label in (PLAIN, *labels):
                entry = run.get(run.task_names[0], label)
                assert entry is not None
                entries[label] = entry
            plain = entries[PLAIN]
            metric = self.metric or next(iter(plain.items))
            if metric not in plain.items:
                raise ValueError(
                    f"metric={metric!r} does not have values per item; use one of {', '.join(plain.items)}"
                )
            values = {label: entry.items[metric].tolist() for label, entry in entries.items()}
            return {"values": values, "better": plain.metrics[metric].higher_is_better, "metric": metric}

        record = self.journal.record(key, measure)
        return {label: np.asarray(row) for label, row in record["values"].items()}, record["better"]

    def _sweep(self, labels: Sequence[str], first: int, items: int, key: str) -> RunResult:
        run = run_sweep(
            [self.task],
            [None, *(self.tried[label] for label in labels)],
            options=replace(self.options, first=first, limit=items),
            model_args=self.model_args,
            output=self.output / key,
        )
        assert run is not None
        return run


def _halve(trials: _Trials, items: int, progress: Callable[[str], None]) -> tuple[list[Round], Values, int]:
    """Successive halving on the first ``items`` items.

    Returns:
        The rounds, the values per item of each candidate over all its rounds, and 1 or −1 with which the mean is
        multiplied so that more is better.
    """
    alive = list(trials.tried)
    values: Values = {label: np.empty(0) for label in (PLAIN, *alive)}
    rounds: list[Round] = []
    first = 0
    sign = 1
    for number, (_, count) in enumerate(rounds_of(len(alive), items)):
        new_values, higher_is_better = trials.values(alive, first, count, f"round-{number}")
        sign = 1 if higher_is_better else -1
        for label in (PLAIN, *alive):
            values[label] = np.concatenate([values[label], new_values[label]])
        means = {label: float(values[label].mean()) for label in alive}
        ranked = _ranked(alive, means, sign)
        best = ranked[: max(1, math.ceil(len(alive) * KEPT))]
        kept = [label for label in alive if label in best]
        rounds.append(Round(first, count, tuple(alive), means, tuple(kept)))
        progress(f"round {number + 1}: {count} items, {len(alive)} candidates; best {ranked[0]} {means[ranked[0]]:.4g}")
        first += count
        alive = kept
    return rounds, values, sign


def _ranked(labels: Sequence[str], means: Mapping[str, float], sign: int) -> list[str]:
    """The labels by mean, the best first; equal ones keep their order."""
    return sorted(labels, key=lambda label: -sign * means[label])


def stability(values: Values, chosen: str, seed: int = 0, resamples: int = 2000) -> float:
    """The share of resamples of the items in which ``chosen`` has the largest mean; ties are divided equally.

    Args:
        values: by label one number per item; more is better.
        chosen: one of the labels.
        seed: of the resamples.
        resamples: their number.
    """
    labels = list(values)
    table = np.stack([values[label] for label in labels])
    rows = np.random.default_rng(seed).integers(0, table.shape[1], size=(resamples, table.shape[1]))
    means = np.stack([row[rows].mean(1) for row in table])
    best = means >= means.max(0) - 1e-12
    return float((best[labels.index(chosen)] / best.sum(0)).mean())
