"""ReMDM: ancestral sampling whose posterior may mask a filled token again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Chosen, Order, Turn, Unmasking, number, one_of

STRATEGIES = ("cap", "rescale", "loop")


@dataclass(frozen=True)
class RemaskingPosterior(Unmasking):
    """ReMDM (arXiv 2503.00307, eq. 6): from time t to s a filled token is masked with probability ``σ_t``, and a masked
    position is filled with ``(α_s − (1 − σ_t) α_t) / (1 − α_t)``, each by its own draw.

    ``α`` is the share of tokens that are not masked and rises linearly with the steps of a block. How many positions a
    step fills is random; the order plays no part. ``σ_t ≤ σ_max = min(1, (1 − α_s) / α_t)`` keeps the marginals of the
    forward process.

    Args:
        eta: η in [0, 1]; 0 is plain ancestral sampling (MDLM, arXiv 2406.07524).
        strategy: ``cap``: ``σ_t = min(η, σ_max)``; ``rescale``: ``σ_t = η σ_max``; ``loop``: plain until ``α`` is
            ``level``, then at that level with ``σ_t = η``, then plain to the end.
        confident: σ of a position is shared out by the softmax of ``−ψ`` over filled positions, with ψ the probability
            that a token had when it was filled; masked positions have σ = 0 (ReMDM-conf).
        level: α of the loop, in (0, 1).
        on, off: times between which the loop runs, ``1 > on > off > 0``, time going from 1 to 0.

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
            raise ValueError(f"on={self.on}, off={self.off}: time goes from 1 to 0, so that 1 > on > off > 0")
        if self.strategy == "loop" and self.eta > (1 - self.level) / self.level:
            raise ValueError(
                f"eta={self.eta} masks more than there is to fill at level={self.level}; "
                f"take {(1 - self.level) / self.level:.3f} at most"
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
        start, end = 1.0 - turn / turns, 1.0 - (turn + 1) / turns
        before, behind = self.shown(start), self.shown(end)
        most = min(1.0, (1.0 - behind) / before) if before > 0 else 1.0
        sigma = min(self.eta, most)
        if self.strategy == "rescale":
            sigma = self.eta * most
        if self.strategy == "loop" and not (start <= self.on and end >= self.off):
            sigma = 0.0
        return sigma, before, behind

    def choose(self, turn: Turn, order: Order) -> Chosen:
        sigma, before, behind = self.rates(turn.turn, turn.turns)
        share = torch.softmax(-turn.confidence.double(), 0) if self.confident else torch.ones(len(turn.filled))
        here = 0.0 if self.confident else sigma
        fill = (behind - (1.0 - here) * before) / (1.0 - before)
        if turn.turn == turn.turns - 1:
            fill, sigma = 1.0, 0.0  # what rounding leaves of a share
        chosen = turn.uniform(len(turn.places)) < fill
        return chosen, turn.uniform(len(turn.filled)) < sigma * share.to(turn.confidence.device)
