"""What is kept of a row between two passes, one value of ``cache=`` a file."""

from __future__ import annotations

from typing import Any

from .base import Caching, Kept, Reading
from .delayed_cache import DelayedCache
from .prefix_cache import PrefixCache

__all__ = ["Caching", "DelayedCache", "Kept", "PrefixCache", "Reading", "caching_of"]


def caching_of(value: Any) -> Caching | None:
    """The value of ``cache=``: False or None for none, True for finished blocks, or an object or its text.

    Raises:
        ValueError: it is unknown.
    """
    if value is None or value is False:
        return None
    return PrefixCache() if value is True else Caching.of(value)
