"""Guidance away from a token prior: a constant vector instead of a second pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..support.checks import share
from . import algebra, priors
from .base import About, Branch, Step
from .scaled import Contrast


@dataclass(frozen=True)
class TokenPrior(Contrast):
    """Move the next-token distribution away from tokens that are likely everywhere, at the cost of plain decoding.

    ``m + γ (lc − m)``, where ``m`` is the log of the model's average next-token distribution over all positions of a
    few texts without labels. This is the rule of classifier-free guidance with a constant instead of the second
    branch, and amounts to a temperature of 1/γ and a logit bias of ``(1 − γ)/γ · m``. It is a form of pointwise mutual
    information: Holtzman et al. (domain-conditional PMI, arXiv 2104.08315) divide the probabilities of answers by those
    after a constant context, and Zhao et al. (contextual calibration, arXiv 2102.09690) by those after an input without
    content. Here the divisor is a mean over contexts, and every token is divided, at the power γ − 1.

    Useful as a control for every method that moves away from a branch with less context, and on tasks whose answers are
    content words. It gained more than classifier-free guidance on LAMBADA and less on short factual completions (see
    the page of the method). With ``share`` below 1, the other branch is the mixture ``share · m + (1 − share) · lu``
    with the branch of :class:`CFG`, for the cost of one extra row.

    Args:
        prior: the average distribution: the name of a bundled one (``"smollm2"``, for the bundled models), a file that
            ``textguide prior train`` wrote, a :class:`textguide.guidance.priors.Prior`
            (:func:`textguide.estimate_prior`), or probabilities by token id, such as ``{464: 0.05}``, where all other
            tokens share the rest equally.
        share: weight of the prior in the other branch, in [0, 1]. 1: only the prior, without an extra pass. 0: only the
            branch of :class:`CFG`.

    Raises:
        ValueError: a field has an invalid value, or (when decoding) the prior cannot be read or has another vocabulary
            than the model.
    """

    prior: Any = field(kw_only=True)
    share: float = field(default=1.0, kw_only=True)

    name = "token-prior"
    about = About(
        paper="",
        rule="m + γ (lc − m), m the log of the average next-token distribution",
        passes="nothing; with share < 1, one row in the same pass",
        neutral="γ = 1",
        helps="answers that are content words, and as a control for other methods",
        example="token-prior:prior=smollm2",
        compared=tuple(f"token-prior:prior=smollm2,scale={scale}" for scale in ("1.25", "1.5", "2.0")),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(prior=priors.as_prior(self.prior), share=share("share", self.share, "1 uses only the prior"))
        if self.share == 1.0 and (self.negative_prompt is not None or self.negative_system is not None):
            raise ValueError(
                "share=1 uses no other branch than the prior, so negative_prompt and negative_system have no effect; "
                "leave them out, or lower share"
            )

    @property
    def off_at_one(self) -> bool:
        """γ = 1 changes nothing, whatever the prior."""
        return True

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unconditional branch, if the prior does not replace it."""
        return () if self.share == 1.0 else super().branches

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """``o + γ (lc − o)`` on ``logp`` (1 or 2, B, V), ``o`` the prior or its mixture with the second branch."""
        other = logp[1] if len(logp) > 1 else None
        if self.share > 0.0:
            prior = self._log_prior(logp)
            other = prior if other is None else torch.lerp(other, prior, self.share)
        assert other is not None
        return algebra.extrapolate(logp[0], other, scale)

    @property
    def ignores_shifts(self) -> bool:
        """A constant that is added to ``lc`` or ``lu`` only adds a constant to the scores."""
        return True

    @property
    def is_elementwise(self) -> bool:
        """The score of a token only depends on its own numbers."""
        return True

    def keeps_equal_branches(self) -> bool:
        """Only without the prior, which is another distribution even if both branches are equal."""
        return self.share == 0.0 or self.is_neutral

    def check_vocabulary(self, size: int) -> None:
        """Load the prior, and refuse it if the model's vocabulary has another ``size``.

        Raises:
            ValueError: it cannot be read or does not fit.
        """
        if self.share > 0.0:
            priors.log_probs(self.prior, size)

    @cached_property
    def _loaded(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    def _log_prior(self, logp: Tensor) -> Tensor:
        """The prior for the vocabulary and the device of ``logp``, (V,)."""
        key = (logp.shape[-1], logp.device)
        if key not in self._loaded:
            self._loaded[key] = priors.log_probs(self.prior, logp.shape[-1]).to(logp.device)
        return self._loaded[key]
