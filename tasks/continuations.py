"""The task ``continuations``: sampled continuations of neutral prompts, judged for sentiment and for repetition.

The prompts are those of DExperts' human evaluation; VADER (Hutto and Gilbert, 2014), which knows no classifier that
may have steered, says whether a continuation is positive.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from textguide.support.errors import MissingExtraError

from .loaders import Splits, in_memory, local_file
from .selection import distinct

POSITIVE = 0.05
"""The compound score from which VADER's authors call a text positive."""


def neutral(data: str | None = None, **_: Any) -> Splits:
    """The neutral prompts, ``{"prompt"}``.

    Raises:
        ValueError: there is no data folder, or the file is not in it.
        MissingExtraError: the package that judges continuations is not installed.
    """
    _vader()  # before the continuations are written, which takes long
    path = local_file("prompts/unique_prompts.json", data)
    groups = json.loads(path.read_text(encoding="utf-8"))
    rows = [{"prompt": text} for name, prompts in groups.items() if "neutral" in name for text in prompts.values()]
    return in_memory(rows, str(path))


def results(doc: dict[str, str], answers: list[Any]) -> dict[str, float]:
    """What the continuations of one prompt came to.

    ``positive`` is the share that is, ``sentiment`` the mean in [−1, 1]; ``distinct_2`` in [0, 1] counts the pairs of
    words of all of them together.

    Args:
        doc: the prompt.
        answers: one continuation, or one list of several.
    """
    texts = [answers[0]] if isinstance(answers[0], str) else list(answers[0])
    scores = [float(_vader().polarity_scores(text)["compound"]) for text in texts]
    return {
        "positive": sum(score >= POSITIVE for score in scores) / len(scores),
        "sentiment": sum(scores) / len(scores),
        "distinct_2": distinct(texts, 2),
    }


@cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtraError("vaderSentiment", "sentiment", "the task continuations") from error
    return SentimentIntensityAnalyzer()
