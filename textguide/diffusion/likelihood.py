"""Likelihoods under masked diffusion: a Monte Carlo bound, with its standard error and with guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .canvas import Canvas, lay_out
from .denoisers import Denoiser, denoiser
from .generation import _rows
from .guiding import Guide, checked_guidance, negative_rows
from .sampling import whole_number


@dataclass(frozen=True)
class DiffusionScore:
    """Log-likelihoods of targets behind prompts.

    Attributes:
        log_likelihood: estimate of the evidence bound on ``log p(target | prompt)`` in nats, float64 (N,).
        standard_error: of each estimate over the Monte Carlo draws, (N,); NaN with a single draw.
        tokens: number of target tokens, (N,).
        draws: Monte Carlo draws a target.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    tokens: Tensor
    draws: int


def score(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    targets: Any,
    *,
    guidance: Any = None,
    draws: int = 128,
    batch_size: int = 32,
    seed: int = 0,
) -> DiffusionScore:
    """A lower bound on ``log p(target | prompt)``, by Monte Carlo over what is masked.

    For a target of ``n`` tokens, ``k`` of them masked at random and ``k`` uniform on 1…n, the mean over draws of
    ``n/k · Σ log p(masked token | the rest)`` estimates the bound, which equals the mean over all orders of the
    log-probability of writing the target in that order. ``k`` is stratified over the draws: every
    number comes up equally often, as far as ``draws`` allows. The distribution is normalised, with guidance as without.

    Args:
        prompts: as for :func:`generate`; one, or one a target.
        targets: a text or token ids, or a list of these.
        guidance: CFG, ACFG or None. ``ACFG(one_pass=True)`` is refused: draws have no step before them.
        draws: Monte Carlo draws a target; 128 in the literature. With ``draws`` a multiple of n the strata are even.
        batch_size: rows read at once.
        seed: of the masks.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    made = denoiser(model, tokenizer)
    wanted = checked_guidance(guidance)
    if getattr(wanted, "one_pass", False):
        raise ValueError(
            "one_pass=True ranks positions by the step before, and a likelihood has no steps; leave it off"
        )
    draws, batch_size = whole_number("draws", draws), whole_number("batch_size", batch_size)
    ends = [made.encode(target) for target in _rows(targets, "targets")]
    starts = [made.encode(prompt) for prompt in _rows(prompts, "prompts")]
    starts = starts * len(ends) if len(starts) == 1 else starts
    if len(starts) != len(ends):
        raise ValueError(f"prompts has {len(starts)} rows and targets {len(ends)}; give one prompt a target, or one")
    if not all(ends):
        raise ValueError(f"targets[{next(i for i, end in enumerate(ends) if not end)}] is empty; leave it out")
    negatives = negative_rows(made, wanted, len(ends))
    sums = torch.zeros(len(ends), dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for index, value in _values(made, wanted, starts, ends, negatives, draws, batch_size, seed):
        sums[index] += value
        squares[index] += value**2
    mean = sums / draws
    spread = (
        (squares / draws - mean**2).clamp(min=0) * draws / (draws - 1) if draws > 1 else torch.full_like(mean, math.nan)
    )
    tokens = torch.tensor([len(end) for end in ends])
    return DiffusionScore(mean, (spread / draws).sqrt(), tokens, draws)


def masked_counts(tokens: int, draws: int, generator: torch.Generator) -> list[int]:
    """How many tokens each draw masks: uniform on 1…tokens, one draw in each of ``draws`` equal strata."""
    place = (torch.arange(draws) + torch.rand(1, generator=generator, dtype=torch.float64)) / draws
    return [min(tokens, 1 + int(p * tokens)) for p in place]


def _values(
    model: Denoiser, guidance: Any, prompts: Sequence[list[int]], targets: Sequence[list[int]],
    negatives: Sequence[Sequence[int]] | None, draws: int, batch_size: int, seed: int,
) -> Iterator[tuple[int, float]]:  # fmt: skip
    jobs = []
    for index, target in enumerate(targets):
        generator = torch.Generator().manual_seed(seed)  # a target's masks do not depend on what is scored beside it
        for count in masked_counts(len(target), draws, generator):
            jobs.append((index, torch.randperm(len(target), generator=generator)[:count].tolist()))
    jobs.sort(key=lambda job: len(prompts[job[0]]) + len(targets[job[0]]))
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        others = None if negatives is None else [negatives[index] for index, _ in part]
        yield from zip(
            [index for index, _ in part],
            masked_log_likelihoods(
                model,
                guidance,
                [prompts[i] for i, _ in part],
                [targets[i] for i, _ in part],
                [m for _, m in part],
                others,
            ),
            strict=True,
        )


def masked_log_likelihoods(
    model: Denoiser, guidance: Any, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]] | None = None,
) -> list[float]:  # fmt: skip
    """``n/k · Σ log p`` of the masked tokens of each target, given the others.

    Args:
        masks: indices into each target of the tokens to mask.
    """
    rows = [[*p, *[None] * len(t)] for p, t in zip(prompts, targets, strict=True)]
    canvas: Canvas = lay_out(model, rows, 1 << 20, "its target")
    truth = canvas.ids.clone()
    truth[canvas.target] = torch.tensor([t for target in targets for t in target], device=truth.device)
    hidden = torch.zeros_like(canvas.target)
    for n, (target, mask) in enumerate(zip(targets, masks, strict=True)):
        places = canvas.target[n].nonzero()[:, 0]
        assert len(places) == len(target)
        hidden[n, places[list(mask)]] = True
    guide = Guide(model, guidance, canvas, negatives)
    canvas.ids = truth.masked_fill(hidden, model.mask_id)
    distributions = guide.distributions(canvas, torch.arange(len(rows), device=truth.device), hidden)
    values = distributions.guided.gather(-1, truth[hidden][:, None])[:, 0].double()
    sums = [float(part.sum()) for part in values.split(hidden.sum(-1).tolist())]
    return [s * len(t) / len(m) for s, t, m in zip(sums, targets, masks, strict=True)]
