"""What guided requests did, as Prometheus metrics of a server. Knows no vLLM but the shape of its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .borrowed_fields import PREFIX, take_figures
from .totals import COUNTERS, GAUGES

REFUSED = "refused_requests"
"""The only figure that no engine knows: requests that were answered with HTTP 400."""


class GuidanceMetrics:
    """One of vLLM's loggers of statistics, which exports textguide's figures.

    Args:
        engines: numbers of the engines; they are a label of the metrics.
        registry: Prometheus's; None: the one that vLLM uses.
    """

    def __init__(self, engines: Sequence[int] = (0,), registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge

        registry = registry or REGISTRY
        options = {"labelnames": ["engine"], "registry": registry}
        self._counters = {name: Counter(f"{PREFIX}{name}", text, **options) for name, text in COUNTERS.items()}
        # Several processes may export metrics, each of the engines whose statistics it receives.
        latest: dict[str, Any] = {"multiprocess_mode": "mostrecent", **options}
        self._gauges = {name: Gauge(f"{PREFIX}{name}", text, **latest) for name, text in GAUGES.items()}
        self._refused = Counter(
            f"{PREFIX}{REFUSED}", "Guided requests that were answered with HTTP 400.", registry=registry
        )
        # Prometheus shows a metric once it has a label, and these should be there before the first request.
        for metric in (*self._counters.values(), *self._gauges.values()):
            for engine in engines:
                metric.labels(str(engine))

    def refuse(self) -> None:
        """Count a guided request that was answered with HTTP 400."""
        self._refused.inc()

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Export the figures of a step; vLLM calls this for every step of every engine."""
        for name, value in take_figures(scheduler_stats).items():
            if name in self._counters:
                self._counters[name].labels(str(engine_idx)).inc(value)
            else:
                self._gauges[name].labels(str(engine_idx)).set(value)

    def log(self) -> None:
        """Write nothing: vLLM's own line is enough."""

    def log_engine_initialized(self) -> None:
        """Write nothing: there are no figures before an engine runs."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Record nothing: an engine that sleeps guides no request."""

    def record_admission_rejection(self, reason: str) -> None:
        """Record nothing: vLLM counts these itself."""
