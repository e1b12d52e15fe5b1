"""GenARM: an autoregressive reward model reweights every next token (Xu et al., arXiv 2410.08193)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..support.checks import LARGEST_FACTOR, flag, number_from
from .base import About, Branch, BranchGuidance, Step


@dataclass(frozen=True)
class GenARM(BranchGuidance):
    """Multiply the model with a language model whose log-probabilities are a reward.

    ``log p(w) ∝ log π_base(w) + (1/β) log π_r(w)`` (arXiv 2410.08193, the token-level version of its KL-regularised
    objective). An autoregressive reward model is a language model ``π_r`` that was trained on preferences such that
    the log-probability of an answer is its reward. So one pass gives a reward for every next token.
    ``models={"reward": …}`` holds it. It must share the tokens of the model that is being decoded and may be much
    smaller. Any other tuned language model can be used instead, without the paper's guarantee. Costs one pass of the
    reward model per step.

    Several rewards, each with its own 1/β, are ``Formula("cond + 0.5*M('helpful') + 0.2*M('harmless')")``, as in the
    paper's experiments with several objectives. The paper normalises every step, which samples the product over whole
    texts only approximately; together with :class:`textguide.FeynmanKac`, texts are weighted for the product itself.

    Args:
        reward_model: name of the reward model in ``models``.
        beta: β, the penalty for leaving the model: above 0; a smaller β makes the reward stronger. None: infinite,
            which changes nothing.
        renormalize: return normalised log-probabilities; without a penalty, the sampled distribution is the same
            either way.

    A token that the model forbids stays forbidden; a token that only the reward model forbids keeps its
    log-probability.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    reward_model: str = "reward"
    beta: float | None = 1.0
    renormalize: bool = field(default=True, kw_only=True)

    name = "genarm"
    about = About(
        paper="2410.08193",
        rule="lc + (1/β) lr, r an autoregressive reward model",
        passes="one pass of the reward model",
        neutral="β = ∞ (None)",
        helps="preferences for which a small model was trained",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.reward_model, str) or not self.reward_model:
            raise ValueError(f"reward_model={self.reward_model!r} must be the name of a model in models=")
        if self.beta is not None:
            remedy = "a larger beta makes the reward weaker"
            self._put(beta=number_from("beta", self.beta, 1 / LARGEST_FACTOR, remedy))
        flag("renormalize", self.renormalize)

    @property
    def is_neutral(self) -> bool:
        """Whether β is infinite."""
        return self.beta is None

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The reward model, after the same prompt."""
        return (Branch(same_prompt=True, model=self.reward_model),)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The product on ``logp`` (2, B, V): model, reward model."""
        weight = 0.0 if self.beta is None else 1.0 / self.beta
        return logp[0] + weight * logp[1]
