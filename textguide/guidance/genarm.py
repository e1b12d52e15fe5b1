"""GenARM: an autoregressive reward model weighs every next token (Xu et al., arXiv 2410.08193)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..support.checks import LARGEST_FACTOR, finite_number
from .base import About, Branch, BranchGuidance, Step


@dataclass(frozen=True)
class GenARM(BranchGuidance):
    """Multiply the model with a language model whose log-probabilities are a reward.

    ``log p(w) ∝ log π_base(w) + (1/β) log π_r(w)`` (arXiv 2410.08193, the token-level form of its KL-regularised
    objective): an autoregressive reward model is a language model ``π_r`` that was trained on preferences so that the
    reward of an answer is its log-probability. The reward then has a value for every next token, from one pass.
    ``models={"reward": …}`` holds it; it may be much smaller than the model that is decoded, whose tokens it shares.
    Any tuned language model can stand there, without the paper's promise. Costs one pass of the reward model a step.

    Several rewards, each with a 1/β of its own, are ``Formula("cond + 0.5*M('helpful') + 0.2*M('harmless')")``, as in
    the paper's experiments with several objectives. The paper normalises every step, which samples the product over
    whole texts only nearly; beside :class:`textguide.FeynmanKac` texts are weighed for the product itself.

    Args:
        reward_model: name of the reward model in ``models``.
        beta: β, the price of leaving the model: above 0, the smaller the stronger the reward. None: infinitely large,
            which changes nothing.
        renormalize: return normalised log-probabilities; the sampled distribution is the same either way.

    A token that the model forbids stays forbidden; one that the reward model alone forbids keeps its log-probability.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    reward_model: str = "reward"
    beta: float | None = 1.0
    renormalize: bool = field(default=True, kw_only=True)

    name = "genarm"
    about = About(
        "2410.08193", "lc + (1/β) lr, r an autoregressive reward model", "a pass of the reward model", "β = ∞ (None)",
        "preferences that a small model was trained on",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not isinstance(self.reward_model, str) or not self.reward_model:
            raise ValueError(f"reward_model={self.reward_model!r} must be the name of a model in models=")
        if self.beta is not None:
            self._put(beta=finite_number("beta", self.beta))
            if self.beta < 1 / LARGEST_FACTOR:
                raise ValueError(
                    f"beta={self.beta} must be {1 / LARGEST_FACTOR:g} or more; the larger, the less the reward counts"
                )
        if not isinstance(self.renormalize, bool):
            raise ValueError(f"renormalize={self.renormalize!r} must be True or False")

    @property
    def is_neutral(self) -> bool:
        """β is infinite."""
        return self.beta is None

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The reward model, behind the same prompt."""
        return (Branch(same_prompt=True, model=self.reward_model),)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The product on ``logp`` (2, B, V): model, reward model."""
        weight = 0.0 if self.beta is None else 1.0 / self.beta
        return logp[0] + weight * logp[1]
