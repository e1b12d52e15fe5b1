"""Model guidance (arXiv 2502.12154)."""

from __future__ import annotations

from torch import Tensor

from ...guidance import algebra
from .base import Objective, Reading, picked, weighted_mean


class ModelGuidance(Objective):
    """Likelihood of texts, shifted by the difference of the model in training to its unconditional branch.

    The paper adds ``w (ε(x|c) − ε(x))``, without gradient, to the target of a denoiser. For log-probabilities this is
    the likelihood of the texts under ``log p(w|c) − w (log p(w|c) − log p₀(w|u))``, normalised, without gradient
    through the bracket. The gradient vanishes at ``log p = lu + γ (lc − lu)`` with ``γ = 1 / (1 − w)``. The optimum is
    that of :class:`.guidance_free.GuidanceFree`, with a gradient that is γ times as long.

    Experimental: the paper has continuous data and one network for both branches; the form for tokens is ours.
    """

    name = "model-guidance"
    needs_contrast = True

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions, in nats per token."""
        weight = 1.0 - 1.0 / reading.scale
        student = reading.student
        moved = student - weight * (student.detach() - reading.branches[1])
        return weighted_mean(-picked(algebra.log_softmax(moved), reading.tokens), reading)
