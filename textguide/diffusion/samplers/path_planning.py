"""P2: a planner that keeps the surest positions, whether they were filled now or before."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Chosen, Order, Turn, Unmasking, number, surest


@dataclass(frozen=True)
class PathPlanning(Unmasking):
    """P2 with self-planning (arXiv 2502.03540, alg. 1): every position gets the log-probability of its token, drawn
    or there; a token that is there has its multiplied by η. The best ``κ`` positions are filled or stay, all others are
    masked.

    ``κ`` grows by equal shares of the steps, and is the whole block at the last one. More steps than positions
    (``steps=``) leave more room for revision. The order says what a position gets (the paper's planner):
    ``confidence``, ``random`` or another. Filled positions are read in the pass that reads the masked ones.

    Args:
        eta: η ≥ 0, the stochasticity strength: 0 never empties a position, which is plain; 1 judges all alike; more
            masks filled tokens earlier.

    Raises:
        ValueError: ``eta`` is negative.
    """

    eta: float = 1.0

    name = "p2"

    def __post_init__(self) -> None:
        number("eta", self.eta, 0.0)

    @property
    def revises(self) -> bool:
        return self.eta != 0.0

    @property
    def reads_filled(self) -> bool:
        return self.eta != 0.0

    def choose(self, turn: Turn, order: Order) -> Chosen:
        if not self.eta:
            return surest(turn.certainty, turn.quota), None
        masked, size = len(turn.places), len(turn.places) + len(turn.filled)
        drawn = order.log_certainty(turn.certainty)
        there = self.eta * order.log_certainty(turn.filled_certainty)
        keep = surest(torch.cat([there, drawn]), kept(size, turn.turn + 1, turn.turns))
        return keep[len(turn.filled) :], ~keep[: len(turn.filled)] if masked < size else None


def kept(size: int, steps: int, turns: int) -> int:
    """How many of ``size`` positions are filled behind so many of all ``turns`` steps."""
    if turns > size:
        return -(-size * steps // turns)
    return size // turns * steps + min(steps, size % turns)
