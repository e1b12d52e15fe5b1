"""Time-step guidance: the model against itself at another noise level (TSG, arXiv 2407.02687)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...support.checks import finite_number
from ..acfg import CanvasEdit
from ..base import About, Branch
from ..needs import Need
from ..scaled import Scaled


@dataclass(frozen=True)
class Noisier(CanvasEdit):
    """The canvas of a masked diffusion model at a noise level that is higher by ``shift``.

    Args:
        shift: increase of the noise level, on a scale from a full canvas (0) to an empty one (1).
    """

    shift: float = 0.1

    guidance = "tsg"


@dataclass(frozen=True)
class TimeStepGuidance(Scaled):
    """Move away from the model's prediction for the same canvas at a higher noise level.

    ``L = L(z, t̃) + γ (L(z, t) − L(z, t̃))`` on normalised log-probabilities (section 4 of the paper, its scale is γ).
    A model that assumes more noise than there is predicts less, with any condition or none, so no prompt is needed.

    Experimental: the paper perturbs the embedding of the time by Gaussian noise of scale ``s·t^α``. Here, a denoiser
    that reads a time (:attr:`textguide.diffusion.Denoiser.time`) reads the same canvas at ``min(1, t + shift)``. A
    denoiser that reads no time only knows the noise level from the share of masks: random filled positions are masked
    again until their share is ``min(1, t + shift)``, as in the forward process. Then the two branches also differ in
    the canvas, which is A-CFG with random positions; the prompt is kept.

    Args:
        scale: γ; 1 changes nothing. The paper uses 1.5 to 5 for images.
        shift: increase of the noise level, in (0, 1].

    The schedule and the window follow the share of the canvas that is filled.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    shift: float = 0.1

    name: ClassVar[str] = "tsg"
    about: ClassVar[About] = About(
        paper="2407.02687",
        rule="lt̃ + γ (lc − lt̃), t̃ the same canvas at a higher noise level",
        passes="one row in the same pass",
        neutral="γ = 1",
        helps="masked diffusion without a prompt to move away from",
        experimental=True,
        compared="it fills canvases",
        mechanism="a higher noise level for the other branch instead of Gaussian noise on the time's embedding",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(shift=finite_number("shift", self.shift))
        if not 0.0 < self.shift <= 1.0:
            raise ValueError(f"shift={self.shift} must be a number in (0, 1]; it is a share of the canvas")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The canvas at the higher noise level."""
        return (Branch(edit=Noisier(self.shift)),)

    @property
    def needs(self) -> frozenset[Need]:
        """A canvas."""
        return frozenset({Need.CANVAS})
