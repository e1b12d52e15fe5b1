"""TFG: training-free guidance by a predictor of finished texts (arXiv 2409.15761; on tokens arXiv 2501.14216)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ...support.checks import factor, whole_number
from .. import algebra
from ..base import About
from ..canvas_guidance import CanvasPredictions, CanvasReweighting

MOST = 20_000
"""The largest number of texts per row that ``samples=None`` evaluates."""


@dataclass(frozen=True)
class TFG(CanvasReweighting):
    """Reweight tokens by what a predictor of *finished* texts returns for the texts that a canvas can become.

    The denoised estimate of a canvas is the product of the distributions of its masks. ``samples`` texts are drawn
    from it, and a token's weight comes from the texts that contain it at its position (arXiv 2501.14216, the guided
    rates of its section 3): ``p'(v at l) ∝ Σ_k f(y | x_k)^ρ [x_k has v at l]``, whose limit for many samples is
    ``p(v at l) · E[f(y|x)^ρ | v at l]``. The predictor needs no training on masks and no gradient.

    Before that, if ``mean_strength`` μ is not 0, the estimate itself is optimised for ``iterations`` steps (mean
    guidance of arXiv 2409.15761, Algorithm 1, line 6): ``θ ← θ + μ ∇_θ log f(y | softmax θ)`` from ``θ = log p``.
    The predictor then reads each mask as the mixture of its tokens. This needs a
    :class:`textguide.classifiers.CanvasPredictor`.

    Experimental: the papers guide continuous variables, or rates in continuous time. Here the distributions of one
    step are guided, and ``order=`` decides which of them are used. Recurrence (going back a step) is left out. μ acts
    on log-probabilities, whereas the paper's acts on coordinates; the paper's smoothing of ``f`` by Gaussian noise has
    no counterpart for tokens. Only the masks of the current block are estimated; later blocks are left out of the
    text.

    Args:
        predictor, target, weight: see :class:`CanvasGuidance`; weight is ρ. The predictor should be one of whole
            texts, such as a classifier.
        samples: number of texts drawn for each row, K. None: every allowed text with its probability, which is exact
            and meant for small canvases (up to 20,000 texts). 0: none, so only mean guidance acts.
        mean_strength: μ; 0: no mean guidance.
        iterations: steps of mean guidance.

    Costs ``samples`` calls of the predictor per row and step, and ``iterations`` calls with a gradient.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    samples: int | None = 16
    mean_strength: float = 0.0
    iterations: int = 4

    name = "tfg"
    about = About(
        paper="2409.15761",
        rule="Σ f(y|x)^ρ over texts x that have the token, drawn from the denoised estimate",
        passes="`samples` predictor calls per row",
        neutral="ρ = 0, or no samples; and μ = 0",
        helps="a property of finished texts that any function can judge",
        example="tfg:predictor=sentiment,target=positive",
        experimental=True,
        compared="it fills canvases",
        mechanism="on distributions over tokens instead of continuous variables, and without recurrence",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None:
            whole_number("samples", self.samples, 0)
        self._put(mean_strength=factor("mean_strength", self.mean_strength))
        whole_number("iterations", self.iterations, 1)

    @property
    def is_neutral(self) -> bool:
        """Whether neither texts nor mean guidance have an effect."""
        return (self.weight == 0.0 or self.samples == 0) and self.mean_strength == 0.0

    def weigh(self, logp: Tensor, share: Tensor, predictions: CanvasPredictions) -> Tensor:
        """Mean guidance, and then the reweighting by texts."""
        if self.mean_strength != 0.0:
            logp = self.with_mean_guidance(logp, share, predictions)
        if self.weight == 0.0 or self.samples == 0:
            return logp
        if self.samples is None:
            tokens, chances = every_text(logp, predictions.rows)
        else:
            tokens = drawn_texts(logp, predictions.uniform(self.samples))
            chances = None
        values = predictions.with_all(tokens).to(logp.device, torch.float64)[:, predictions.rows]
        log_weights = values * (share * self.weight)[:, 0]
        if chances is not None:
            log_weights = log_weights + chances[:, predictions.rows]
        return weighted_counts(tokens, log_weights, logp)

    def with_mean_guidance(self, logp: Tensor, share: Tensor, predictions: CanvasPredictions) -> Tensor:
        """``θ ← θ + μ ∇_θ log f(y | softmax θ)``, ``iterations`` times, normalised. Forbidden tokens stay forbidden."""
        theta, allowed = logp, torch.isfinite(logp)
        for _ in range(self.iterations):
            weights = torch.softmax(theta, -1)
            slope = predictions.gradient(weights).to(theta)
            # The derivative through the softmax: p ⊙ (g − p·g).
            slope = weights * (slope - (weights * slope).sum(-1, keepdim=True))
            theta = torch.where(allowed, theta + share * self.mean_strength * slope, theta)
        return algebra.log_softmax(theta)


def drawn_texts(logp: Tensor, uniform: Tensor) -> Tensor:
    """A token for each position in each of K texts, (N, V) and (K, N) → (K, N), by inverting the distribution."""
    mass = logp.double().exp().cumsum(-1)
    tokens = torch.searchsorted(mass, (uniform.T * mass[:, -1:]).contiguous(), right=True).T
    last = logp.isfinite().long().cumsum(-1).argmax(-1)  # rounding must not lead past the last allowed token
    return torch.minimum(tokens, last)


def every_text(logp: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Every allowed text, as tokens (K, N), with its log-probability in each row, (K, B) in float64.

    Rows with fewer texts than others are padded with repeated texts at −inf.

    Raises:
        ValueError: a row has more than 20,000 texts.
    """
    count = int(rows.max()) + 1
    each: list[list[tuple[int, ...]]] = []
    for row in range(count):
        allowed = [one.isfinite().nonzero()[:, 0].tolist() for one in logp[rows == row]]
        size = 1
        for tokens in allowed:
            size *= len(tokens)
        if size > MOST:
            raise ValueError(
                f"samples=None evaluates every text, and {len(allowed)} masks of a row have {size:,} texts, of at most "
                f"{MOST:,}; give a number of samples"
            )
        each.append(list(product(*allowed)))
    longest = max(map(len, each))
    chances = torch.full((longest, count), -torch.inf, dtype=torch.float64, device=logp.device)
    tokens = torch.zeros(longest, len(rows), dtype=torch.long, device=logp.device)
    for row, texts in enumerate(each):
        positions = (rows == row).nonzero()[:, 0]
        filled = torch.tensor(texts, device=logp.device)
        chances[: len(texts), row] = logp[positions].double()[torch.arange(len(positions)), filled].sum(-1)
        tokens[:, positions] = filled[:1]
        tokens[: len(texts), positions] = filled
    return tokens, chances


def weighted_counts(tokens: Tensor, log_weights: Tensor, logp: Tensor) -> Tensor:
    """``log Σ_k exp(log_weights) [token]`` of every token, normalised: (K, N) and (K, N) → (N, V) as ``logp``."""
    weights = torch.softmax(log_weights, 0)
    total = torch.zeros(logp.shape, dtype=torch.float64, device=logp.device)
    total.scatter_add_(1, tokens.T, weights.T.contiguous())
    return algebra.log_softmax(total.log().to(logp.dtype))
