"""From lm-eval's samples of a task to its metrics, with one number per item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textguide.guidance import Guidance
from textguide.step.effect import Effect

from ..results.run import TaskResult
from ..statistics.measures import MetricValue, measure
from .priors import METRIC, prior_matched

Array = NDArray[np.float64]
Samples = list[dict[str, Any]]

KINDS = {
    "perplexity": "perplexity",
    "word_perplexity": "perplexity",
    "byte_perplexity": "perplexity",
    "bits_per_byte": "bits",
}
"""Metrics that are not means over items, and the kind of :func:`measure` that computes them."""


def task_result(
    name: str, label: str, setting: Guidance | None, run: Mapping[str, Any], effect: Effect | None
) -> TaskResult:
    """The result of a task under one setting.

    Args:
        name: of the task.
        label: of the setting.
        setting: the guidance.
        run: what ``lm_eval.simple_evaluate`` returned.
        effect: what guidance did during generation; None if nothing was generated.
    """
    raw = {key: value for key, value in run["results"][name].items() if key != "alias"}
    higher = run.get("higher_is_better", {}).get(name, {})
    samples = _by_filter(run["samples"][name])
    metrics: dict[str, MetricValue] = {}
    items: dict[str, Array] = {}
    weights: dict[str, Array] = {}
    for key in sorted((key for key in raw if "," in key and "_stderr" not in key), key=_order):
        metric, filter_name = key.split(",", 1)
        rows = samples.get(filter_name, [])
        values, sizes = _values(metric, rows)
        measured = _measured(metric, values, sizes, raw[key], higher.get(metric))
        if measured is None:
            stderr = raw.get(f"{metric}_stderr,{filter_name}")
            known = stderr if isinstance(stderr, float) else None
            metrics[key] = MetricValue.given(float(raw[key]), known, len(rows), higher.get(metric))
            continue
        metrics[key] = measured
        assert values is not None
        items[key] = values
        if sizes is not None:
            weights[key] = sizes
    first = next(iter(samples.values()))
    extra: dict[str, Any] = {}
    if effect is not None:
        extra["effect"] = effect.to_dict()
    matched = prior_matched(first) if "acc,none" in items else None
    if matched is not None:
        items[f"{METRIC},none"] = matched.right
        metrics[f"{METRIC},none"] = measure(matched.right)
        extra["prior"] = {"before": matched.prior, "log_weights": matched.weights}
    return TaskResult(
        task=name,
        label=label,
        scale=1.0 if setting is None else getattr(setting, "scale", None),
        metrics=metrics,
        items=items,
        weights=weights,
        item_ids=_ids(first),
        confidences=_confidences(first),
        raw=raw,
        extra=extra,
    )


def _by_filter(samples: Samples) -> dict[str, Samples]:
    """Samples by the name of lm-eval's filter, in the order of the data."""
    found: dict[str, Samples] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        found.setdefault(str(sample.get("filter", "none")), []).append(sample)
    return found


def _values(metric: str, samples: Samples) -> tuple[Array | None, Array | None]:
    """One number per item and its weight; None if the metric is not computed from such numbers.

    lm-eval's samples have log-likelihoods for perplexities; their sign is changed.
    """
    values = [sample.get(metric) for sample in samples]
    if not values:
        return None, None
    sign = -1.0 if metric in KINDS else 1.0
    if all(isinstance(value, (bool, int, float)) for value in values):
        return sign * np.asarray(values, dtype=np.float64), None
    if metric in KINDS and all(isinstance(value, (tuple, list)) and len(value) == 2 for value in values):
        pairs = np.asarray(values, dtype=np.float64)
        return sign * pairs[:, 0], pairs[:, 1]
    return None, None


def _measured(
    metric: str, values: Array | None, weights: Array | None, reported: Any, higher_is_better: bool | None
) -> MetricValue | None:
    """The value computed from items; None if it is not what lm-eval reports, since the metric is then of another
    kind."""
    if values is None or not isinstance(reported, (int, float)):
        return None
    kind = KINDS.get(metric, "mean")
    measured = measure(values, kind=kind, weights=weights, higher_is_better=higher_is_better)
    if measured.value is None or not math.isclose(measured.value, reported, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return measured


def _order(key: str) -> tuple[int, str]:
    """Accuracies first, since plots and the choice of a setting use the first metric."""
    metric = key.split(",", 1)[0]
    rank = 0
    if metric in KINDS:
        rank = 2
    elif metric.endswith("_norm"):
        rank = 1
    return rank, "" if metric == "acc" else key


def _ids(samples: Samples) -> tuple[str, ...]:
    """lm-eval's hashes of the documents, or their numbers if hashes are missing or not unique."""
    hashes = [str(sample.get("doc_hash", "")) for sample in samples]
    if len(set(hashes)) == len(hashes):
        return tuple(hashes)
    return tuple(str(sample["doc_id"]) for sample in samples)


def _confidences(samples: Samples) -> Array | None:
    """The probability of the chosen answer among the choices; None if the task is not multiple choice."""
    confidences = []
    for sample in samples:
        answers = sample.get("filtered_resps", [])
        if len(answers) < 2 or not all(isinstance(answer, (tuple, list)) and len(answer) == 2 for answer in answers):
            return None
        scores = np.asarray([float(answer[0]) for answer in answers])
        if not np.isfinite(scores).any():
            return None
        shares = np.exp(scores - scores.max())
        confidences.append(float(shares.max() / shares.sum()))
    return np.asarray(confidences)
