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
    """Contrast the last layer of a model with its early layers.

    ``log q_N − log q_M`` on the plausible set (Eq. 3, 6): ``q_N`` is the model's own distribution, and ``q_M`` the one
    that its last norm and head produce from an early layer. If there are several early layers, the one whose
    distribution has the largest Jensen–Shannon divergence from the model's is used at every step and row (Eq. 5).
    Improves facts, in the paper for LLaMA. Runs the early layers once more per step for every exit, each with its own
    cache: ``Σ depth`` of a pass.

    Args:
        alpha: tokens with ``p ≥ alpha · max p`` are kept. 0: all tokens. The paper uses 0.1.
        beta: None: the difference above. Otherwise ``(1 + β) lc − β le``, which changes nothing at β = 0 and α = 0.
        exits: the candidate layers, each as the number of layers to run (an integer) or as a share of the depth.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    exits: Any = (0.25, 0.5)

    name = "dola"
    about = About(
        paper="2309.03883",
        rule="lc − le, where p ≥ 0.1 max p; e the most different of some early layers",
        passes="the early layers once more for every exit",
        neutral="β = 0 and α = 0",
        helps="factual answers",
    )

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
        # Twice the Jensen–Shannon divergence, which is enough to find the largest.
        divergence = algebra.kl_divergence(early, middle) + algebra.kl_divergence(cond.expand_as(early), middle)
        premature = divergence.argmax(0)
        return self.contrast(cond, early[premature, torch.arange(early.shape[1], device=early.device)])
