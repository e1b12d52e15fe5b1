"""A finished run: its metrics, per task, item and guidance."""

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
from .machine import environment

if TYPE_CHECKING:
    from textguide.guidance import Guidance


@dataclass
class TaskResult:
    """One task under one guidance.

    Args:
        task: name of the task.
        label: name of the guidance in this run.
        scale: its γ; None if it does not have one.
        metrics: value by metric, under lm-eval's names (``acc,none``). The first one is the task's primary metric,
            which plots and the choice of a scale use.
        items: by metric one number per item, (n,), in the order of the data; nats (above 0) for perplexities.
        weights: by metric the words, bytes or tokens per item, for metrics that divide by them.
        item_ids: identifiers that are the same in every run, such as a hash of the item's content.
        confidences: the probability of the chosen answer, (n,), for calibration.
        truncated: number of contexts that were cut to the model's length.
        raw: lm-eval's own entry for this task, written unchanged.
        extra: more values to write, such as seconds or passes. JSON values.

    Raises:
        ValueError: there is no metric, the arrays have different lengths, or a confidence lies outside [0, 1].
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
            raise ValueError(f"metrics={{}} of task {self.task!r} is empty; pass at least one")
        self.items = {name: np.asarray(values, dtype=np.float64) for name, values in self.items.items()}
        self.weights = {name: np.asarray(values, dtype=np.float64) for name, values in self.weights.items()}
        lengths = {name: len(values) for name, values in self.items.items()}
        lengths.update({f"weights of {name}": len(values) for name, values in self.weights.items()})
        if self.item_ids is not None:
            self.item_ids = tuple(map(str, self.item_ids))
            lengths["item_ids"] = len(self.item_ids)
        if self.confidences is not None:
            self.confidences = self._probabilities(self.confidences)
            lengths["confidences"] = len(self.confidences)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"task {self.task!r} must have one number per item everywhere; the lengths are {lengths}")

    def _probabilities(self, confidences: NDArray[np.float64]) -> NDArray[np.float64]:
        values = np.asarray(confidences, dtype=np.float64)
        # Rounding of a softmax may leave a probability slightly above 1.
        values = np.where((values > 1) & (values < 1 + 1e-4), 1.0, values)
        known = values[np.isfinite(values)]
        if len(known) and (known.min() < 0 or known.max() > 1):
            raise ValueError(f"confidences of task {self.task!r} must lie in [0, 1]; pass probabilities")
        return values

    @property
    def primary(self) -> str:
        """Name of the first metric."""
        return next(iter(self.metrics))


@dataclass
class RunResult(Shown):
    """The results of a run, as its folder holds them.

    Args:
        tasks: one entry per task and guidance.
        guidances: guidance by label, as plain values, in the order of the sweep; None for no guidance. See
            :func:`as_guidances`.
        identity: what two runs must share to be the same run, as in the journal; made from the other fields if it is
            empty.
        fingerprints: fingerprint by name, of the model and the guidances.
        seed: seed of the run and of the bootstrap.
        versions: version by package.
        machine: where it ran; see :func:`textguide.eval.environment`.
        command: the command line.
        notes: sentences for the report.
        lm_eval: further results of lm-eval (``configs``, ``versions``, ``n-samples``, ``groups`` …), written at the top
            level unchanged.
        select_on: the items on which the best scale is chosen: ``first-half``, ``second-half`` or ``all``; None: no
            scale is chosen.
        confidence: coverage of the intervals.
        resamples: bootstrap samples of the comparisons.
        date: seconds since 1970.
        comparisons: with the plain setting; None: computed by :meth:`analyse`.
        selections: by task the scale that did best on the primary metric; None: computed by :meth:`analyse`.

    Raises:
        ValueError: a task has a label that is not in ``guidances``, or the same label twice.
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
                raise ValueError(f"label={result.label!r} of task {result.task!r} is not one of guidances: {known}")
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

    @classmethod
    def of(
        cls,
        tasks: list[TaskResult],
        settings: Sequence[Guidance | None],
        identity: dict[str, Any],
        *,
        device: Any,
        dtype: Any,
        **fields: Any,
    ) -> RunResult:
        """A run that this process has just measured, with its package versions and machine.

        Args:
            tasks: see the class.
            settings: the guidances, in the order of the sweep.
            identity: see the class; its ``fingerprints`` become those of the run.
            device: where the model is.
            dtype: of its weights.
            **fields: the other fields of the class.
        """
        versions, machine = environment()
        return cls(
            tasks,
            as_guidances(list(zip(labels_of(settings), settings, strict=True))),
            identity,
            identity["fingerprints"],
            versions=versions,
            machine={**machine, "device": str(device), "dtype": str(dtype)},
            **fields,
        )

    def _shown(self) -> tuple[str, Sequence[Block]]:
        columns = list(dict.fromkeys((result.task, name) for result in self.tasks for name in result.metrics))
        significant = set()
        for comparison in self.comparisons or ():
            if comparison.p_holm is not None and comparison.p_holm < 0.05:
                significant.add((comparison.task, comparison.metric, comparison.label))
        rows = []
        for label in self.labels:
            cells = []
            for task, name in columns:
                entry = self.get(task, label)
                cell = _interval(None if entry is None else entry.metrics.get(name))
                cells.append(f"{cell} *" if (task, name, label) in significant else cell)
            rows.append([label, *cells])
        header = ["guidance", *(f"{task}: {name.removesuffix(',none')}" for task, name in columns)]
        caption = f"with {self.confidence:.0%} intervals; * differs from {self.plain_label} (Holm's p < 0.05)"
        blocks: list[Block] = [table(header, rows, "l" + "r" * len(columns)), Line(caption, quiet=True)]
        blocks += map(Line, self.notes)
        return f"{len(self.guidances)} settings on {', '.join(self.task_names)}", blocks

    @property
    def labels(self) -> list[str]:
        """The guidances' names, in the order of the sweep."""
        return list(self.guidances)

    @property
    def plain_label(self) -> str | None:
        """The setting without guidance, whose guidance is None or has scale 1; None if there is no such setting."""
        for label, guidance in self.guidances.items():
            if not guidance:
                return label
        return next((result.label for result in self.tasks if result.scale == 1.0), None)

    @property
    def task_names(self) -> list[str]:
        """The tasks' names, in the order of the run."""
        return list(dict.fromkeys(result.task for result in self.tasks))

    def get(self, task: str, label: str) -> TaskResult | None:
        """The entry of a task under a guidance; None if it was not measured."""
        return next((result for result in self.tasks if (result.task, result.label) == (task, label)), None)

    def analyse(self) -> None:
        """Compute ``comparisons`` and ``selections`` if they are None.

        Raises:
            ValueError: ``select_on`` or ``confidence`` is invalid.
        """
        if self.comparisons is None:
            self.comparisons = self._compare()
        if self.selections is None:
            self.selections = self._select()

    def _compare(self) -> list[Comparison]:
        plain_label = self.plain_label
        comparisons: list[Comparison] = []
        if plain_label is None:
            return comparisons
        for task in self.task_names:
            base = self.get(task, plain_label)
            for label in self.labels:
                guided = self.get(task, label)
                if base is None or guided is None or guided is base:
                    continue
                for metric in guided.items:
                    pair = aligned(guided, base, metric)
                    if pair is None:
                        continue
                    comparison = compare_items(
                        *pair,
                        task=task,
                        metric=metric,
                        label=label,
                        baseline=base.label,
                        confidence=self.confidence,
                        resamples=self.resamples,
                        seed=self.seed,
                    )
                    comparisons.append(comparison)
        return adjust(comparisons)

    def _select(self) -> dict[str, Selection]:
        selections: dict[str, Selection] = {}
        if self.select_on is None or len(self.guidances) < 2:
            return selections
        for task in self.task_names:
            entries = [entry for entry in self.tasks if entry.task == task]
            entries.sort(key=lambda entry: self.labels.index(entry.label))
            metric = entries[0].primary
            columns = {entry.label: entry.items[metric] for entry in entries if metric in entry.items}
            if not _selectable(list(columns.values()), self.select_on):
                continue
            better = entries[0].metrics[metric].higher_is_better
            selections[task] = select_scale(
                columns, self.select_on, better, self.confidence, self.seed, self.plain_label
            )
        return selections


def _selectable(columns: Sequence[NDArray[np.float64]], select_on: str) -> bool:
    """Whether there are several columns of finite values on the same items, and enough items for two halves."""
    sizes = {len(column) for column in columns}
    if len(columns) < 2 or len(sizes) > 1:
        return False
    if select_on != "all" and min(sizes) < 2:
        return False
    return all(bool(np.isfinite(column).all()) for column in columns)


def _interval(value: MetricValue | None) -> str:
    if value is None:
        return "–"
    ends = "" if value.low is None or value.high is None else f" [{figure(value.low)}, {figure(value.high)}]"
    return f"{figure(value.value)}{ends}"


def aligned(
    first: TaskResult, second: TaskResult, metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The values of two entries on the items that both have; None if the items are not known to be the same, or if a
    value is not finite (an item of likelihood 0)."""
    a = first.items.get(metric)
    b = second.items.get(metric)
    if a is None or b is None or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    if first.item_ids is None and second.item_ids is None and first.task == second.task and len(a) == len(b):
        return a, b
    positions = shared_items(first.item_ids, second.item_ids)
    return None if positions is None else (a[positions[0]], b[positions[1]])


def labels_of(settings: Sequence[Guidance | None]) -> list[str]:
    """A name for each setting.

    Raises:
        ValueError: a setting occurs twice.
    """
    # Guidance imports torch, which reading a run does not need.
    from textguide.guidance.spec import label

    labels = [label(setting) for setting in settings]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"the setting {twice[0]!r} occurs twice; leave one out")
    return labels


def as_guidances(
    sweep: Mapping[str, Any] | Sequence[tuple[str, Guidance | Mapping[str, Any] | None]],
) -> dict[str, dict[str, Any] | None]:
    """The guidances of a sweep as plain JSON values by label.

    Args:
        sweep: a mapping from labels to guidances, or pairs of a label and a guidance.

    Raises:
        ValueError: a label occurs twice, or there is no guidance.
    """
    pairs = list(sweep.items()) if isinstance(sweep, Mapping) else list(sweep)
    guidances: dict[str, dict[str, Any] | None] = {}
    for label, guidance in pairs:
        if label in guidances:
            raise ValueError(f"guidances names {label!r} twice; give each guidance its own label")
        values = guidance.to_dict() if guidance is not None and hasattr(guidance, "to_dict") else guidance
        guidances[label] = plain(values) if values else None
    if not guidances:
        raise ValueError("guidances is empty; pass at least [('plain', None)]")
    return guidances
