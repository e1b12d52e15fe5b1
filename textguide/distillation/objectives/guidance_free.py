"""Guidance-free training (arXiv 2501.15420)."""

from __future__ import annotations

from torch import Tensor

from ...guidance import algebra
from .base import Objective, Reading, picked, weighted_mean


class GuidanceFree(Objective):
    """Likelihood of texts under a mixture that undoes guidance: ``β log p(w|c) + (1 − β) log p₀(w|u)``, normalised.

    The mixture is fitted to the texts (as the paper fits logits, for autoregressive models), so that at the optimum
    ``log p = lu + (1/β)(lc − lu)`` up to a constant: guidance at ``γ = 1/β``. The unconditional branch is that of the
    model that training began with and is not trained; the paper trains one network for both, which an adapter that
    leaves the model as it is need not.
    """

    name = "gft"
    needs_contrast = True

    def loss(self, reading: Reading) -> Tensor:
        """Nats a token, the mean over positions."""
        beta = 1.0 / reading.scale
        mixed = beta * reading.student + (1.0 - beta) * reading.branches[1]
        return weighted_mean(-picked(algebra.log_softmax(mixed), reading.tokens), reading)
