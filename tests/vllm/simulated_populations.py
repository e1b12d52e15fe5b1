"""Populations of the worker that computes nothing: what becomes of their texts only depends on these."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

WORDS = 49
ENDS = 3  # tokens below it end a text


def _number(*parts: Any) -> int:
    """A number that only depends on ``parts``."""
    return zlib.crc32(repr(parts).encode())


def turn(name: str, texts: Sequence[Sequence[int]], is_open: Sequence[bool], limit: int) -> dict[str, Any]:
    """One step of the population ``name``: the fields of a ``Turn``."""
    size = len(texts)
    known = (name, [tuple(text) for text in texts])
    position = max(len(text) for text, continues in zip(texts, is_open, strict=True) if continues)
    tokens: list[int | None] = []
    continues = []
    for particle in range(size):
        token = _token(known, particle) if is_open[particle] else None
        tokens.append(token)
        continues.append(token is not None and token >= ENDS and position < limit - 1)
    ancestors = _ancestors(known, size)
    deaths = [None if one else "ended before" for one in is_open]
    return {
        "tokens": tokens,
        "ancestors": ancestors,
        "open": [continues[one] for one in ancestors],
        "log_weights": [-float(_number(known, one, "weight") % 100) for one in range(size)],
        "deaths": [deaths[one] for one in ancestors],
        "calls": 1,
        "resampled": ancestors != list(range(size)),
        "distinct_texts": None,
    }


def _token(known: Any, particle: int) -> int | None:
    """The next token of a particle; None if it is given up."""
    number = _number(known, particle)
    return None if number % 19 == 0 else number % WORDS


def _ancestors(known: Any, size: int) -> list[int]:
    """The particle whose text each continues; now and then some are replaced by others."""
    if _number(known, "resampled") % 3:
        return list(range(size))
    survivors = [one for one in range(size) if _number(known, one, "kept") % 3] or [size - 1]
    ancestors = []
    for one in range(size):
        replacement = survivors[_number(known, one) % len(survivors)]
        ancestors.append(one if one in survivors else replacement)
    return ancestors


def follow(name: str, size: int, limit: int) -> tuple[list[list[int]], dict[str, Any], int]:
    """The texts of a population, its last step, and the number of steps, by the plainest loop."""
    texts: list[list[int]] = [[] for _ in range(size)]
    is_open = [True] * size
    steps = 0
    last: dict[str, Any] = {}
    while any(is_open):
        last = turn(name, texts, is_open, limit)
        texts = extended(texts, last["tokens"])
        texts = [list(texts[one]) for one in last["ancestors"]]
        is_open = last["open"]
        steps += 1
    return texts, last, steps


def extended(texts: Sequence[list[int]], tokens: Sequence[int | None]) -> list[list[int]]:
    """Texts with the tokens of a step; None adds nothing."""
    return [text if token is None else [*text, token] for text, token in zip(texts, tokens, strict=True)]
