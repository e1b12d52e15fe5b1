"""Populations of the worker that computes nothing: what becomes of their texts depends on these alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

WORDS = 49
ENDS = 3  # tokens below it end a text


def _number(*parts: Any) -> int:
    return zlib.crc32(repr(parts).encode())


def turn(name: str, texts: Sequence[Sequence[int]], opened: Sequence[bool], limit: int) -> dict[str, Any]:
    """One step of the population ``name``: the fields of a ``Turn``."""
    size, known = len(texts), (name, [tuple(text) for text in texts])
    position = max(len(text) for text, going in zip(texts, opened, strict=True) if going)
    tokens: list[int | None] = [None] * size
    going, deaths = list(opened), [None if open_ else "ended before" for open_ in opened]
    for particle in range(size):
        if opened[particle]:
            number = _number(known, particle)
            tokens[particle] = None if number % 19 == 0 else number % WORDS
            going[particle] = tokens[particle] is not None and tokens[particle] >= ENDS and position < limit - 1
    ancestors = list(range(size))
    if _number(known, "resampled") % 3 == 0:
        kept = [one for one in range(size) if _number(known, one, "kept") % 3] or [size - 1]
        ancestors = [one if one in kept else kept[_number(known, one) % len(kept)] for one in range(size)]
    return {
        "tokens": tokens,
        "ancestors": ancestors,
        "open": [going[one] for one in ancestors],
        "log_weights": [-float(_number(known, one, "weight") % 100) for one in range(size)],
        "deaths": [deaths[one] for one in ancestors],
        "calls": 1,
        "resampled": ancestors != list(range(size)),
    }


def follow(name: str, size: int, limit: int) -> tuple[list[list[int]], dict[str, Any], int]:
    """The texts of a population, its last step, and the number of steps, by the plainest loop."""
    texts: list[list[int]] = [[] for _ in range(size)]
    opened, steps, last = [True] * size, 0, {}
    while any(opened):
        last = turn(name, texts, opened, limit)
        texts = [text if token is None else [*text, token] for text, token in zip(texts, last["tokens"], strict=True)]
        texts, opened = [list(texts[one]) for one in last["ancestors"]], last["open"]
        steps += 1
    return texts, last, steps
