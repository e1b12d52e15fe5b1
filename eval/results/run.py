"""A finished run: what was measured, on which items, under which guidance."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textguide.support.files import plain
from textguide.support.showing import Block, Line, Shown, figure, table

from ..statistics.intervals import Selection, select_scale
from ..statistics.measures import MetricValue
from ..statistics.paired import Comparison, adjust, compare_items, shared_items

if TYPE_CHECKING:
    from textguide.guidance import Guidance


@dataclass
class TaskResult:
    """One task under one guidance.

    Args:
        task: name of the task.
        label: name of the guidance in this run.
        scale: its γ; None where it has none.
        metrics: metric, named as lm-eval names it (``acc,none``), → what it came to. The first one is the
            task's primary metric, which plots and the choice of a scale use.
        items: metric → one number an item, (n,), in the order of the data; for perplexities nats (above 0).
        weights: metric → words, bytes or tokens an item, for metrics that divide by them.
        item_ids: what identifies each item across runs, a hash of its content for instance.
        confidences: the probability that was given to the chosen answer, (n,), for calibration.
        truncated: contexts that were cut to the model's length.
        raw: lm-eval's own entry for this task; written as it is.
        extra: more to keep: seconds, passes. JSON values.
    """

    task: str
    label: str
    scale: float | None
    metrics: dict[str, MetricValue]
    items: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    weights: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    item_ids: tuple[str, ...] | None = None
    confidences: NDArray[np.float64] | None = None
    truncated: int = 0
    raw: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError(f"metrics={{}} of task {self.task!r} is empty; give at least one")
        self.items = {name: np.asarray(values, dtype=np.float64) for name, values in self.items.items()}
        self.weights = {name: np.asarray(values, dtype=np.float64) for name, values in self.weights.items()}
        self.item_ids = tuple(map(str, self.item_ids)) if self.item_ids is not None else None
        if self.confidences is not None:
            self.confidences = np.asarray(self.confidences, dtype=np.float64)
        lengths = {name: len(values) for name, values in self.items.items()}
        lengths.update({f"weights of {name}": len(values) for name, values in self.weights.items()})
        if self.item_ids is not None:
            lengths["item_ids"] = len(self.item_ids)
        if self.confidences is not None:
            lengths["confidences"] = len(self.confidences)
            # A softmax may sum to a little more than 1.
            self.confidences = np.where((self.confidences > 1) & (self.confidences < 1 + 1e-4), 1.0, self.confidences)
            known = self.confidences[np.isfinite(self.confidences)]
            if len(known) and (known.min() < 0 or known.max() > 1):
                raise ValueError(f"confidences of task {self.task!r} must lie in [0, 1]; give probabilities")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"task {self.task!r} must have one number an item everywhere; the lengths are {lengths}")

    @property
    def primary(self) -> str:
        """Name of the first metric."""
        return next(iter(self.metrics))


@dataclass
class RunResult(Shown):
    """Everything a run found, as it stands in its folder.

    Args:
        tasks: one entry for each task and guidance.
        guidances: label → guidance, as plain values, in the order of the sweep; None for no guidance. See
            :func:`as_guidances`.
        identity: what makes this run this run, the same as the journal's; derived from the rest where it is
            empty.
        fingerprints: name → fingerprint, of the model and the guidances.
        seed: of the run, and of the bootstrap.
        versions: package → version.
        machine: what it ran on; see :func:`textguide.eval.environment`.
        command: the command line.
        notes: sentences for the report.
        lm_eval: more of what lm-eval returned (``configs``, ``versions``, ``n-samples``, ``groups`` …);
            written at the top level as it is.
        select_on: which items choose the scale that is reported as the best: ``first-half``, ``second-half``
            or ``all``; None reports none.
        confidence: coverage of the intervals.
        resamples: bootstrap samples of the comparisons.
        date: seconds since 1970.
        comparisons: with the plain setting; computed where None.
        selections: task → the scale that did best, on its primary metric; computed where None.
    """

    tasks: list[TaskResult]
    guidances: dict[str, dict[str, Any] | None]
    identity: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    notes: list[str] = field(default_factory=list)
    lm_eval: dict[str, Any] = field(default_factory=dict)
    select_on: str | None = "first-half"
    confidence: float = 0.95
    resamples: int = 10_000
    date: float = field(default_factory=time.time)
    comparisons: list[Comparison] | None = None
    selections: dict[str, Selection] | None = None

    def __post_init__(self) -> None:
        self.guidances = as_guidances(self.guidances)
        seen: set[tuple[str, str]] = set()
        for result in self.tasks:
            if result.label not in self.guidances:
                known = ", ".join(self.guidances)
                raise ValueError(f"label={result.label!r} of task {result.task!r} is none of guidances: {known}")
            if (result.task, result.label) in seen:
                raise ValueError(f"tasks holds {result.task!r} under {result.label!r} twice; keep one of them")
            seen.add((result.task, result.label))
        if not self.identity:
            self.identity = {
                "tasks": self.task_names,
                "guidances": self.guidances,
                "fingerprints": self.fingerprints,
                "seed": self.seed,
            }

    def _shown(self) -> tuple[str, Sequence[Block]]:
        columns = list(dict.fromkeys((result.task, name) for result in self.tasks for name in result.metrics))
        against = {(c.task, c.metric, c.label): c for c in self.comparisons or ()}
        rows = []
        for label in self.labels:
            cells = []
            for task, name in columns:
                entry = self.get(task, label)
                cells.append(_interval(None if entry is None else entry.metrics.get(name)))
                difference = against.get((task, name, label))
                cells[-1] += (
                    "" if difference is None or difference.p_holm is None or difference.p_holm >= 0.05 else " *"
                )
            rows.append([label, *cells])
        header = ["guidance", *(f"{task}: {name.removesuffix(',none')}" for task, name in columns)]
        blocks: list[Block] = [
            table(header, rows, "l" + "r" * len(columns)),
            Line(
                f"with {self.confidence:.0%} intervals; * differs from {self.plain_label} (Holm's p < 0.05)", quiet=True
            ),
            *map(Line, self.notes),
        ]
        return f"{len(self.guidances)} settings on {', '.join(self.task_names)}", blocks

    @property
    def labels(self) -> list[str]:
        """The guidances' names, in the order of the sweep."""
        return list(self.guidances)

    @property
    def plain_label(self) -> str | None:
        """The setting without guidance: the one whose guidance is None or has scale 1; None where there is
        none."""
        for label, guidance in self.guidances.items():
            if not guidance:
                return label
        return next((result.label for result in self.tasks if result.scale == 1.0), None)

    @property
    def task_names(self) -> list[str]:
        """The tasks' names, in the order of the run."""
        return list(dict.fromkeys(result.task for result in self.tasks))

    def get(self, task: str, label: str) -> TaskResult | None:
        """The entry of a task under a guidance."""
        return next((result for result in self.tasks if (result.task, result.label) == (task, label)), None)

    def analyse(self) -> None:
        """Fill ``comparisons`` and ``selections`` where they are None.

        Raises:
            ValueError: ``select_on`` or ``confidence`` has a value that cannot work.
        """
        if self.comparisons is None:
            self.comparisons = self._compare()
        if self.selections is None:
            self.selections = self._select()

    def _compare(self) -> list[Comparison]:
        plain_label = self.plain_label
        found = []
        for task in self.task_names:
            base = self.get(task, plain_label) if plain_label is not None else None
            for label in self.labels:
                guided = self.get(task, label)
                if base is None or guided is None or guided is base:
                    continue
                for metric in guided.items:
                    pair = aligned(guided, base, metric)
                    if pair is not None:
                        names = {"task": task, "metric": metric, "label": label, "baseline": base.label}
                        found.append(
                            compare_items(
                                *pair,
                                **names,
                                confidence=self.confidence,
                                resamples=self.resamples,
                                seed=self.seed,
                            )
                        )
        return adjust(found)

    def _select(self) -> dict[str, Selection]:
        found: dict[str, Selection] = {}
        if self.select_on is None or len(self.guidances) < 2:
            return found
        for task in self.task_names:
            entries = [entry for label in self.labels if (entry := self.get(task, label))]
            metric = entries[0].primary
            columns = {entry.label: entry.items[metric] for entry in entries if metric in entry.items}
            sizes = {len(column) for column in columns.values()}
            if not all(np.isfinite(column).all() for column in columns.values()):
                continue
            if len(columns) < 2 or len(sizes) > 1 or (self.select_on != "all" and min(sizes) < 2):
                continue
            better = entries[0].metrics[metric].higher_is_better
            found[task] = select_scale(columns, self.select_on, better, self.confidence, self.seed, self.plain_label)
        return found


def _interval(value: MetricValue | None) -> str:
    if value is None:
        return "–"
    ends = "" if value.low is None or value.high is None else f" [{figure(value.low)}, {figure(value.high)}]"
    return f"{figure(value.value)}{ends}"


def aligned(
    first: TaskResult, second: TaskResult, metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The values of two entries on the items that both have; None where nothing says that the items are the
    same, or a value is not finite (an item of likelihood 0)."""
    a, b = first.items.get(metric), second.items.get(metric)
    if a is None or b is None or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    if first.item_ids is None and second.item_ids is None and first.task == second.task and len(a) == len(b):
        return a, b
    positions = shared_items(first.item_ids, second.item_ids)
    return None if positions is None else (a[positions[0]], b[positions[1]])


def as_guidances(
    sweep: Mapping[str, Any] | Sequence[tuple[str, Guidance | Mapping[str, Any] | None]],
) -> dict[str, dict[str, Any] | None]:
    """Label → plain JSON values, from a mapping or from pairs.

    Raises:
        ValueError: a label stands there twice, or there is none.
    """
    pairs = list(sweep.items()) if isinstance(sweep, Mapping) else list(sweep)
    found: dict[str, dict[str, Any] | None] = {}
    for label, guidance in pairs:
        if label in found:
            raise ValueError(f"guidances names {label!r} twice; give each guidance its own label")
        values = guidance.to_dict() if guidance is not None and hasattr(guidance, "to_dict") else guidance
        found[label] = plain(values) if values else None
    if not found:
        raise ValueError("guidances is empty; give at least [('plain', None)]")
    return found
