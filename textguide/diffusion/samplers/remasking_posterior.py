"""ReMDM: ancestral sampling whose posterior may mask a filled token again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...support.checks import one_of
from .base import Chosen, Order, Turn, Unmasking, number

STRATEGIES = ("cap", "rescale", "loop")


@dataclass(frozen=True)
class RemaskingPosterior(Unmasking):
    """ReMDM (arXiv 2503.00307, eq. 6): from time t to s a filled token is masked with probability ``σ_t``, and a masked
    position is filled with probability ``(α_s − (1 − σ_t) α_t) / (1 − α_t)``. Each position has its own draw.

    ``α`` is the share of tokens that are not masked; it rises linearly with the steps of a block. The number of
    positions that a step fills is random, and the order is not used. ``σ_t ≤ σ_max = min(1, (1 − α_s) / α_t)`` keeps
    the marginals of the forward process.

    Args:
        eta: η in [0, 1]; 0 is plain ancestral sampling (MDLM, arXiv 2406.07524).
        strategy: ``cap``: ``σ_t = min(η, σ_max)``; ``rescale``: ``σ_t = η σ_max``; ``loop``: plain until ``α`` is
            ``level``, then ``σ_t = η`` at that level, then plain to the end.
        confident: distribute σ over the filled positions by the softmax of ``−ψ``, where ψ is the probability of a
            token when it was filled; masked positions have σ = 0 (ReMDM-conf).
        level: α of the loop, in (0, 1).
        on, off: times at which the loop starts and ends, ``1 > on > off > 0``; time runs from 1 to 0.

    Raises:
        ValueError: a field has a value that cannot work.
    """

    eta: float = 0.02
    strategy: str = "cap"
    confident: bool = False
    level: float = 0.9
    on: float = 0.55
    off: float = 0.05

    name = "remdm"

    def __post_init__(self) -> None:
        number("eta", self.eta, 0.0, 1.0)
        one_of("strategy", self.strategy, STRATEGIES)
        number("level", self.level, 1e-6, 1 - 1e-6)
        if not 0.0 < self.off < self.on < 1.0:
            raise ValueError(
                f"on={self.on}, off={self.off}: time runs from 1 to 0, so they must satisfy 1 > on > off > 0"
            )
        if self.strategy == "loop" and self.eta > (1 - self.level) / self.level:
            raise ValueError(
                f"eta={self.eta} masks more than can be filled again at level={self.level}; "
                f"use {(1 - self.level) / self.level:.3f} at most"
            )

    @property
    def revises(self) -> bool:
        return True

    def shown(self, time: float) -> float:
        """α at a time from 1 (all masked) to 0."""
        if self.strategy != "loop":
            return 1.0 - time
        if time > self.on:
            return (1.0 - time) * self.level / (1.0 - self.on)
        return self.level if time > self.off else 1.0 - time * (1.0 - self.level) / self.off

    def rates(self, turn: int, turns: int) -> tuple[float, float, float]:
        """σ, α_t and α_s of a step."""
        start = 1.0 - turn / turns
        end = 1.0 - (turn + 1) / turns
        before = self.shown(start)
        after = self.shown(end)
        largest = min(1.0, (1.0 - after) / before) if before > 0 else 1.0
        sigma = min(self.eta, largest)
        if self.strategy == "rescale":
            sigma = self.eta * largest
        if self.strategy == "loop" and not (start <= self.on and end >= self.off):
            sigma = 0.0
        return sigma, before, after

    def choose(self, turn: Turn, order: Order) -> Chosen:
        sigma, before, after = self.rates(turn.turn, turn.turns)
        share = torch.softmax(-turn.confidence.double(), 0) if self.confident else torch.ones(len(turn.filled))
        sigma_of_masks = 0.0 if self.confident else sigma
        fill = (after - (1.0 - sigma_of_masks) * before) / (1.0 - before)
        if turn.turn == turn.turns - 1:
            # Exactly 1 and 0, which rounding may miss: nothing may be left masked.
            fill = 1.0
            sigma = 0.0
        chosen = turn.uniform(len(turn.places)) < fill
        return chosen, turn.uniform(len(turn.filled)) < sigma * share.to(turn.confidence.device)
