"""Guidance-free training (arXiv 2501.15420)."""

from __future__ import annotations

from torch import Tensor

from ...guidance import algebra
from .base import Objective, Reading, picked, weighted_mean


class GuidanceFree(Objective):
    """Likelihood of texts under a mixture that undoes guidance: ``β log p(w|c) + (1 − β) log p₀(w|u)``, normalised.

    The mixture is fitted to the texts (to their logits, as the paper does for autoregressive models), so that at the
    optimum ``log p = lu + (1/β)(lc − lu)`` up to a constant, which is guidance at ``γ = 1/β``. The unconditional branch
    is that of the model before training, and it is not trained. The paper trains one network for both branches, which
    is not necessary for an adapter, because the model itself does not change.
    """

    name = "gft"
    needs_contrast = True

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions, in nats per token."""
        beta = 1.0 / reading.scale
        mixed = beta * reading.student + (1.0 - beta) * reading.branches[1]
        return weighted_mean(-picked(algebra.log_softmax(mixed), reading.tokens), reading)
