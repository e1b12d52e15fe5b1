"""LinearAG (arXiv 2312.12487, section 5) for text: the unconditional branch predicted from this step and earlier ones.

For each prompt of the second half KL(guided‖·) in nats a token: ``tested`` of guidance by the predicted branch, fitted
on the first half, ``baseline`` of no guidance. Fields: ``prompts``, ``items``, ``tokens``, ``model``, ``dtype``,
``seed``; the guidance, with one more branch, is that of ``tested``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import textguide
from textguide.guidance.algebra import extrapolate, kl_divergence, log_softmax

from . import material
from .base import Plan, Work, check, guidance_of, load, resumed

FIELDS = ("prompts", "items", "tokens", "model", "dtype", "seed")
LAGS = 3
KEPT = 2000
"""Tokens of a step that are fitted: the most likely ones."""


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """KL a prompt."""
    check(test, FIELDS)
    prompts = material.prompts(test["prompts"], data)[: int(test["items"])]
    guidance = guidance_of(test, "tested")
    scale = float(getattr(guidance, "scale", 1.0))
    model, tokenizer, models = load(test)
    seen: dict[int, list[Tensor]] = {}
    half = len(prompts) // 2
    fitted: list[Tensor] = []

    def run(number: int) -> list[Tensor]:
        if number not in seen:
            seed = int(test.get("seed", 0)) + number
            seen[number] = distributions(
                model, tokenizer, prompts[number], guidance, int(test["tokens"]), seed, models=models
            )
        return seen[number]

    def divergence(side: str, number: int, _: int) -> list[float]:
        if side == "tested" and not fitted:
            fitted.append(fit([run(n) for n in range(half)]))
        found = []
        steps = run(number)
        for step in range(LAGS, len(steps)):
            cond, uncond = steps[step]
            guided = log_softmax(extrapolate(cond[None], uncond[None], scale))
            if side == "baseline":
                other = cond[None]
            else:
                other = log_softmax(extrapolate(cond[None], log_softmax((fitted[0] @ terms(steps, step))[None]), scale))
            found.append(float(kl_divergence(guided, other)))
        return [sum(found) / len(found)]

    return resumed(work, range(half, len(prompts)), divergence)


def distributions(
    model: Any, tokenizer: Any, prompt: str, guidance: Any, tokens: int, seed: int, **options: Any
) -> list[Tensor]:
    """Both branches' log-probabilities at every step of a sampled text, (2, V) each."""
    seen: list[Tensor] = []

    def keep(view: Any) -> None:
        seen.append(torch.stack([view.cond[0], view.extra[0, 0]]).float())

    textguide.generate(
        model, tokenizer, [prompt], guidance, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0,
        seed=seed, observer=keep, **options,
    )  # fmt: skip
    return seen


def terms(run: list[Tensor], step: int, lags: int = LAGS) -> Tensor:
    """What a prediction may use at ``step``, (terms, V)."""
    rows = [run[step][0], torch.ones_like(run[step][0])]
    for lag in range(1, lags + 1):
        rows += list(run[step - lag])
    return torch.stack(rows)


def fit(runs: list[list[Tensor]], lags: int = LAGS) -> Tensor:
    """Least squares over the likeliest tokens of every step, (terms,)."""
    left, right = [], []
    for run in runs:
        for step in range(LAGS, len(run)):
            kept = run[step][0].topk(min(KEPT, run[step].shape[-1])).indices
            left.append(terms(run, step, lags)[:, kept].T.double())
            right.append(run[step][1][kept].double())
    return torch.linalg.lstsq(torch.cat(left), torch.cat(right)[:, None], driver="gelsd").solution[:, 0].float()


def plan(test: Mapping[str, Any]) -> Plan:
    """Positions of both branches."""
    tokens = int(test["items"]) * int(test["tokens"])
    return Plan(passes=tokens, tokens=2 * tokens)
