"""P2: a planner that keeps the most certain positions, no matter whether they were filled now or earlier."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Chosen, Order, Turn, Unmasking, number, surest


@dataclass(frozen=True)
class PathPlanning(Unmasking):
    """P2 with self-planning (arXiv 2502.03540, alg. 1): every position of the block is ranked by the log-probability of
    its token. For a filled position this is the token that is there, and its log-probability is multiplied by η. The
    best ``κ`` positions are filled or stay filled, and all others are masked.

    ``κ`` grows by an equal share per step and reaches the size of the block at the last one. More steps than positions
    (``steps=``) leave more room for revision. The order ranks the positions (the paper's planner): ``confidence``,
    ``random`` or another one. Filled positions are read in the same pass as the masked ones.

    Args:
        eta: η ≥ 0, the strength of the stochasticity. 0 never empties a position, as in plain sampling; 1 ranks all
            positions by the same measure; larger values mask filled tokens earlier.

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
        masked = len(turn.places)
        size = len(turn.places) + len(turn.filled)
        drawn = order.log_certainty(turn.certainty)
        filled = self.eta * order.log_certainty(turn.filled_certainty)
        keep = surest(torch.cat([filled, drawn]), filled_after(size, turn.turn + 1, turn.turns))
        empty = ~keep[: len(turn.filled)] if masked < size else None
        return keep[len(turn.filled) :], empty


def filled_after(size: int, steps: int, turns: int) -> int:
    """How many of ``size`` positions are filled after ``steps`` of ``turns`` steps."""
    if turns > size:
        return -(-size * steps // turns)
    return size // turns * steps + min(steps, size % turns)
