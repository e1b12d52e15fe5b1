"""Drawing tokens with Gumbel noise."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(logp: Tensor, temperature: float, noise: Tensor | None) -> Tensor:
    """A token at each position, (N, V) → (N,): the most likely one at temperature 0, else a draw from ``p^(1/T)``.

    Args:
        noise: uniform draws in float64, (N, V); float32 would cut off the tails of the Gumbel distribution.
    """
    if temperature == 0.0:
        return logp.argmax(-1)
    assert noise is not None
    return (logp.double() / temperature + gumbel(noise)).argmax(-1)


def gumbel(noise: Tensor) -> Tensor:
    """Gumbel noise from uniform draws in float64."""
    return -torch.log(-torch.log(noise.clamp(min=torch.finfo(torch.float64).tiny)))
