"""CorrSynth: correlated sampling for sets of texts (Kowshik et al., arXiv 2411.08553)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...support.checks import whole_number
from .. import algebra
from ..base import About, Branch, Step
from ..scaled import Scaled


@dataclass(frozen=True)
class CorrSynth(Scaled):
    """Decode several prompts together, each moving away from the tokens that the others are about to generate.

    ``lᵢ + (γ − 1)(lᵢ − mean_j lⱼ)``, where ``j`` runs over the other texts of the group that are still being
    generated, each at its own last token. With one prompt per class, the texts of different classes become more
    distinct. Prompts are grouped in their order, ``group`` of them at a time. With ``num_return_sequences``, each
    group is generated that many times: the first texts of its prompts form one group, the second ones another, so
    copies of a prompt are never contrasted. K texts cost K rows, the same as plain decoding.

    Experimental: the paper's constants could not be obtained, and the paper also describes pairings other than with
    the mean. The output depends on the whole group, so a batch differs from its rows one by one, and a text cannot be
    scored. CorrSynth is refused in combination with particles or branching, whose rows do not keep their positions.

    Args:
        group: K, the number of prompts in a group, 2 or more; the batch consists of whole groups.
    """

    group: int = field(default=2, kw_only=True)
    across_rows: ClassVar[bool] = True

    name = "corrsynth"
    about = About(
        paper="2411.08553",
        rule="lᵢ + (γ − 1)(lᵢ − mean of the other rows' l)",
        passes="nothing",
        neutral="γ = 1",
        helps="sets of texts with one prompt per class",
        experimental=True,
        mechanism="away from the mean of the other texts; the paper's other pairings and constants are left out",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("group", self.group, 2)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """None, because the other rows of the batch take their role."""
        return ()

    @property
    def off_at_one(self) -> bool:
        """Always, because a text then keeps its own log-probabilities."""
        return True

    def acts(self, step: Step) -> bool | Tensor:
        """As for every scale. A batch that does not consist of whole groups is refused at its first token.

        Raises:
            ValueError: the batch does not consist of whole groups.
        """
        prompts = step.batch // step.copies
        if prompts % self.group:
            raise ValueError(
                f"group={self.group} does not divide a batch of {prompts} prompts; pass whole groups in order"
            )
        return super().acts(step)

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """The formula above on ``logp`` (1, B, V), for the rows ``step.rows``.

        Raises:
            ValueError: the rows are not known (a text is scored).
        """
        if step.rows is None:
            raise ValueError("corrsynth contrasts texts that are generated together; it cannot score a text")
        cond = logp[0]
        guided = cond.clone()
        groups: dict[tuple[int, int], list[int]] = {}
        for index, row in enumerate(step.rows):
            prompt, copy = divmod(row, step.copies)
            groups.setdefault((prompt // self.group, copy), []).append(index)
        for indices in groups.values():
            if len(indices) < 2:  # the other texts of the group are finished
                continue
            members = torch.tensor(indices, device=cond.device)
            logps = cond[members]
            others = (logps.sum(0) - logps) / (len(indices) - 1)
            own_scale = scale[members] if isinstance(scale, Tensor) else scale
            guided[members] = algebra.extrapolate(logps, others, own_scale)
        return guided
