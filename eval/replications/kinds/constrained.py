"""Texts under a constraint: what :mod:`textguide.tasks.constrained` says of them, expected under their weights.

Fields: ``task``, ``measure``, ``items``, ``first``, ``tokens``, ``model``, ``dtype``, ``seed``; ``tested`` and
``baseline`` have ``particles`` and ``method`` of :class:`textguide.AWRS`, or no ``method`` for plain decoding.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

import textguide
from textguide import AWRS
from textguide.support.errors import GuidanceHadNoEffectWarning
from textguide.tasks.constrained import TASKS, Item

from .base import SIDES, Plan, Work, check, load, resumed

FIELDS = ("task", "measure", "items", "first", "tokens", "model", "dtype", "seed", "particles", "method")


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """Numbers an item under both sides."""
    check(test, FIELDS)
    if test["task"] not in TASKS:
        raise ValueError(f"task={test['task']!r} is unknown; use one of {', '.join(sorted(TASKS))}")
    task = TASKS[test["task"]](data)
    first = int(test.get("first", 0))
    model, tokenizer, _ = load(test)

    def write(side: str, item: Item, _: int) -> list[float]:
        options = {key: test[side][key] for key in ("particles", "method") if key in test[side]}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no text finished")
            warnings.simplefilter("ignore", GuidanceHadNoEffectWarning)
            out = textguide.generate(
                model, tokenizer, [[dict(message) for message in item.messages]],
                AWRS(task.constraint(item), **options) if options else None,
                max_new_tokens=int(test.get("tokens", task.max_new_tokens)), temperature=1.0, do_sample=True,
                seed=int(test.get("seed", 0)),
            )  # fmt: skip
        weights = out.log_weights if out.log_weights is not None else torch.zeros(len(out.texts), dtype=torch.float64)
        shares = weights.double().softmax(0).nan_to_num(0.0).tolist()
        checks = [
            task.check(item, text)[test["measure"]] if share else 0.0
            for text, share in zip(out.texts, shares, strict=True)
        ]
        return [round(sum(share * number for share, number in zip(shares, checks, strict=True)), 9)]

    return resumed(work, list(task.items())[first : first + int(test["items"])], write)


def plan(test: Mapping[str, Any]) -> Plan:
    """Positions of prompts and texts."""
    items = int(test["items"])
    rows = sum(int(test[side].get("particles", 1)) for side in SIDES)
    tokens = int(test.get("tokens", 96))
    return Plan(passes=len(SIDES) * items * tokens, tokens=items * rows * (tokens + 250))
