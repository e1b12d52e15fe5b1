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
        shift: by how much of the way from a full canvas (0) to an empty one (1).
    """

    shift: float = 0.1

    guidance = "tsg"


@dataclass(frozen=True)
class TimeStepGuidance(Scaled):
    """Move the distribution away from what the model says of the same canvas at a higher noise level.

    ``L = L(z, t̃) + γ (L(z, t) − L(z, t̃))`` on normalised log-probabilities (section 4 of the paper, its scale is γ): a
    model that believes the canvas noisier than it is says less of it, in every condition and in none, so that no prompt
    is needed.

    Experimental: the paper perturbs the embedding of the time by Gaussian noise of scale ``s·t^α``. Here a denoiser
    that reads a time (:attr:`textguide.diffusion.Denoiser.time`) reads the same canvas at ``min(1, t + shift)``. One
    that reads none knows the noise by the share of masks alone: filled positions, drawn at random, are masked again
    until their share is ``min(1, t + shift)``, as the forward process would. Then the two branches differ in the canvas
    too, which is A-CFG with positions at random; the prompt stays.

    Args:
        scale: γ; 1 changes nothing. The paper uses 1.5 to 5 for images.
        shift: by how much the noise level rises, in (0, 1].

    The schedule and the window move with the share of the canvas that is filled.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    shift: float = 0.1

    name: ClassVar[str] = "tsg"
    about: ClassVar[About] = About(
        "2407.02687", "lt̃ + γ (lc − lt̃), t̃ the same canvas at a higher noise level", "one row in the same pass",
        "γ = 1", "masked diffusion without a prompt to move away from", experimental=True, compared="it fills canvases",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put(shift=finite_number("shift", self.shift))
        if not 0.0 < self.shift <= 1.0:
            raise ValueError(f"shift={self.shift} must lie in (0, 1]; it is a share of the canvas")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The canvas at the higher noise level."""
        return (Branch(edit=Noisier(self.shift)),)

    @property
    def needs(self) -> frozenset[Need]:
        """A canvas."""
        return frozenset({Need.CANVAS})
