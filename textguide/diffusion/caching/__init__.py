"""What is kept of a row between two passes, one value of ``cache=`` per file."""

from __future__ import annotations

from typing import Any

from .base import CachedReader, Caching, Reading
from .delayed_cache import DelayedCache
from .prefix_cache import PrefixCache

__all__ = ["CachedReader", "Caching", "DelayedCache", "PrefixCache", "Reading", "resolve_cache"]


def resolve_cache(value: Any) -> Caching | None:
    """The value of ``cache=`` as an object: False or None for no cache, True for keys of finished blocks, an object, or
    its text.

    Raises:
        ValueError: it is unknown.
    """
    if value is None or value is False:
        return None
    return PrefixCache() if value is True else Caching.of(value)
