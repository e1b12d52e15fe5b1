"""LinearAG (arXiv 2312.12487, section 5) for text: the unconditional branch predicted from this step and earlier ones.

The values are KL(guided‖·) in nats per token, for each prompt of the second half: ``tested`` is guidance with the
predicted branch, which is fitted on the first half, and ``baseline`` is decoding without guidance. Fields: ``prompts``,
``items``, ``tokens``, ``model``, ``dtype``, ``seed``; the guidance, which has one extra branch, is that of ``tested``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from textguide.generation import generate
from textguide.guidance.algebra import extrapolate, kl_divergence, log_softmax

from . import material
from .base import Plan, Work, check, guidance_of, load, recorded

FIELDS = ("prompts", "items", "tokens", "model", "dtype", "seed")
LAGS = 3
"""Number of earlier steps that a prediction uses."""
KEPT = 2000
"""Number of tokens per step on which the prediction is fitted, the most likely ones."""


def values(test: Mapping[str, Any], work: Work, data: str | None = None) -> dict[str, list[float]]:
    """KL per prompt."""
    check(test, FIELDS)
    prompts = material.prompts(test["prompts"], data)[: int(test["items"])]
    guidance = guidance_of(test, "tested")
    scale = float(getattr(guidance, "scale", 1.0))
    model, tokenizer, models = load(test)
    half = len(prompts) // 2

    @cache
    def run(number: int) -> list[Tensor]:
        seed = int(test.get("seed", 0)) + number
        return distributions(model, tokenizer, prompts[number], guidance, int(test["tokens"]), seed, models=models)

    @cache
    def coefficients() -> Tensor:
        return fit([run(number) for number in range(half)])

    def divergence(side: str, number: int, _: int) -> list[float]:
        steps = run(number)
        divergences = []
        for step in range(LAGS, len(steps)):
            cond, uncond = steps[step]
            guided = log_softmax(extrapolate(cond[None], uncond[None], scale))
            other = cond[None]
            if side == "tested":
                predicted = log_softmax((coefficients() @ terms(steps, step))[None])
                other = log_softmax(extrapolate(cond[None], predicted, scale))
            divergences.append(float(kl_divergence(guided, other)))
        return [sum(divergences) / len(divergences)]

    return recorded(work, range(half, len(prompts)), divergence)


def distributions(
    model: Any, tokenizer: Any, prompt: str, guidance: Any, tokens: int, seed: int, **options: Any
) -> list[Tensor]:
    """Log-probabilities of both branches at every step of a sampled text, (2, V) each."""
    steps: list[Tensor] = []

    def record(view: Any) -> None:
        steps.append(torch.stack([view.cond[0], view.extra[0, 0]]).float())

    generate(
        model,
        tokenizer,
        [prompt],
        guidance,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        top_k=0,
        seed=seed,
        observer=record,
        **options,
    )
    return steps


def terms(run: list[Tensor], step: int, lags: int = LAGS) -> Tensor:
    """The regressors of a prediction at ``step``, (terms, V)."""
    rows = [run[step][0], torch.ones_like(run[step][0])]
    for lag in range(1, lags + 1):
        rows += list(run[step - lag])
    return torch.stack(rows)


def fit(runs: list[list[Tensor]], lags: int = LAGS) -> Tensor:
    """Coefficients of a prediction, by least squares over the most likely tokens of every step, (terms,)."""
    regressors = []
    targets = []
    for run in runs:
        for step in range(LAGS, len(run)):
            tokens = run[step][0].topk(min(KEPT, run[step].shape[-1])).indices
            regressors.append(terms(run, step, lags)[:, tokens].T.double())
            targets.append(run[step][1][tokens].double())
    # gelsd accepts regressors that are linearly dependent.
    solution = torch.linalg.lstsq(torch.cat(regressors), torch.cat(targets)[:, None], driver="gelsd").solution
    return solution[:, 0].float()


def plan(test: Mapping[str, Any]) -> Plan:
    """The cost of both branches."""
    tokens = int(test["items"]) * int(test["tokens"])
    return Plan(passes=tokens, tokens=2 * tokens)
