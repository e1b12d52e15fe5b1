"""The value of a metric: from per-item values to a figure with its interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Interval, mean_interval, normal_quantile, perplexity_interval

KINDS = ("mean", "perplexity", "bits", "given")


@dataclass(frozen=True)
class MetricValue:
    """A metric's value with its standard error and confidence interval; a part that is not known is None.

    Args:
        value: the figure itself; None if it is infinite or nan.
        stderr: its standard error.
        low: lower end of the interval.
        high: upper end.
        n: number of items.
        higher_is_better: whether a larger value is better.
        kind: how it was computed from the items: ``mean``, ``perplexity``, ``bits`` (per unit of weight), or ``given``
            for a value that the harness computed.
    """

    value: float | None
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    higher_is_better: bool = True
    kind: str = "mean"

    def __post_init__(self) -> None:
        for name in ("value", "stderr", "low", "high"):
            number = getattr(self, name)
            # JSON has no nan, and a value must not change when it is written and read again.
            object.__setattr__(self, name, _finite(number))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def given(
        cls,
        value: float,
        stderr: float | None = None,
        n: int = 0,
        higher_is_better: bool = True,
        confidence: float = 0.95,
    ) -> MetricValue:
        """A value that is not a mean over items (BLEU, Matthews' correlation), with the interval ``value ± z·stderr``.

        Args:
            value: as the harness computed it.
            stderr: its standard error; None: not known, and there is no interval.
            n: number of items.
            higher_is_better: whether a larger value is better.
            confidence: coverage of the interval.
        """
        error = _finite(stderr)
        if error is None:
            return cls(value, None, None, None, n, higher_is_better, "given")
        half = normal_quantile(confidence) * error
        return cls(value, error, value - half, value + half, n, higher_is_better, "given")


def measure(
    values: ArrayLike,
    kind: str = "mean",
    weights: ArrayLike | None = None,
    higher_is_better: bool | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> MetricValue:
    """Aggregate per-item values to a metric's value.

    Args:
        values: one number per item, (n,): 0 or 1 for accuracies, negative log-likelihoods in nats for perplexities and
            bits.
        kind: ``mean``; ``perplexity``, ``exp(Σ nll/Σ weight)``; or ``bits``, ``Σ nll/(Σ weight · ln 2)``.
        weights: words, bytes or tokens per item; None: 1 per item. Not for means.
        higher_is_better: None: True for means, False for the other kinds.
        confidence: coverage of the interval.
        seed: seed of the bootstrap.

    Returns:
        The value. A perplexity is infinite if an item has likelihood 0; its value is then None.

    Raises:
        ValueError: ``kind`` is unknown, or as for :func:`textguide.eval.mean_interval` and
            :func:`textguide.eval.perplexity_interval`.
    """
    if kind == "mean":
        if weights is not None:
            raise ValueError("weights= does not work with kind='mean'; leave it out, or use 'perplexity' or 'bits'")
        interval = mean_interval(values, confidence, seed=seed)
    elif kind in ("perplexity", "bits") and bool(np.isposinf(np.asarray(values, dtype=np.float64)).any()):
        interval = Interval(math.inf, math.nan, math.nan, math.inf)
    elif kind in ("perplexity", "bits"):
        interval = perplexity_interval(values, weights, confidence, seed=seed)
        if kind == "bits":
            perplexity, stderr, low, high = interval
            bits = [math.log2(x) for x in (perplexity, low, high)]
            interval = Interval(bits[0], stderr / perplexity / math.log(2), bits[1], bits[2])
    else:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS[:-1])}")
    better = kind == "mean" if higher_is_better is None else higher_is_better
    return MetricValue(*interval, n=len(np.asarray(values)), higher_is_better=better, kind=kind)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
