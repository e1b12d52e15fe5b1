"""Condition contrastive alignment (arXiv 2410.09347)."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Objective, Reading, by_text, picked


class CCA(Objective):
    """Texts under their own prompt against the same texts under the prompt of another.

    ``−log σ(β r(x, c)) − λ log σ(−β r(x, c'))``, ``r = log p(x|c) − log p₀(x|c)`` with the model in training ``p`` and
    the one that it began as ``p₀``; ``x`` was written under ``c``, and ``c'`` is the prompt of another text. With λ = 1
    its optimum is ``p ∝ p₀ (p₀(x|c) / p₀(x))^(1/β)``, that of classifier-free guidance at ``γ = 1 + 1/β``, so β is
    ``1 / (γ − 1)``. No guided distribution is computed: the contrast is between texts, not between tokens.

    Args:
        negative_weight: λ.
    """

    name = "cca"
    needs_contrast = True
    needs_prompts = True

    def __init__(self, negative_weight: float = 1.0) -> None:
        if not (math.isfinite(negative_weight) and negative_weight >= 0):
            raise ValueError(f"negative_weight={negative_weight} must be a number of 0 or more")
        self.negative_weight = negative_weight

    def loss(self, reading: Reading) -> Tensor:
        """The mean over texts."""
        beta = 1.0 / (reading.scale - 1.0)
        own = logsigmoid(beta * _gain(reading))
        other = logsigmoid(-beta * _gain(reading.wrong()))
        return -((own + self.negative_weight * other) * reading.weights).mean()


def _gain(reading: Reading) -> Tensor:
    """``r`` of each text, nats, (texts,)."""
    gained = picked(reading.student, reading.tokens) - picked(reading.before, reading.tokens)
    return by_text(gained, reading)
