"""Arithmetic on log-probabilities: mixing, renormalising, the −inf rule, divergences.

Every function takes and returns tensors whose last dimension is the vocabulary ``V``; leading dimensions are free.
Two rules hold throughout:

* a token that the conditional branch forbids (log-probability −inf, or a dtype's lowest number) stays forbidden, and
* no operation makes a NaN out of −inf.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def log_softmax(logits: Tensor) -> Tensor:
    """Normalised log-probabilities in float32, whatever the dtype of ``logits`` (..., V)."""
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32)


FORBIDDEN = -1e30
"""Log-probabilities below are those of tokens that cannot come: some models write the lowest number of their dtype in
place of −inf, of which a sum of two leaves float32."""


def allowed(*logps: Tensor) -> Tensor:
    """Tokens that all of these log-probabilities (..., V) allow, bool (..., V)."""
    return functools.reduce(torch.logical_and, (logp > FORBIDDEN for logp in logps))


def broken(scores: Tensor) -> Tensor:
    """Rows that no token can be drawn from: a score is NaN or +inf, or all are −inf. (..., V) → bool (...)."""
    return ~torch.isfinite(scores.amax(dim=-1))


def refuse_broken(guidance: Any, rows: Sequence[int]) -> NoReturn:
    """Say which rows :func:`broken` found in what ``guidance`` gave.

    Raises:
        ValueError: always.
    """
    numbers = ", ".join(map(str, rows))
    raise ValueError(
        f"{guidance} gives log-probabilities that are NaN or +inf for row {numbers}; use a smaller scale, or a formula "
        "that divides by nothing that may be 0. If the model alone gives NaN too, load it with dtype float32"
    )


def extrapolate(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """``uncond + scale · (cond − uncond)``, un-normalised (arXiv 2306.17806, Eq. 7).

    Where ``cond`` is −inf the result is −inf. Where only ``uncond`` is −inf the ratio of the branches is
    undefined, and the token keeps its conditional log-probability.

    Args:
        cond: log-probabilities of the conditional branch, (..., V).
        uncond: log-probabilities of the branch to move away from, same shape.
        scale: γ; a number, or a tensor that broadcasts against ``cond``. 1 returns ``cond`` unchanged.
    """
    return torch.where(allowed(cond, uncond), torch.lerp(uncond, cond, scale), cond)


def weighted_sum(logp: Tensor, weights: Tensor) -> Tensor:
    """``Σᵢ wᵢ log pᵢ`` over the leading dimension, (n, ..., V) → (..., V), with the −inf rule of branch 0."""
    shape = (-1,) + (1,) * (logp.dim() - 1)
    total = (logp * weights.view(shape)).sum(dim=0)
    return torch.where(allowed(*logp), total, logp[0])


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) in nats between normalised log-probabilities, (..., V) → (...).

    Tokens with ``p = 0`` add nothing. A token that ``p`` allows and ``q`` forbids makes the result +inf.
    """
    # Where q forbids, exp(p) may have underflowed to 0, and 0 · inf is a NaN.
    terms = torch.where(torch.isneginf(q), float("inf"), p.exp() * (p - q))
    return torch.where(torch.isneginf(p), 0.0, terms).sum(dim=-1).clamp(min=0.0)


def entropy(logp: Tensor) -> Tensor:
    """Entropy in nats of normalised log-probabilities, (..., V) → (...)."""
    return -torch.where(torch.isneginf(logp), 0.0, logp.exp() * logp).sum(dim=-1)


def plausibility_mask(logp: Tensor, alpha: float) -> Tensor:
    """Tokens with ``p ≥ alpha · max p``: the adaptive plausibility constraint (arXiv 2210.15097, Eq. 3).

    Args:
        logp: log-probabilities, (..., V).
        alpha: share of the largest probability, in (0, 1].

    Returns:
        Boolean tensor, (..., V), True where the token is plausible.
    """
    threshold = logp.amax(dim=-1, keepdim=True) + torch.log(torch.tensor(alpha, dtype=logp.dtype))
    return logp >= threshold


def mean(values: Tensor, possible: Tensor) -> Tensor:
    """Mean over the tokens that are possible, (..., V) → (..., 1)."""
    total = values.masked_fill(~possible, 0.0).sum(-1, keepdim=True)
    return total / possible.sum(-1, keepdim=True).clamp(min=1)


def centered(values: Tensor, possible: Tensor) -> Tensor:
    """``values`` (..., V) minus their mean over the tokens that are possible, 0 elsewhere."""
    return (values - mean(values, possible)).masked_fill(~possible, 0.0)


def rms(values: Tensor, possible: Tensor) -> Tensor:
    """Root mean square over the tokens that are possible, (..., V) → (..., 1)."""
    return mean(values.square(), possible).sqrt()
