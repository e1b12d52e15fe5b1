"""Language-model guidance for captioning (Kornblith et al., arXiv 2307.16686, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..support.checks import factor
from .base import ROW, About, Branch, BranchGuidance, Step
from .prompts import as_prompts

LANGUAGE_MODEL = "language_model"
"""The name of the text-only model, in :attr:`Branch.model`."""


@dataclass(frozen=True)
class LMGuidance(BranchGuidance):
    """Let a text-only model that was shown captions provide the style, and the captioner the content of the image.

    ``log P̂ = log P_lm + α log P(w|image) − β log P(w|no image)``, normalised. If β equals α, nothing of the
    captioner's own language prior is left; the paper halves it. A newline ends the caption of the text-only model: its
    probability is moved to the end token. Costs one extra row of the captioner and one row of the text-only model for
    each decoded row.

    Args:
        alpha: α. The paper uses 1 to 10 and reports 5.
        beta: β. None: α/2.
        prompt: the text that the text-only model reads before the caption, best a few captions with a newline after
            each; a text or token ids of that model.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    alpha: float = 5.0
    beta: float | None = None
    prompt: Any = "\n"

    name = "lm"
    about = About(
        paper="2307.16686",
        rule="lm + α lc − β lu, lm a text-only model after captions",
        passes=f"{ROW}, and one of the text-only model",
        neutral="no setting",
        helps="captions that describe what only this image shows",
    )

    def __post_init__(self) -> None:
        self._put(alpha=factor("alpha", self.alpha))
        if self.beta is not None:
            self._put(beta=factor("beta", self.beta))
        prompt = as_prompts(self.prompt, "prompt")
        if not prompt:
            raise ValueError("prompt is empty; give some captions with a newline after each, or '\\n'")
        self._put(prompt=prompt)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The captioner without the image, and the text-only model after its captions."""
        return (Branch(), Branch(prompt=self.prompt, model=LANGUAGE_MODEL))

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The formula above on ``logp`` (3, B, V): with image, without, and the text-only model."""
        beta = self.alpha / 2 if self.beta is None else self.beta
        cond, uncond, text = logp
        return text + self.alpha * cond - beta * uncond

    def factors(self, branches: int) -> tuple[int, ...]:
        """The text-only model: tokens that it forbids are forbidden."""
        return (2,)
