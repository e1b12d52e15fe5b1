"""Requests as JSON, and a request for text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

from ..guidance import Guidance, split
from ..guidance.base import SELF
from .errors import RefusedError
from .schema import SEED_LIMIT, RequestField

TEXT_OPTIONS = {
    "max_new_tokens": RequestField((int,), 1, "new_tokens", label="longest text, in tokens"),
    "temperature": RequestField((float,), 0, 100, label="0 or empty: the most likely token"),
    "top_p": RequestField((float,), label=""),
    "top_k": RequestField((int,), label=""),
    "min_p": RequestField((float,), label=""),
    "repetition_penalty": RequestField((float,), label=""),
    "no_repeat_ngram_size": RequestField((int,)),
    "seed": RequestField((int,), -SEED_LIMIT, SEED_LIMIT, label="makes sampling reproducible"),
}
"""Options of :func:`textguide.generate` that a request may set. Bounds that ``generate`` checks itself are left to
it."""


@dataclass(frozen=True)
class TextRequest:
    """One run that a client asked for.

    Args:
        prompt: a text or a chat.
        guidance: None for plain decoding.
        options: of :func:`textguide.generate`.
        forced: token ids that the text starts with, if it branches off another one.
    """

    prompt: Any
    guidance: Guidance | None
    options: dict[str, Any]
    forced: tuple[int, ...] = ()


def model_names(guidance: Guidance | None) -> set[str]:
    """Names of the further models that the branches of ``guidance`` run."""
    branching = split(guidance).branching
    return set() if branching is None else {branch.model for branch in branching.branches} - {SELF}


async def read_json(parts: AsyncIterable[bytes], most: int) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Args:
        parts: the body as it arrives.
        most: largest size in bytes.

    Raises:
        RefusedError: it is larger, or is not a JSON object.
    """
    data = b""
    async for part in parts:
        data += part
        if len(data) > most:
            raise RefusedError(f"the request is larger than {most:,} bytes; send less")
    return parse_json(data)


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        RefusedError: it is not a JSON object.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        values = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the request is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RefusedError("the request must be a JSON object")
    return values
