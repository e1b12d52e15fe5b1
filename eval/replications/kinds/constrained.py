"""Texts under a constraint: a measure of :mod:`textguide.tasks.constrained`, as its expectation under the weights.

Fields: ``task``, ``measure``, ``items``, ``first``, ``tokens``, ``model``, ``dtype``, ``seed``; ``tested`` and
``baseline`` have ``particles`` and ``method`` (the sampler) of :class:`textguide.AWRS`, or neither for plain decoding.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from textguide.constraints import Constraint
from textguide.generation import generate
from textguide.guidance import AWRS
from textguide.support.errors import GuidanceHadNoEffectWarning
from textguide.tasks.constrained import TASKS, Item

from .base import SIDES, Plan, Work, check, load, recorded

FIELDS = ("task", "measure", "items", "first", "tokens", "model", "dtype", "seed", "particles", "method")


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """Numbers per item under both sides."""
    check(test, FIELDS)
    if test["task"] not in TASKS:
        raise ValueError(f"task={test['task']!r} is unknown; use one of {', '.join(sorted(TASKS))}")
    task = TASKS[test["task"]](data)
    first = int(test.get("first", 0))
    model, tokenizer, _ = load(test)

    def write(side: str, item: Item, _: int) -> list[float]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no text finished")
            warnings.simplefilter("ignore", GuidanceHadNoEffectWarning)
            result = generate(
                model,
                tokenizer,
                [[dict(message) for message in item.messages]],
                _guidance(test, side, task.constraint(item)),
                max_new_tokens=int(test.get("tokens", task.max_new_tokens)),
                temperature=1.0,
                do_sample=True,
                seed=int(test.get("seed", 0)),
            )
        log_weights = result.log_weights
        if log_weights is None:
            log_weights = torch.zeros(len(result.texts), dtype=torch.float64)
        # If all weights are zero, their softmax is nan, and no text counts.
        shares = log_weights.double().softmax(0).nan_to_num(0.0).tolist()
        expectation = 0.0
        for text, share in zip(result.texts, shares, strict=True):
            if share:
                expectation += share * task.check(item, text)[test["measure"]]
        return [round(expectation, 9)]

    return recorded(work, list(task.items())[first : first + int(test["items"])], write)


def plan(test: Mapping[str, Any]) -> Plan:
    """The cost of prompts and texts."""
    items = int(test["items"])
    guidances = [_guidance(test, side) for side in SIDES]
    rows = sum(1 if guidance is None else guidance.particles for guidance in guidances)
    tokens = int(test.get("tokens", 96))
    return Plan(passes=len(SIDES) * items * tokens, tokens=items * rows * (tokens + 250))


def _guidance(test: Mapping[str, Any], side: str, constraint: Constraint | None = None) -> AWRS | None:
    names = {"particles": "particles", "method": "sampler"}  # registered claims use the former name of the sampler
    options = {name: test[side][field] for field, name in names.items() if field in test[side]}
    return AWRS(constraint, **options) if options else None
