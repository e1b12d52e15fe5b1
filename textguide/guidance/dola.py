"""Decoding by contrasting layers (Chuang et al., arXiv 2309.03883)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import algebra
from .base import About, Branch, Step
from .contrastive import Plausible
from .views import EarlyExit, as_exits


@dataclass(frozen=True)
class DoLa(Plausible):
    """What the late layers of a model know and its early ones do not.

    ``log q_N − log q_M`` inside the plausible set (Eq. 3, 6): ``q_N`` is the model, ``q_M`` the distribution that its
    last norm and head read out of an early layer. Of several early layers the one whose distribution is farthest from
    the model's by Jensen–Shannon divergence is taken at every step and row (Eq. 5). Helps facts, in the paper on LLaMA.
    Costs the early layers once more a step for every exit, with a cache of their own: ``Σ depth`` of a pass.

    Args:
        alpha: tokens with ``p ≥ alpha · max p`` stay; 0: all. The paper uses 0.1.
        beta: None: the difference above. Otherwise ``(1 + β) lc − β le``, which changes nothing at β = 0 and α = 0.
        exits: the candidate layers, each a number of layers that are run (an integer), or a share of the depth.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    exits: Any = (0.25, 0.5)

    name = "dola"
    about = About(
        "2309.03883", "lc − le, where p ≥ 0.1 max p; e the farthest of some early layers",
        "the early layers once more for every exit", "β = 0 and α = 0", "facts",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(exits=as_exits(self.exits))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """One exit each."""
        return tuple(Branch(same_prompt=True, view=EarlyExit(depth)) for depth in self.exits)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """Equations 3 to 6 on ``logp`` (1 + exits, B, V)."""
        cond, early = logp[0], logp[1:]
        if len(early) == 1:
            return self.contrast(cond, early[0])
        middle = torch.logaddexp(early, cond.expand_as(early)) - torch.log(torch.tensor(2.0))
        apart = algebra.kl_divergence(early, middle) + algebra.kl_divergence(cond.expand_as(early), middle)
        premature = apart.argmax(0)
        return self.contrast(cond, early[premature, torch.arange(early.shape[1], device=early.device)])
