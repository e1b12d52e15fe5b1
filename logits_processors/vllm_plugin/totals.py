"""What all guided requests of an engine did, and how many stand there now. Knows no vLLM.

The numbers ride to the front end in vLLM's own statistics of each step (``metrics.py`` takes them out there), each step
with what came since the one before: so those of several engines add up.
"""

from __future__ import annotations

from collections.abc import Iterable

from .request_state import Report

PREFIX = "textguide:"
"""In front of the names under which the numbers travel, and which they have in Prometheus."""
SUMMED = {
    "guided_steps": "guided",
    "unguided_steps": "unguided",
    "skipped_steps": "skipped",
    "discarded_steps": "discarded",
    "branch_tokens": "branch_tokens",
    "group_preemptions": "preemptions",
}
"""Numbers that are sums over requests: the field of each request's report."""
COUNTED = {
    "guided_requests": "Guided requests that the engine took in.",
    "failed_requests": "Guided requests that the engine ended with an error.",
    "guided_steps": "Tokens drawn from a distribution that guidance changed.",
    "unguided_steps": "Tokens of guided requests drawn without: outside the window, at scale 1, or skipped.",
    "skipped_steps": "Tokens that guidance_skip_threshold left without branch requests.",
    "discarded_steps": "Tokens that a part of a group wrote alone, and that were thrown away.",
    "branch_tokens": "Tokens that branch requests read.",
    "group_preemptions": "How often guided requests were sent back to the queue.",
}
"""Numbers that only grow, each with what it counts."""
STANDING = {
    "groups_running": "Guided requests all of whose requests are running.",
    "groups_waiting": "Guided requests of which a request waits for a place, for cache or for the others.",
}
"""Numbers of the moment."""


class Totals:
    """What an engine's guided requests did since it started."""

    def __init__(self) -> None:
        self.taken = 0
        self.failed = 0
        self._ended = dict.fromkeys(SUMMED, 0)
        self._told: dict[str, int] = {}

    def end(self, report: Report) -> None:
        """A request is gone; what it did stays counted."""
        for name, field in SUMMED.items():
            self._ended[name] += getattr(report, field)

    def news(self, live: Iterable[Report], running: int, waiting: int) -> dict[str, int]:
        """What came since the last time, and the numbers of the moment, by the names under which they travel.

        Args:
            live: of the requests that are not gone.
            running: groups all of whose requests are running.
            waiting: other groups.
        """
        values = {"guided_requests": self.taken, "failed_requests": self.failed, **self._ended}
        for report in live:
            for name, field in SUMMED.items():
                values[name] += getattr(report, field)
        news = {name: value - self._told.get(name, 0) for name, value in values.items()}
        self._told = values
        news |= {"groups_running": running, "groups_waiting": waiting}
        return {f"{PREFIX}{name}": value for name, value in news.items()}
