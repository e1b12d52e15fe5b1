"""KLASS: positions whose distribution is certain and has stopped changing."""

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
    """KLASS (arXiv 2511.05664, algorithm 1): every position whose certainty exceeds τ and whose distribution changed by
    less than ε, as ``KL(p_t ‖ p_{t−1})``, in each of the last ``history`` steps. If there is no such position, an equal
    share of the most certain ones.

    Experimental: the history of a position starts with its block, so that no position is stable in the first
    ``history`` steps of a block. The authors' code compares positions of later blocks too.

    Args:
        confidence: τ in [0, 1]. With 1 no position is certain enough, and all steps fill equal shares. The paper uses
            0.6 to 0.9.
        divergence: ε ≥ 0, in nats. The paper uses 0.001 to 0.01.
        history: n ≥ 1 steps. The paper uses 2.

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
        known: dict[int, _RowHistory] = {}

        def choose(turn: Turn) -> Chosen:
            changes = torch.full((len(turn.places), self.history), math.inf, device=turn.logp.device)
            if turn.turn and turn.row in known:
                changes = known[turn.row].changes_to(turn)
            known[turn.row] = _RowHistory(turn.places, turn.logp, changes)
            ready = (changes < self.divergence).all(1) & (turn.certainty > self.confidence)
            if self.confidence < 1.0 and ready.any():
                return ready, None
            return surest(turn.certainty, turn.quota), None

        return choose


@dataclass
class _RowHistory:
    """What is known of a row from its last step.

    Attributes:
        places: its masked positions, (n,).
        logp: their distributions, (n, V).
        changes: how much these changed in each of the steps before, the last one at the end, (n, history).
    """

    places: Tensor
    logp: Tensor
    changes: Tensor

    def changes_to(self, turn: Turn) -> Tensor:
        """The changes of the positions that are masked now, (n, history); inf for those that were not masked a step
        ago, which happens after a corrector step or when a new block starts."""
        same = (turn.places[:, None] == self.places[None]).int()
        known, index = same.max(1)
        newest = kl_divergence(turn.logp, self.logp[index])
        changes = torch.cat([self.changes[index, 1:], newest[:, None].to(self.changes)], 1)
        return changes.masked_fill(~known.bool()[:, None], math.inf)
