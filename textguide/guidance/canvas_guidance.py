"""Base classes of guidances that evaluate a canvas of masks as a whole with a predictor."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..support.checks import factor, flag, is_whole_number, window
from . import schedules
from .base import Guidance, Step
from .needs import Need


@dataclass(frozen=True)
class CanvasGuidance(Guidance):
    """A predictor ``f(y | text)`` and its weight. A run of masked diffusion uses at most one guidance of this kind.

    Args:
        predictor: the source of ``log f``. With a ``target``, a classifier: an object of ``textguide.classifiers``, or
            its name, such as ``"sentiment"``. It reads the text of a canvas without the positions that are still
            masked. Without a target, a reward whose number is used as ``log f``: a function from texts to numbers, an
            object, or a name. Or a :class:`textguide.classifiers.CanvasPredictor`, which reads the tokens and the
            masks themselves.
        target: the class to steer towards, by name or number. None for a reward.
        weight: the power of ``f``. 0 changes nothing.
        include_prompt: whether a predictor of texts also reads the prompt, or only the filled positions.
    """

    predictor: Any
    target: str | int | None = None
    weight: float = 1.0
    include_prompt: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        is_named = isinstance(self.predictor, str) and bool(self.predictor.strip())
        methods = ("log_prob", "reward", "__call__", "read")
        if not is_named and not any(hasattr(self.predictor, method) for method in methods):
            raise ValueError(
                f"predictor={self.predictor!r} does not evaluate texts; pass a classifier or a reward of "
                "textguide.classifiers, a function from texts to numbers, a CanvasPredictor, or a name"
            )
        if self.target is not None and not isinstance(self.target, str) and not is_whole_number(self.target):
            raise ValueError(f"target={self.target!r} must be the name or the number of a class, or None for a reward")
        flag("include_prompt", self.include_prompt)
        self._put(weight=factor("weight", self.weight))

    @property
    def needs(self) -> frozenset[Need]:
        """A canvas, and a predictor for the texts that it can become."""
        return frozenset({Need.ESTIMATE})

    @property
    def is_neutral(self) -> bool:
        """The weight is 0."""
        return self.weight == 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. A function is written as ``python:MODULE:NAME``, from which it can be imported again."""
        values = super().to_dict()
        if not isinstance(self.predictor, str) and not hasattr(self.predictor, "to_dict"):
            module = getattr(self.predictor, "__module__", "")
            name = getattr(self.predictor, "__qualname__", type(self.predictor).__name__)
            values["predictor"] = f"python:{module}:{name}"
        return values


class CanvasPredictions(Protocol):
    """A predictor's values for the canvases of one step, which have N masked positions in all.

    Attributes:
        rows: the row of each position, (N,), in ascending order; rows are numbered from 0 without gaps.
    """

    rows: Tensor

    def with_token(self, candidates: Tensor, wanted: Tensor) -> Tensor:
        """``log f`` (N, k) of canvases in which one position is filled.

        Args:
            candidates: the tokens to fill each position with, one at a time, (N, k). The other masks stay masks.
            wanted: which candidates to evaluate, bool (N, k); the others get 0.
        """

    def with_all(self, tokens: Tensor) -> Tensor:
        """``log f`` (K, B) of the canvases with all positions filled: tokens (K, N)."""

    def gradient(self, weights: Tensor | None = None) -> Tensor:
        """``∂ log f / ∂ x`` (N, V) at the canvas as it is, or with each position a mixture of tokens, (N, V).

        ``x`` is the canvas as one-hot rows, one row per position; embeddings are linear in it.

        Raises:
            ValueError: the predictor reads text, so it has no derivative.
        """

    def mask_gradient(self) -> Tensor:
        """``∂ log f / ∂ x`` (N, V) minus its value for the mask: the first-order change when a token replaces it."""

    def uniform(self, draws: int) -> Tensor:
        """Uniform numbers (draws, N) in float64, from the run's seed."""


@dataclass(frozen=True)
class CanvasReweighting(CanvasGuidance):
    """Reweights the distributions of all masked positions, after the branches and the constraint.

    Args:
        schedule: how the weight changes with the share of the canvas that is filled.
        start: progress, in [0, 1], before which the weight is 0.
        stop: progress after which the weight is 0.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    schedule: str = field(default="constant", kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    stop: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        schedules.parse(self.schedule)
        start, stop = window(self.start, self.stop)
        self._put(start=start, stop=stop)

    @property
    def is_timed(self) -> bool:
        """Whether a schedule or a window changes the weight."""
        return self.schedule != "constant" or (self.start, self.stop) != (0.0, 1.0)

    def share_at(self, step: Step) -> float | Tensor:
        """The factor of the fields at this step: the schedule's value inside the window, 0 outside."""
        progress: Any = step.progress
        return schedules.weight_at(self.schedule, 1.0, progress, self.start, self.stop)

    @abstractmethod
    def weigh(self, logp: Tensor, share: Tensor, predictions: CanvasPredictions) -> Tensor:
        """The reweighted distributions, (N, V).

        Args:
            logp: normalised log-probabilities at the masked positions, (N, V); −inf for tokens that are not allowed.
            share: :meth:`share_at` per position, (N, 1); never 0.
            predictions: the predictor's values for the canvases.
        """
