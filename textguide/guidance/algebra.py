"""Arithmetic on log-probabilities: mixing, normalising, divergences.

In all functions, the last dimension of tensors is the vocabulary ``V``; there may be any leading dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_softmax(logits: Tensor) -> Tensor:
    """Normalised log-probabilities in float32, whatever the dtype of ``logits`` (..., V)."""
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32)


FORBIDDEN = -1e30
"""A token whose log-probability is below this is forbidden. Some models write the lowest number of their dtype instead
of −inf, and the sum of two such numbers is outside float32."""


def extrapolate(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """``uncond + scale · (cond − uncond)``, un-normalised (arXiv 2306.17806, Eq. 7).

    Args:
        cond: log-probabilities of the conditional branch, (..., V).
        uncond: log-probabilities of the branch to move away from, same shape.
        scale: γ; a number, or a tensor that broadcasts against ``cond``. 1 returns ``cond`` unchanged.
    """
    return torch.lerp(uncond, cond, scale)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) in nats between normalised log-probabilities, (..., V) → (...).

    Tokens with ``p = 0`` add nothing. A token that ``p`` allows and ``q`` forbids makes the result +inf.
    """
    # If q forbids a token, exp(p) may have underflowed to 0, and 0 · inf is a NaN.
    terms = torch.where(torch.isneginf(q), float("inf"), p.exp() * (p - q))
    return torch.where(torch.isneginf(p), 0.0, terms).sum(dim=-1).clamp(min=0.0)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence in nats, at most ln 2, of normalised log-probabilities, (..., V) → (...)."""
    mean = torch.logaddexp(p, q) - math.log(2.0)
    return 0.5 * (kl_divergence(p, mean) + kl_divergence(q, mean))


def entropy(logp: Tensor) -> Tensor:
    """Entropy in nats of normalised log-probabilities, (..., V) → (...)."""
    return -torch.where(torch.isneginf(logp), 0.0, logp.exp() * logp).sum(dim=-1)


def plausibility_mask(logp: Tensor, alpha: float) -> Tensor:
    """Tokens with ``p ≥ alpha · max p``: the adaptive plausibility constraint (arXiv 2210.15097, Eq. 3).

    Args:
        logp: log-probabilities, (..., V).
        alpha: share of the largest probability, in (0, 1].

    Returns:
        Boolean tensor, (..., V), True for plausible tokens.
    """
    threshold = logp.amax(dim=-1, keepdim=True) + torch.log(torch.tensor(alpha, dtype=logp.dtype))
    return logp >= threshold


def centered(values: Tensor) -> Tensor:
    """``values`` (..., V) minus their mean."""
    return values - values.mean(-1, keepdim=True)


def rms(values: Tensor) -> Tensor:
    """Root mean square, (..., V) → (..., 1)."""
    return values.square().mean(-1, keepdim=True).sqrt()
