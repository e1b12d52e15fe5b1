"""What all guided requests of an engine did, and how many groups there are now. Knows no vLLM.

The figures travel to the front end with vLLM's own statistics of each step (``borrowed_fields.py``; ``metrics.py``
exports them there). Each step carries the changes since the one before, so the figures of several engines add up.
"""

from __future__ import annotations

from collections.abc import Iterable

from .request_state import RequestState

SUMMED = {
    "guided_steps": "guided",
    "unguided_steps": "unguided",
    "discarded_steps": "discarded",
    "branch_tokens": "branch_tokens",
    "group_preemptions": "preemptions",
}
"""Figures that are sums over requests: the field of each request's state."""
COUNTERS = {
    "guided_requests": "Guided requests that the engine received.",
    "failed_requests": "Guided requests that the engine ended with an error.",
    "guided_steps": "Tokens drawn from a distribution that guidance changed.",
    "unguided_steps": "Tokens of guided requests drawn without guidance: outside its window, or at scale 1.",
    "discarded_steps": "Tokens that a part of a group wrote alone, and that were discarded.",
    "branch_tokens": "Tokens that branch requests read.",
    "group_preemptions": "How often guided requests were sent back to the queue.",
}
"""Figures that only grow, with their help texts."""
GAUGES = {
    "groups_running": "Guided requests all of whose requests are running.",
    "groups_waiting": "Guided requests of which a request waits for a place, for cache or for the others.",
}
"""Figures of the moment, with their help texts."""


class Totals:
    """What an engine's guided requests did since it started."""

    def __init__(self) -> None:
        self.received = 0
        self.failed = 0
        self._ended = dict.fromkeys(SUMMED, 0)
        self._reported: dict[str, int] = {}

    def end(self, state: RequestState) -> None:
        """Keep counting what a request did that has ended."""
        for name, field in SUMMED.items():
            self._ended[name] += getattr(state, field)

    def changes(self, live: Iterable[RequestState], running: int, waiting: int) -> dict[str, int]:
        """The changes of the counters since the last call, and the gauges, by name.

        Args:
            live: states of the requests that have not ended.
            running: groups all of whose requests are running.
            waiting: other groups.
        """
        values = {"guided_requests": self.received, "failed_requests": self.failed, **self._ended}
        for state in live:
            for name, field in SUMMED.items():
                values[name] += getattr(state, field)
        changes = {name: value - self._reported.get(name, 0) for name, value in values.items()}
        self._reported = values
        return {**changes, "groups_running": running, "groups_waiting": waiting}
