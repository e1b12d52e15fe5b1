"""Functions that an engine is started with."""

from __future__ import annotations


def no_e(text: str) -> bool:
    """A lipogram, of lower case but for the first letter."""
    return "e" not in text.lower() and text[2:] == text[2:].lower()


def short_words(text: str) -> float:
    """Log potentials that prefer short words."""
    return -0.2 * max(map(len, text.split(" ")))
