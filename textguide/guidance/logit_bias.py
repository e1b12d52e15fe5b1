"""A token prior as the arguments of a server that knows no guidance: a temperature and a logit bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.checks import finite_number, whole_number
from .algebra import kl_divergence, log_softmax

OPENAI_ENTRIES = 300
"""Entries that OpenAI's API accepts in ``logit_bias``. vLLM and llama.cpp have no limit."""
OPENAI_BIAS = 100.0
"""Largest bias, in absolute value, that OpenAI's API accepts."""


@dataclass(frozen=True)
class LogitBias:
    """Arguments of a request.

    Args:
        temperature: 1/γ; multiply it by the temperature of the request if that is not 1.
        logit_bias: what is added to the logits, by token id.
        scale: γ.
    """

    temperature: float
    logit_bias: dict[int, float]
    scale: float

    def guided(self, logp: Tensor) -> Tensor:
        """The log-probabilities that a server with these arguments samples from, for the model's ``logp`` (..., V)."""
        biased = logp.clone()
        tokens = torch.tensor(list(self.logit_bias), dtype=torch.long, device=logp.device)
        values = torch.tensor(list(self.logit_bias.values()), dtype=logp.dtype, device=logp.device)
        biased[..., tokens] += values
        return log_softmax(biased / self.temperature)


def logit_bias(prior: Tensor, scale: float, entries: int | None = None, largest: float = OPENAI_BIAS) -> LogitBias:
    """``m + γ (lc − m)`` as a temperature of 1/γ and a bias of ``(1 − γ)/γ · m``.

    A constant added to all biases changes nothing, so they are shifted to be 0 on average over the tokens that get no
    entry. Entries go to the most likely tokens of the prior.

    Args:
        prior: log-probabilities of the prior, (V,).
        scale: γ, above 0.
        entries: largest number of entries; None: one for every token.
        largest: largest bias in absolute value; larger ones are cut.

    Raises:
        ValueError: γ is not above 0, or ``entries`` is not a whole number from 1.
    """
    scale = finite_number("scale", scale)
    if scale <= 0.0:
        raise ValueError(f"scale={scale} must be above 0, because the temperature is 1/scale")
    bias = (1.0 - scale) / scale * prior.double()
    order = prior.argsort(descending=True, stable=True)
    if entries is None or entries >= len(prior):
        listed = order
        shift = bias.mean()
    else:
        listed = order[: whole_number("entries", entries, 1)]
        rest = order[entries:]
        weights = prior.double()[rest].softmax(-1)
        shift = (weights * bias[rest]).sum()
    shifted = (bias - shift).clamp(-largest, largest)
    values = {int(token): round(float(shifted[token]), 4) for token in listed}
    return LogitBias(1.0 / scale, values, scale)


def loss(arguments: LogitBias, prior: Tensor, logp: Tensor) -> float:
    """What ``arguments`` lose: mean KL from the exact distribution to the one that they give, in nats per token.

    Args:
        arguments: from :func:`logit_bias`.
        prior: log-probabilities of the prior, (V,).
        logp: log-probabilities of the model at some positions, (P, V).
    """
    exact = log_softmax(prior + arguments.scale * (logp - prior))
    return float(kl_divergence(exact, arguments.guided(logp)).double().mean())
