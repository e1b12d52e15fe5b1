"""Discrete classifier guidance of masked diffusion (arXiv 2412.10193, D-CBG; arXiv 2406.01572)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.checks import flag, whole_number
from .base import About
from .canvas_guidance import CanvasPredictions, CanvasReweighting
from .text_reweighting import reweigh


@dataclass(frozen=True)
class DiscreteClassifier(CanvasReweighting):
    """Reweight a token at a masked position by a classifier's probability for the canvas with the token filled in.

    ``p'(v at l | z) ∝ p(v at l | z) · p(y | z with v at l)^γ`` (D-CBG, arXiv 2412.10193, section 3.2). The other masks
    stay masks, so the classifier has to understand canvases with masks. ``taylor=True`` replaces the classifier's
    values with ``log p(y|z) + (x_v − x_mask)ᵀ ∇ₓ log p(y|z)``: one call with a gradient for all positions and tokens
    (both papers; TAG in arXiv 2406.01572).

    **What the sampler decides.** The papers also reweight the event "stays masked", and arXiv 2406.01572 the rates at
    which positions are filled. Here ``order=`` and ``steps=`` decide which positions are filled, and the rule decides
    with which token. With γ = 1, one position per step in a random order, a denoiser that knows ``p(x)`` and a
    classifier that knows ``p(y|z)``, the total weights of all positions are equal, and texts are drawn exactly from
    ``p(x|y)``. D-CFG of arXiv 2412.10193, ``γ log p(x|y) + (1 − γ) log p(x)``, is :class:`textguide.CFG`.

    Args:
        predictor, target, weight: see :class:`CanvasGuidance`; weight is γ.
        taylor: use the first-order approximation; needs a :class:`textguide.classifiers.CanvasPredictor`.
        top_k: number of candidates per position; all other tokens get probability 0. None: every token. Ignored with
            ``taylor``.

    Costs ``top_k`` classifier calls per masked position of the block (with ``taylor``, one per row), and no pass of
    the denoiser.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    taylor: bool = False
    top_k: int | None = None

    name = "discrete-classifier"
    about = About(
        paper="2412.10193",
        rule="lc + γ log p(y | canvas with the token), exact or to first order",
        passes="the classifier on every candidate of a position; with `taylor`, once per row",
        neutral="γ = 0",
        helps="a property that a classifier can judge on canvases with masks",
        example="discrete-classifier:predictor=sentiment,target=positive,top_k=10",
        compared="it fills canvases",
        mechanism="decides which token fills a position; order= and steps= decide when, instead of the paper's rates",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        flag("taylor", self.taylor)
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1)

    def weigh(self, logp: Tensor, share: Tensor, predictions: CanvasPredictions) -> Tensor:
        """``p · p(y | …)^γ`` on the candidates, normalised."""
        count = logp.shape[-1]
        if self.taylor:
            everything = torch.arange(count, device=logp.device).expand(len(logp), -1)
            return reweigh(logp, everything, share * self.weight * predictions.mask_gradient())
        candidates = logp.topk(min(self.top_k or count, count), dim=-1).indices
        bonus = predictions.with_token(candidates, logp.gather(-1, candidates).isfinite()).to(logp)
        return reweigh(logp, candidates, share * self.weight * bonus)
