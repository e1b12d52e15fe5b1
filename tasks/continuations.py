"""The task ``continuations``: sampled continuations of neutral prompts, judged for sentiment and for repetition.

The prompts are those of DExperts' human evaluation; VADER (Hutto and Gilbert, 2014), which knows no classifier that
may have steered, says whether a continuation is positive.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from textguide.errors import MissingExtraError

from .readers import Splits, in_memory, local_file

POSITIVE = 0.05
"""The compound score from which VADER's authors call a text positive."""


def neutral(data: str | None = None, **_: Any) -> Splits:
    """The neutral prompts, ``{"prompt"}``.

    Raises:
        ValueError: there is no data folder, or the file is not in it.
    """
    path = local_file("prompts/unique_prompts.json", data)
    groups = json.loads(path.read_text(encoding="utf-8"))
    rows = [{"prompt": text} for name, prompts in groups.items() if "neutral" in name for text in prompts.values()]
    return in_memory(rows, str(path))


def results(doc: dict[str, str], answers: list[str]) -> dict[str, float]:
    """What one continuation came to: ``positive`` (0 or 1), ``sentiment`` in [−1, 1], ``distinct_2`` in [0, 1]."""
    sentiment = float(_vader().polarity_scores(answers[0])["compound"])
    return {
        "positive": float(sentiment >= POSITIVE),
        "sentiment": sentiment,
        "distinct_2": distinct(answers[0], 2),
    }


def distinct(text: str, n: int) -> float:
    """The share of a text's n-grams of words that are different ones (Li et al., arXiv 1510.03055); 1 where none."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


@cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtraError("vaderSentiment", "sentiment", "the task continuations") from error
    return SentimentIntensityAnalyzer()
