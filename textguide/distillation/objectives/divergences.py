"""Distribution matching: the divergence between the guided distribution and that of the model, at every position."""

from __future__ import annotations

from torch import Tensor

from .base import Objective, Reading, weighted_mean


class ForwardKL(Objective):
    """``KL(guided ‖ model)`` in nats per token: the model covers every token that the guided distribution allows."""

    name = "forward-kl"

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions."""
        target = reading.target
        return weighted_mean((target.exp() * (_finite(target) - reading.student)).sum(-1), reading)


class ReverseKL(Objective):
    """``KL(model ‖ guided)`` in nats per token: the model avoids tokens that the guided distribution makes unlikely."""

    name = "reverse-kl"

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions."""
        student = reading.student
        return weighted_mean((student.exp() * (student - _finite(reading.target))).sum(-1), reading)


def _finite(logp: Tensor) -> Tensor:
    """Log-probabilities without −inf, because 0 · −inf is NaN."""
    return logp.clamp_min(-1e4)
