"""Instructions that contradict what the model memorised: 1 if the ending that an instruction requires is more likely
than the usual one.

Fields: ``items``, ``first``, ``model``, ``dtype``, ``models``, ``at_once``. In a guidance, ``{document}`` is replaced
by the instruction of each item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from textguide.guidance import ContextAware
from textguide.scoring import score

from . import material
from .base import SIDES, Plan, Work, check, chunks, guidance_of, load, recorded, rows_of

FIELDS = ("items", "first", "model", "dtype", "models", "at_once")
DOCUMENT = "document"


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """1 or 0 per item under both sides."""
    check(test, FIELDS)
    first = int(test.get("first", 0))
    proverbs = material.proverbs()[first : first + int(test["items"])]
    model, tokenizer, models = load(test)

    def prefer(side: str, part: list[tuple[str, str, str, str]], _: int) -> list[float]:
        documents: list[str] = []
        contexts: list[str] = []
        endings: list[str] = []
        for document, question, required, usual in part:
            for ending in (required, usual):
                documents.append(document)
                contexts.append(document + question)
                endings.append(ending)
        guidance = guidance_of(test, side, document=DOCUMENT)
        if isinstance(guidance, ContextAware) and guidance.context == DOCUMENT:
            guidance = replace(guidance, context=documents)
        scores = score(model, tokenizer, contexts, endings, guidance, models=models)
        pairs = scores.log_likelihood[0].view(-1, 2)
        return (pairs[:, 0] > pairs[:, 1]).double().tolist()

    return recorded(work, chunks(proverbs, int(test.get("at_once", 10))), prefer)


def plan(test: Mapping[str, Any]) -> Plan:
    """The cost of both endings."""
    items = int(test["items"])
    rows = sum(rows_of(guidance_of(test, side, document=DOCUMENT)) for side in SIDES)
    return Plan(passes=rows * max(1, items // 10), tokens=rows * items * 2 * 24)
