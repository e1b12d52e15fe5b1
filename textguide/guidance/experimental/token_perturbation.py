"""Token perturbation guidance (Rajabi et al., arXiv 2506.10036)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...support.checks import whole_number
from ..base import ROW, About, Branch
from ..edits import Shuffled
from ..scaled import Scaled


@dataclass(frozen=True)
class TokenPerturbation(Scaled):
    """Move away from the model's prediction for a prompt with shuffled tokens.

    ``lp + γ (lc − lp)``, where ``p`` reads the shuffled prompt: the same tokens in random order. The paper writes
    ``s⁺ + k (s⁺ − s⁻)``, so ``γ = k + 1``, and shuffles tokens inside chosen layers of an image model (k = 3). Costs
    one extra row in the same pass.

    Experimental: in a language model that reads from left to right, the order is in the input, so the input is
    shuffled here. The last token stays, because the text continues from it.

    Args:
        seed: seed of the shuffled order.
    """

    seed: int = field(default=0, kw_only=True)

    name = "token-perturbation"
    about = About(
        paper="2506.10036",
        rule="lp + γ (lc − lp), p the prompt with its tokens shuffled",
        passes=ROW,
        neutral="γ = 1",
        helps="prompts whose order matters",
        experimental=True,
        mechanism="shuffles the tokens of the prompt instead of hidden states inside chosen layers",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("seed", self.seed)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The shuffled prompt."""
        return (Branch(edit=Shuffled(self.seed)),)
