"""Distribution matching: the divergence between the guided distribution and the model's, at every position."""

from __future__ import annotations

from torch import Tensor

from .base import Objective, Reading, weighted_mean


class ForwardKL(Objective):
    """``KL(guided ‖ model)``, nats a token: covers all that the guided distribution may say."""

    name = "forward-kl"

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions."""
        target = reading.target
        return weighted_mean((target.exp() * (_finite(target) - reading.student)).sum(-1), reading)


class ReverseKL(Objective):
    """``KL(model ‖ guided)``, nats a token: keeps to what the guided distribution says most."""

    name = "reverse-kl"

    def loss(self, reading: Reading) -> Tensor:
        """The mean over positions."""
        student = reading.student
        return weighted_mean((student.exp() * (student - _finite(reading.target))).sum(-1), reading)


def _finite(logp: Tensor) -> Tensor:
    """Log-probabilities of tokens that are ruled out as a number that products survive."""
    return logp.clamp_min(-1e4)
