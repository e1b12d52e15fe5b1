"""What a text says against what the model remembers: 1 where the ending that the text asks for is more likely than the
usual one.

Fields: ``items``, ``first``, ``model``, ``dtype``, ``models``, ``at_once``. In a guidance ``{document}`` stands for the
instruction of each item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import textguide
from textguide.guidance import ContextAware

from . import material
from .base import SIDES, Plan, Work, check, guidance_of, load, resumed, rows_of, split_up

FIELDS = ("items", "first", "model", "dtype", "models", "at_once")
DOCUMENT = "document"


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """1 or 0 an item under both sides."""
    check(test, FIELDS)
    first = int(test.get("first", 0))
    given = material.proverbs()[first : first + int(test["items"])]
    model, tokenizer, models = load(test)

    def prefer(side: str, part: list[tuple[str, str, str, str]], _: int) -> list[float]:
        guidance = guidance_of(test, side, document=DOCUMENT)
        if isinstance(guidance, ContextAware) and guidance.context == DOCUMENT:
            guidance = replace(guidance, context=[document for document, *_ in part for _ in range(2)])
        contexts = [document + question for document, question, *_ in part for _ in range(2)]
        endings = [ending for *_, asked, usual in part for ending in (asked, usual)]
        scored = textguide.score(model, tokenizer, contexts, endings, guidance, models=models)
        pairs = scored.log_likelihood[0].view(-1, 2)
        return (pairs[:, 0] > pairs[:, 1]).double().tolist()

    return resumed(work, split_up(given, int(test.get("at_once", 10))), prefer)


def plan(test: Mapping[str, Any]) -> Plan:
    """Positions of both endings."""
    items = int(test["items"])
    rows = sum(rows_of(guidance_of(test, side, document=DOCUMENT)) for side in SIDES)
    return Plan(passes=rows * max(1, items // 10), tokens=rows * items * 2 * 24)
