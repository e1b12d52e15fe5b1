"""Weighted particles: effective sample size, resampling, evidence, expectations (sequential Monte Carlo).

Log-weights are float64, (P, N): P populations of N particles. A particle with log-weight −inf is dead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

RESAMPLING = ("stratified", "systematic")


def log_evidence(log_weights: Tensor) -> Tensor:
    """Log of the mean weight of every population, (..., N) → (...); its exp is an unbiased estimate of the evidence."""
    return log_weights.double().logsumexp(-1) - math.log(log_weights.shape[-1])


def normalized(log_weights: Tensor) -> Tensor:
    """Self-normalised weights (..., N), summing to 1; all 0 if every particle is dead."""
    log_weights = log_weights.double()
    weights = (log_weights - log_weights.amax(-1, keepdim=True).clamp_min(-1e300)).exp()
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(Σ w)² / Σ w² of every population, (..., N) → (...); 0 if every particle is dead."""
    weights = normalized(log_weights)
    total = weights.sum(-1)
    squares = weights.square().sum(-1)
    return torch.where(squares > 0, total.square() / squares.clamp_min(1e-300), 0.0)


def distinct(log_weights: Tensor, values: Sequence[Any]) -> Tensor:
    """Number of different values of the live particles of every population, (P, N) → int64 (P,).

    The effective sample size compares weights only: it is N if N particles continue the same text.

    Args:
        log_weights: (P, N).
        values: a value of each particle, P·N in order.
    """
    rows, size = log_weights.shape
    is_alive = (log_weights > -math.inf).tolist()
    counts = []
    for row in range(rows):
        alive = zip(values[row * size : (row + 1) * size], is_alive[row], strict=True)
        counts.append(len({value for value, live in alive if live}))
    return torch.tensor(counts)


def stratified(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ancestors (P, N): one point in each of N equal strata of the cumulative weights.

    Args:
        log_weights: (P, N), with at least one live particle in every population.
        uniforms: numbers in [0, 1), (P, N).
    """
    count = log_weights.shape[-1]
    points = (torch.arange(count, device=log_weights.device) + uniforms.double()) / count
    bounds = normalized(log_weights).cumsum(-1)
    picked = torch.searchsorted(bounds, points, right=True)
    # A rounding error of the last bound must not pick a dead particle.
    last = (log_weights > -math.inf).long().mul(torch.arange(1, count + 1, device=log_weights.device)).amax(-1) - 1
    return torch.minimum(picked, last[..., None])


def systematic(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ancestors (P, N): N points at equal distances, shifted by one uniform number per population, (P, 1)."""
    return stratified(log_weights, uniforms.expand_as(log_weights))


def in_place(ancestors: Tensor) -> Tensor:
    """The same ancestors (P, N), reordered so that every surviving particle keeps its row."""
    rows = []
    for row in ancestors.tolist():
        spare = list(row)
        placed: list[int | None] = [None] * len(row)
        for particle in set(row):
            placed[particle] = particle
            spare.remove(particle)
        rows.append([spare.pop() if particle is None else particle for particle in placed])
    return torch.tensor(rows, device=ancestors.device)


def resample(log_weights: Tensor, generator: torch.Generator | None, scheme: str = "stratified") -> Tensor:
    """Ancestors (P, N) by a named scheme; survivors keep their rows."""
    shape = (*log_weights.shape[:-1], log_weights.shape[-1] if scheme == "stratified" else 1)
    uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
    return in_place({"stratified": stratified, "systematic": systematic}[scheme](log_weights, uniforms))


def expectation(log_weights: Tensor, values: Sequence[float]) -> float:
    """The self-normalised expectation Σ w f / Σ w over one population.

    Raises:
        ValueError: every particle is dead.
    """
    _check_alive(log_weights)
    weights = normalized(log_weights).tolist()
    return float(sum(w * float(v) for w, v in zip(weights, values, strict=True) if w > 0))


def weighted_sample(log_weights: Tensor, items: Sequence[Any], generator: torch.Generator | None = None) -> Any:
    """One of ``items``, drawn in proportion to the weights of one population.

    Raises:
        ValueError: every particle is dead.
    """
    _check_alive(log_weights)
    return items[int(torch.multinomial(normalized(log_weights), 1, generator=generator))]


def _check_alive(log_weights: Tensor) -> None:
    if not bool((log_weights > -math.inf).any()):
        raise ValueError("every particle is dead (weight 0), so there is nothing to draw from; use more particles")
