"""Base class of reweightings that score the texts that the candidates would make."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..support.checks import factor, flag, number_from, whole_number, window
from . import algebra, schedules
from .base import Step, TokenReweighting
from .needs import Need


@dataclass(frozen=True)
class TextReweighting(TokenReweighting):
    """``p'(w) ∝ p(w) · exp(weight · score(text with w))`` on the most likely candidates.

    Subclasses define a ``weight``, a ``top_k``, the :attr:`scorer` that they call, its :attr:`scorer_kind`, and which
    of the returned numbers is used (:meth:`column`). If there are several reweightings in one run, they see the same
    distribution and candidates, and the numbers that they add to a candidate's log-probability are summed.

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

    scorer_kind: ClassVar[str]
    """How the name of a :attr:`scorer` is resolved: a key of ``textguide.classifiers.RESOLVERS``."""

    def __post_init__(self) -> None:
        self._put(weight=factor("weight", self.weight))
        self._put(entropy_threshold=number_from("entropy_threshold", self.entropy_threshold, 0, "in nats"))
        whole_number("every", self.every, 1)
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1)
        flag("include_prompt", self.include_prompt)
        schedules.parse(self.schedule)
        start, stop = window(self.start, self.stop)
        self._put(start=start, stop=stop)

    @property
    def needs(self) -> frozenset[Need]:
        """The texts of the candidates, and a scorer for them."""
        return super().needs | (frozenset() if self.scorer_kind == "classifier" else {Need.REWARD})

    @property
    @abstractmethod
    def scorer(self) -> Any:
        """The source of the scores: an object, or its name."""

    @abstractmethod
    def column(self, scorer: Any) -> int:
        """The index of the number to use, among those that the scorer (an object) returns for a text."""

    @property
    def is_neutral(self) -> bool:
        """The weight is 0."""
        return self.weight == 0.0

    @property
    def is_timed(self) -> bool:
        """Whether a schedule or a window changes the weight."""
        return self.schedule != "constant" or (self.start, self.stop) != (0.0, 1.0)

    def weight_at(self, step: Step) -> float | Tensor:
        """The weight at this step: the schedule's value inside the window, 0 outside."""
        progress: Any = step.progress
        return schedules.weight_at(self.schedule, self.weight, progress, self.start, self.stop)


def reweigh(logp: Tensor, candidates: Tensor, bonus: Tensor) -> Tensor:
    """The distribution over only the candidates, ``∝ p · exp(bonus)``.

    Args:
        logp: normalised log-probabilities, (B, V).
        candidates: token ids, (B, k).
        bonus: the number to add to each candidate's log-probability, ``Σ weight · score``, (B, k); −inf forbids it.

    Returns:
        Normalised log-probabilities (B, V), −inf for all tokens except the candidates. A token that ``logp`` forbids
        stays forbidden.
    """
    plain = logp.gather(-1, candidates)
    # A forbidden token is not scored, and its bonus may be anything: −inf plus +inf would be NaN.
    weighed = torch.where(torch.isneginf(plain), plain, plain + bonus)
    return algebra.log_softmax(torch.full_like(logp, -torch.inf).scatter(-1, candidates, weighed))
