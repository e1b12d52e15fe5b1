"""Which masked positions are filled next, and with what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..guidance.algebra import entropy

ORDERS = ("confidence", "margin", "entropy", "random")
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
    gumbel = -torch.log(-torch.log(noise.clamp(min=torch.finfo(torch.float64).tiny)))
    return (logp.double() / temperature + gumbel).argmax(-1)


def certainty(logp: Tensor, tokens: Tensor, order: str, noise: Tensor | None) -> Tensor:
    """How sure a distribution is of a position, (N, V) → (N,), larger is surer.

    ``confidence``: probability of the drawn token; ``margin``: difference of the two largest probabilities;
    ``entropy``: minus the entropy; ``random``: ``noise`` (N,).
    """
    if order == "random":
        assert noise is not None
        return noise
    if order == "entropy":
        return -entropy(logp)
    if order == "margin":
        best = logp.topk(min(2, logp.shape[-1]), dim=-1).values.exp()
        return best[:, 0] - best[:, 1] if best.shape[1] > 1 else best[:, 0]
    return logp.gather(-1, tokens[:, None])[:, 0].exp()


def surest(values: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """For each row the indices of its ``count`` largest values, the first among equals."""
    return [row.sort(descending=True, stable=True).indices[:n] for row, n in zip(values, counts, strict=True)]
