"""Condition contrastive alignment (arXiv 2410.09347)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from ...support.checks import number_from
from .base import Objective, Reading, by_text, picked


class CCA(Objective):
    """Contrast texts after their own prompt with the same texts after the prompt of another text.

    ``−log σ(β r(x, c)) − λ log σ(−β r(x, c'))`` with ``r = log p(x|c) − log p₀(x|c)``, where ``p`` is the model in
    training and ``p₀`` the model before training. The text ``x`` belongs to the prompt ``c``, and ``c'`` is the prompt
    of another text. With λ = 1 the optimum is ``p ∝ p₀ (p₀(x|c) / p₀(x))^(1/β)``, which is that of classifier-free
    guidance at ``γ = 1 + 1/β``; therefore β is ``1 / (γ − 1)``. No guided distribution is computed: the contrast is
    between texts and not between tokens.

    Args:
        negative_weight: λ.
    """

    name = "cca"
    needs_contrast = True
    needs_prompts = True

    def __init__(self, negative_weight: float = 1.0) -> None:
        self.negative_weight = number_from("negative_weight", negative_weight, 0)

    def loss(self, reading: Reading) -> Tensor:
        """The mean over texts."""
        beta = 1.0 / (reading.scale - 1.0)
        own = logsigmoid(beta * _gain(reading))
        other = logsigmoid(-beta * _gain(reading.with_other_prompts()))
        return -((own + self.negative_weight * other) * reading.weights).mean()


def _gain(reading: Reading) -> Tensor:
    """``r`` of each text in nats, (texts,)."""
    gain = picked(reading.student, reading.tokens) - picked(reading.original, reading.tokens)
    return by_text(gain, reading)
