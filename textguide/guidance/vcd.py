"""Visual contrastive decoding (Leng et al., arXiv 2311.16922)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..support.checks import factor, share
from . import algebra
from .base import ROW, About, Branch, BranchGuidance, Step
from .edits import NoisedImage


@dataclass(frozen=True)
class VCD(BranchGuidance):
    """The model's prediction for an image, contrasted with its prediction for the image with noise.

    ``(1 + α) lc − α ln`` where ``p ≥ β max p`` (section 3). ``n`` reads the same prompt with the image after ``steps``
    steps of the forward process of a diffusion model. Tokens that the text suggests without the image are also likely
    with the noised image, and are reduced: this avoids objects that are not in the image. For models that see images
    (:func:`textguide.caption`, or ``images=`` of :func:`textguide.generate`). Costs one extra row in the same pass,
    and one extra call of the image encoder.

    The noise is seeded by the image, so an image gets the same noise in every run and batch; the authors draw new
    noise each time. As in their code, the noise is added to the pixels that the processor returns.

    Args:
        alpha: α; 0 disables the contrast. The paper uses 1.
        beta: tokens with ``p ≥ beta · max p`` under the original image are kept. 0: all tokens. The paper uses 0.1.
        steps: number of noise steps out of 1,000, from 0 to 999; the authors' scripts use 500.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    alpha: float = 1.0
    beta: float = 0.1
    steps: int = 500

    name = "vcd"
    about = About(
        paper="2311.16922",
        rule="(1 + α) lc − α ln, where p ≥ 0.1 max p; n the image with noise",
        passes=ROW,
        neutral="α = 0 and β = 0",
        helps="captions and answers that mention objects that are not in the image",
        mechanism="the noise depends on the image alone instead of being drawn anew for every run",
    )

    def __post_init__(self) -> None:
        self._put(alpha=factor("alpha", self.alpha))
        self._put(beta=share("beta", self.beta, "the paper uses 0.1"))
        NoisedImage(self.steps)  # checks the number of steps

    @property
    def is_neutral(self) -> bool:
        """Whether α = 0 and all tokens are plausible."""
        return self.alpha == 0.0 and self.beta == 0.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The image with noise."""
        return (Branch(edit=NoisedImage(self.steps)),)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The contrast on ``logp`` (2, B, V): the original image, and the image with noise."""
        score = algebra.extrapolate(logp[0], logp[1], 1.0 + self.alpha)
        if self.beta > 0.0:
            score = score.masked_fill(~algebra.plausibility_mask(logp[0], self.beta), float("-inf"))
        return score
