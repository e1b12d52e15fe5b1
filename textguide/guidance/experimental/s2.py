"""S²-Guidance (Chen et al., arXiv 2508.12880)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...support.checks import factor, whole_number
from .. import algebra
from ..base import ROW, About, Branch, Step
from ..scaled import Contrast
from ..views import WithoutBlocks


@dataclass(frozen=True)
class S2Guidance(Contrast):
    """Classifier-free guidance that also moves away from a weakened version of the model.

    ``lu + γ (lc − lu) − ω (ld − lc)``, where ``d`` reads the same prompt with a tenth of the blocks left out. The
    paper drops different blocks at every denoising step of an image model. Here they stay the same within a run,
    because the weakened pass has a cache. Costs one extra row in the same pass, and nine tenths of an extra pass.

    Experimental: the paper's ω could not be obtained, and 0.25 is a guess.

    Args:
        weight: ω; 0 is plain classifier-free guidance.
        drop: share of the blocks that is left out, in (0, 1); never the first or the last.
        seed: seed for choosing the blocks.
    """

    weight: float = field(default=0.25, kw_only=True)
    drop: float = field(default=0.1, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    name = "s2"
    about = About(
        paper="2508.12880",
        rule="lu + γ (lc − lu) − ω (ld − lc), d with a tenth of the blocks left out",
        passes=f"{ROW}, and nine tenths of a pass",
        neutral="γ = 1 and ω = 0",
        helps="tasks on which CFG helps",
        experimental=True,
        mechanism="the same blocks are left out for a whole run instead of new ones at every step",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(weight=factor("weight", self.weight))
        WithoutBlocks(self.drop, whole_number("seed", self.seed))  # checks the share

    @property
    def off_at_one(self) -> bool:
        """Only if there is no weakened branch."""
        return self.weight == 0.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unconditional branch and, for ω ≠ 0, the weakened one."""
        if self.weight == 0.0:
            return super().branches
        return (*super().branches, Branch(same_prompt=True, view=WithoutBlocks(self.drop, self.seed)))

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """The formula above on ``logp`` (2 or 3, B, V): conditional, unconditional, weakened."""
        guided = algebra.extrapolate(logp[0], logp[1], scale)
        if self.weight == 0.0:
            return guided
        return guided + self.weight * (logp[0] - logp[2])
