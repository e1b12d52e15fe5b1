"""Maximum likelihood of weighted texts."""

from __future__ import annotations

from torch import Tensor

from .base import Objective, Reading, picked, weighted_mean


class Likelihood(Objective):
    """``−log p(text)`` in nats per token, weighted by text.

    With texts that were sampled with weights (constraints, particles), the optimum is the distribution of whole texts
    that these samples represent. It cannot be computed from the distributions of single steps.
    """

    name = "likelihood"

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions."""
        return weighted_mean(-picked(reading.student, reading.tokens), reading)
