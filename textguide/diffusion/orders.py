"""How many positions each step fills, and with what."""

from __future__ import annotations

import torch
from torch import Tensor

POSITIONS = ("guided", "conditional", "unconditional")


def quotas(masks: int, steps: int) -> list[int]:
    """How many positions each step fills: as equal as can be, the earlier steps one more, none of them 0."""
    steps = min(masks, steps)
    return [masks // steps + (step < masks % steps) for step in range(steps)] if masks else []


def steps_of_blocks(steps: int, blocks: int) -> list[int]:
    """The steps of each block, the earlier blocks one more where they do not divide."""
    return [steps // blocks + (block < steps % blocks) for block in range(blocks)]


def draw(logp: Tensor, temperature: float, noise: Tensor | None) -> Tensor:
    """A token at each position, (N, V) → (N,): the most likely one at temperature 0, else a draw from ``p^(1/T)``.

    Args:
        noise: uniform draws in float64, (N, V); float32 would cut the tails of the Gumbel distribution off.
    """
    if temperature == 0.0:
        return logp.argmax(-1)
    assert noise is not None
    return (logp.double() / temperature + gumbel(noise)).argmax(-1)


def gumbel(noise: Tensor) -> Tensor:
    """Gumbel noise from uniform draws in float64."""
    return -torch.log(-torch.log(noise.clamp(min=torch.finfo(torch.float64).tiny)))
