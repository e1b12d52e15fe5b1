"""KLASS: positions whose distribution is sure and has stopped moving."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...guidance.algebra import kl_divergence
from ...support.checks import whole_number
from .base import Chosen, Order, Turn, Unmasking, number, surest


@dataclass(frozen=True)
class Stability(Unmasking):
    """KLASS (arXiv 2511.05664, algorithm 1): every position whose certainty exceeds τ and whose distribution moved by
    less than ε, as ``KL(p_t ‖ p_{t−1})``, in each of the last ``history`` steps; where there is none, an equal share of
    the surest.

    Experimental: what is remembered of a position begins when its block does, so that none is stable in the first
    ``history`` steps of a block. The authors' code compares positions of later blocks too.

    Args:
        confidence: τ in [0, 1]; at 1 no position is sure enough, and all steps are equal shares. The paper: 0.6 to 0.9.
        divergence: ε ≥ 0, in nats. The paper: 0.001 to 0.01.
        history: n ≥ 1 steps. The paper: 2.

    Raises:
        ValueError: a field has a value that cannot work.
    """

    confidence: float = 0.9
    divergence: float = 0.01
    history: int = 2

    name = "klass"
    remembers = True

    def __post_init__(self) -> None:
        number("confidence", self.confidence, 0.0, 1.0)
        number("divergence", self.divergence, 0.0)
        whole_number("history", self.history, 1)

    def check(self, order: Order) -> None:
        if not order.is_probability:
            raise ValueError(
                f"sampler='klass' compares probabilities with confidence={self.confidence}, and order={order.name!r} "
                "gives none; use confidence"
            )

    def start(self, order: Order) -> Callable[[Turn], Chosen]:
        known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by row: places, their distributions, their divergences

        def choose(turn: Turn) -> Chosen:
            moved = torch.full((len(turn.places), self.history), math.inf, device=turn.logp.device)
            if turn.turn and turn.row in known:
                places, before, past = known[turn.row]
                # A masked position was masked a step ago too, unless a corrector or another block came between.
                there = (turn.places[:, None] == places[None]).int()
                found, at = there.max(1)
                now = kl_divergence(turn.logp, before[at])
                moved = torch.cat([past[at, 1:], now[:, None].to(past)], 1)
                moved = moved.masked_fill(~found.bool()[:, None], math.inf)
            known[turn.row] = (turn.places, turn.logp, moved)
            ready = (moved < self.divergence).all(1) & (turn.certainty > self.confidence)
            if self.confidence < 1.0 and ready.any():
                return ready, None
            return surest(turn.certainty, turn.quota), None

        return choose
