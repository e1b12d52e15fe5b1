"""What reweightings of candidates share that ask something about the texts these make."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..support.checks import factor, finite_number, whole_number, window
from . import algebra, schedules
from .base import Step, TokenReweighting
from .needs import Need


@dataclass(frozen=True)
class TextReweighting(TokenReweighting):
    """``p'(w) ∝ p(w) · exp(weight · score(text with w))`` on the most likely candidates.

    Subclasses define a ``weight``, a ``top_k``, the :attr:`scorer` that they call (of a kind :attr:`asks`), and which
    of the returned numbers is used (:meth:`column`). Several reweightings in one run see the same distribution and
    candidates, and what they add to a candidate's log-probability adds up.

    Args:
        entropy_threshold: rows whose next-token entropy is below this many nats are left unchanged and are not scored.
            0 scores every row.
        every: only act at every n-th step, starting with the first.
        include_prompt: whether the prompt is part of the scored text, or only the generated text.
        schedule: how the weight changes with progress; a name from ``textguide.guidance.schedules``.
        start: progress, in [0, 1], before which the weight is 0.
        stop: progress after which the weight is 0.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    entropy_threshold: float = field(default=0.0, kw_only=True)
    every: int = field(default=1, kw_only=True)
    include_prompt: bool = field(default=True, kw_only=True)
    schedule: str = field(default="constant", kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    stop: float = field(default=1.0, kw_only=True)

    asks: ClassVar[str]
    """What kind of scorer a name in :attr:`scorer` stands for: a name of ``textguide.classifiers.RESOLVERS``."""

    def __post_init__(self) -> None:
        self._put(weight=factor("weight", self.weight))
        self._put(entropy_threshold=finite_number("entropy_threshold", self.entropy_threshold))
        if self.entropy_threshold < 0:
            raise ValueError(f"entropy_threshold={self.entropy_threshold} must be 0 or more nats")
        whole_number("every", self.every, 1)
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1)
        if not isinstance(self.include_prompt, bool):
            raise ValueError(f"include_prompt={self.include_prompt!r} must be True or False")
        schedules.parse(self.schedule)
        start, stop = window(self.start, self.stop)
        self._put(start=start, stop=stop)

    @property
    def needs(self) -> frozenset[Need]:
        """The texts of all candidates, and what scores them."""
        return super().needs | (frozenset() if self.asks == "classifier" else {Need.REWARD})

    @property
    @abstractmethod
    def scorer(self) -> Any:
        """What gives the numbers: an object, or a name."""

    @abstractmethod
    def column(self, scorer: Any) -> int:
        """Which of the numbers that the scorer (an object) gives for a text counts."""

    @property
    def is_neutral(self) -> bool:
        """The weight is 0."""
        return self.weight == 0.0

    @property
    def is_timed(self) -> bool:
        """A schedule or a window moves the weight."""
        return self.schedule != "constant" or (self.start, self.stop) != (0.0, 1.0)

    def weight_at(self, step: Step) -> float | Tensor:
        """The schedule's share of the weight inside the window, 0 outside."""
        progress: Any = step.progress
        return schedules.weight_at(self.schedule, self.weight, progress, self.start, self.stop)


def reweigh(logp: Tensor, candidates: Tensor, bonus: Tensor) -> Tensor:
    """The distribution over the candidates alone, ``∝ p · exp(bonus)``.

    Args:
        logp: normalised log-probabilities, (B, V).
        candidates: token ids, (B, k).
        bonus: what is added to each candidate's log-probability: ``Σ weight · score``; −inf forbids it. (B, k).

    Returns:
        Normalised log-probabilities (B, V), −inf everywhere but at the candidates. A token that ``logp`` forbids
        stays forbidden.
    """
    at = logp.gather(-1, candidates)
    # A forbidden token was not scored, and −inf plus whatever stands in its place must not come alive.
    weighed = torch.where(torch.isneginf(at), at, at + bonus)
    return algebra.log_softmax(torch.full_like(logp, -torch.inf).scatter(-1, candidates, weighed))
