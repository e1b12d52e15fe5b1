"""Expert ensembles: several models, weighted by how well each predicts the text (Li et al., arXiv 2208.03306)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..support.checks import finite_number, flag
from . import algebra
from .base import About, Branch, BranchGuidance, Step


@dataclass(frozen=True)
class ExpertEnsemble(BranchGuidance):
    """Mix the distributions of several models by the probability that each of them wrote the text.

    ``p(x_t | x_<t) = Σ_j P(j | x_<t) p_j(x_t | x_<t)`` with ``P(j | x_<t) ∝ P(j) Π_{s<t} p_j(x_s | x_<s)``
    (Branch-Train-Merge, arXiv 2208.03306; the weights are those of DEMix, arXiv 2108.05036): Bayes' rule, token by
    token. The model that is being decoded is the first expert; ``models={"law": …, "code": …}`` holds the others, with
    the same tokens. Adapters of one model can share its weights through :func:`textguide.models.adapters`. Costs one
    pass of each additional model per step.

    Only the generated text updates the weights: the prompt counts only through the prior. In the papers, the prior is
    a moving average of the experts' weights over a few texts of the domain; here it is an argument. The papers mix the
    best few of many experts; here all named experts are mixed.

    Args:
        models: names of the other experts in ``models=``.
        prior: ``P(j)``, one non-negative number for the model that is being decoded and one for each of ``models``;
            scaled to sum to 1. None: all equal. An expert with prior 0 is not used: ``(0, 1, 1)`` excludes the model
            that is being decoded.
        updated: update the weights with the text. False keeps the prior: a fixed mixture.

    A token that the model being decoded forbids stays forbidden.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    models: tuple[str, ...] = ("expert",)
    prior: tuple[float, ...] | None = None
    updated: bool = field(default=True, kw_only=True)

    name = "expert-ensemble"
    reads_likelihoods = True
    about = About(
        paper="2208.03306",
        rule="log Σ P(j | text so far) p_j, j over several models",
        passes="one pass of each additional model",
        neutral="the prior of the model itself is 1",
        helps="texts of several domains, each with its own model or adapter",
        mechanism="all experts are mixed with a fixed prior; the paper estimates the prior and mixes the best few",
    )

    def __post_init__(self) -> None:
        models = (self.models,) if isinstance(self.models, str) else self.models
        names = tuple(models) if isinstance(models, Sequence) else ()
        if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"models={self.models!r} must be different names of models in models=, at least one")
        self._put(models=names)
        flag("updated", self.updated)
        if self.prior is not None:
            self._put(prior=_prior(self.prior, len(names) + 1))

    @property
    def is_neutral(self) -> bool:
        """Whether only the model that is being decoded has a prior above 0."""
        return self.prior is not None and not any(self.prior[1:])

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The other experts, after the same prompt."""
        return tuple(Branch(same_prompt=True, model=name) for name in self.models)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The mixture of ``logp`` (1 + models, B, V)."""
        return (self.log_weights(logp, step)[..., None] + logp).logsumexp(0)

    def factors(self, branches: int) -> tuple[int, ...]:
        """A mixture adds probabilities: an expert that forbids a token adds 0."""
        return tuple(range(1, branches))

    def log_weights(self, logp: Tensor, step: Step) -> Tensor:
        """``log P(j | text so far)``, (n, B), in the dtype of ``logp`` (n, B, V).

        Raises:
            ValueError: the step does not contain the likelihoods of the text.
        """
        shares = self.prior or (1.0,) * len(logp)
        prior = torch.tensor([math.log(share) if share else -math.inf for share in shares], device=logp.device)
        prior = prior.log_softmax(0)[:, None].expand(-1, logp.shape[1])
        if not self.updated:
            return prior.to(logp.dtype)
        if step.likelihoods is None:
            raise ValueError(
                "step.likelihoods=None: ExpertEnsemble needs the probability of the text so far under each expert"
            )
        weights = prior + step.likelihoods
        # A forced token may be impossible for every expert. The text is then no evidence, and the prior applies.
        weights = torch.where((weights.amax(0) > algebra.FORBIDDEN)[None], weights, prior)
        return weights.log_softmax(0).to(logp.dtype)


def _prior(value: Any, experts: int) -> tuple[float, ...]:
    shares = tuple(finite_number("prior", share) for share in value) if isinstance(value, Sequence) else ()
    if len(shares) != experts or min(shares) < 0 or not any(shares):
        raise ValueError(
            f"prior={value!r} must be {experts} numbers of 0 or more, not all 0: one for the model that is decoded and "
            "one for each of models"
        )
    return shares
