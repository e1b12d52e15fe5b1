"""Maximum likelihood of given texts, by their weights."""

from __future__ import annotations

from torch import Tensor

from .base import Objective, Reading, picked, weighted_mean


class Likelihood(Objective):
    """``−log p(text)``, nats a token, each text by its weight.

    With texts that the guidance wrote and weighed (constraints, particles) its optimum is the distribution that those
    sample from, sequence by sequence, which no distribution of single steps tells.
    """

    name = "likelihood"

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions."""
        return weighted_mean(-picked(reading.student, reading.tokens), reading)
