"""Filters for lm-eval's tasks; importing this module registers them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter

from .selection import most_consistent


@register_filter("most_consistent")
class MostConsistent(Filter):
    """Of several answers to an item the one whose words the others share most (arXiv 2307.06857)."""

    def __init__(self) -> None:
        """No state."""

    def apply(self, resps: Iterable[Sequence[str]], docs: Any) -> list[list[str]]:
        """One answer an item, in a list."""
        return [[answers[most_consistent(answers)]] for answers in resps]
