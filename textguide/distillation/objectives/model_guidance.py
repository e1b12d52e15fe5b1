"""Model guidance (arXiv 2502.12154)."""

from __future__ import annotations

from torch import Tensor

from ...guidance import algebra
from .base import Objective, Reading, picked, weighted_mean


class ModelGuidance(Objective):
    """Texts as target, moved by what the model in training says more than without the prompt.

    The paper adds ``w (ε(x|c) − ε(x))``, held constant, to the target of a denoiser. On log-probabilities this
    is the likelihood of the texts under ``log p(w|c) − w (log p(w|c) − log p₀(w|u))``, normalised, with what is in
    brackets held constant: where the gradient vanishes, ``log p = lu + γ (lc − lu)`` with ``γ = 1 / (1 − w)``. It has
    the optimum of :class:`.guidance_free.GuidanceFree` with a gradient that is γ times as long.

    Experimental: the paper has continuous data and one network for both branches; the carrying over is ours.
    """

    name = "model-guidance"
    needs_contrast = True

    def loss(self, reading: Reading) -> Tensor:
        """Nats a token, the mean over positions."""
        weight = 1.0 - 1.0 / reading.scale
        student = reading.student
        moved = student - weight * (student.detach() - reading.branches[1])
        return weighted_mean(-picked(algebra.log_softmax(moved), reading.tokens), reading)
