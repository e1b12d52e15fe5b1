"""CorrSynth: correlated sampling for sets of texts (Kowshik et al., arXiv 2411.08553)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import algebra
from ..base import About, Branch, Step
from ..scaled import Scaled


@dataclass(frozen=True)
class CorrSynth(Scaled):
    """Prompts that are decoded together, each moving away from what the others are about to write.

    ``lᵢ + (γ − 1)(lᵢ − mean_j lⱼ)`` with ``j`` the other texts of the group that are still being written, each at its
    own last token: texts for several classes, one prompt a class, that differ in what makes the class. The prompts
    follow each other, ``group`` of them at a time. K texts cost K rows, no more than plain decoding.

    Experimental: the paper's constants were not to be had, and it also knows pairings other than with the mean. What is
    written depends on the whole group, so that a batch is not its rows one by one, and a text cannot be scored.

    Args:
        group: K, how many prompts belong together, 2 or more; the batch holds whole groups.
    """

    group: int = field(default=2, kw_only=True)

    name = "corrsynth"
    about = About(
        "2411.08553", "lᵢ + (γ − 1)(lᵢ − mean of the other rows' l)", "nothing", "γ = 1",
        "sets of texts, one prompt a class", experimental=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.group, int) or isinstance(self.group, bool) or self.group < 2:
            raise ValueError(f"group={self.group!r} must be a whole number of 2 or more")
        if self.skip_threshold is not None:
            raise ValueError("skip_threshold leaves extra branches out, and corrsynth has none; leave it None")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """None: the other rows of the batch are the branches."""
        return ()

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """The formula above on ``logp`` (1, B, V), with ``step.rows`` saying which rows these are.

        Raises:
            ValueError: the rows are not known (a text is scored), or the batch does not hold whole groups.
        """
        if step.rows is None:
            raise ValueError("corrsynth looks at texts that are written together; it cannot score a text")
        if step.batch % self.group:
            raise ValueError(
                f"group={self.group} and a batch of {step.batch} prompts do not fit; give whole groups, side by side"
            )
        cond = logp[0]
        guided = cond.clone()
        groups = torch.tensor([row // self.group for row in step.rows], device=cond.device)
        for number in groups.unique().tolist():
            members = (groups == number).nonzero()[:, 0]
            if len(members) < 2:
                continue
            laws = cond[members]
            others = (laws.sum(0) - laws) / (len(members) - 1)
            if not bool(torch.isfinite(laws).all()):  # −∞ − −∞
                keep = ~torch.eye(len(members), dtype=torch.bool, device=cond.device)
                others = torch.stack([laws[row].mean(0) for row in keep])
            guided[members] = algebra.extrapolate(laws, others, scale)
        return guided
