"""What guided requests did, in Prometheus's figures of a server. Knows no vLLM but the shape of its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .totals import COUNTED, PREFIX, STANDING

REFUSED = "refused_requests"
"""The one number that no engine knows: requests that were answered with HTTP 400."""


class GuidanceMetrics:
    """One of vLLM's loggers of statistics: takes our numbers out of them, for Prometheus and for the log.

    Args:
        engines: numbers of the engines; the figures have them as a label.
        registry: Prometheus's; None: the one that vLLM uses.
    """

    def __init__(self, engines: Sequence[int] = (0,), registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge

        place = {"labelnames": ["engine"], "registry": registry or REGISTRY}
        self._counters = {name: Counter(f"{PREFIX}{name}", text, **place) for name, text in COUNTED.items()}
        # Several processes may show figures, each of the engines that it hears of.
        gauges: dict[str, Any] = {"multiprocess_mode": "mostrecent", **place}
        self._gauges = {name: Gauge(f"{PREFIX}{name}", text, **gauges) for name, text in STANDING.items()}
        refused = "Guided requests that were answered with HTTP 400."
        self._refused = Counter(f"{PREFIX}{REFUSED}", refused, registry=registry or REGISTRY)
        for figure in (*self._counters.values(), *self._gauges.values()):
            for engine in engines:
                figure.labels(str(engine))

    def refuse(self) -> None:
        """A guided request was answered with HTTP 400."""
        self._refused.inc()

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """What vLLM calls for every step of every engine."""
        carried = getattr(scheduler_stats, "num_kv_fetch_reqs_by_stage", None)
        if not carried:
            return
        # Taken out, since vLLM would log the numbers as its own.
        ours = {key.removeprefix(PREFIX): carried.pop(key) for key in list(carried) if key.startswith(PREFIX)}
        for name, value in ours.items():
            if name in self._counters:
                self._counters[name].labels(str(engine_idx)).inc(value)
            else:
                self._gauges[name].labels(str(engine_idx)).set(value)

    def log(self) -> None:
        """vLLM's own line is enough."""

    def log_engine_initialized(self) -> None:
        """Nothing is known of an engine before it runs."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """An engine that sleeps guides nobody."""

    def record_admission_rejection(self, reason: str) -> None:
        """vLLM counts these itself."""
