"""Several guidances in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..support.showing import Block, Line
from .base import BranchGuidance, Guidance, Sampling, TokenReweighting, parts_of
from .canvas_guidance import CanvasGuidance
from .needs import Need


@dataclass(frozen=True)
class Composed(Guidance):
    """Several guidances that act together, in the order of their kinds.

    Branches come first, then token reweighting, a predictor of canvases, and sampling.

    Args:
        parts: at most one guidance with branches, any number of token reweightings, at most one predictor of canvases
            and at most one sampling guidance; in any order, which is made canonical.

    Raises:
        ValueError: two parts are of a kind that allows only one, a part is of none of these kinds, or a rule that
            looks across rows is combined with particles, which move between rows.
    """

    parts: tuple[Guidance, ...] = ()

    name = "composed"

    def __post_init__(self) -> None:
        given = [Guidance.from_dict(dict(part)) if isinstance(part, Mapping) else part for part in self.parts]
        parts = [part for one in given for part in one.parts]
        kinds = (BranchGuidance, TokenReweighting, CanvasGuidance, Sampling)
        found: list[list[Guidance]] = [[part for part in parts if isinstance(part, kind)] for kind in kinds]
        for part in parts:
            if not isinstance(part, kinds):
                raise ValueError(_of_no_kind(part))
        for group, what in (
            (found[0], "branches of their own"),
            (found[2], "a predictor of canvases"),
            (found[3], "a constraint or a population"),
        ):
            if len(group) > 1:
                names = ", ".join(part.name for part in group)
                raise ValueError(f"guidance=[{names}]: two guidances with {what} cannot be combined; pass one")
        moving = [part for part in found[3] if isinstance(part, Sampling) and part.moves_rows]
        for part in found[0]:
            if moving and isinstance(part, BranchGuidance) and part.across_rows and not part.is_neutral:
                raise ValueError(
                    f"guidance=[{part.name}, {moving[0].name}]: {part.name} holds every text against those of the "
                    "other rows, and particles or branches are weighed and moved without them; leave one of the two "
                    "out, or use AWRS with particles=1 and sampler='awrs'"
                )
        self._put(parts=tuple(part for group in found for part in group))

    @property
    def is_neutral(self) -> bool:
        """Every part is neutral."""
        return all(part.is_neutral for part in self.parts)

    def _shown(self) -> tuple[str, Sequence[Block]]:
        parts = [part._shown() for part in self.parts]
        return "several guidances together", [b for title, blocks in parts for b in (Line(title), *blocks)]

    @property
    def needs(self) -> frozenset[Need]:
        """Those of every part."""
        return frozenset().union(*(part.needs for part in self.parts))


@dataclass(frozen=True)
class Parts:
    """The parts of a guidance that are not neutral, by kind.

    Args:
        branching: passes to combine.
        reweighting: token reweightings.
        canvas: queries a predictor about canvases.
        sampling: how tokens are chosen.
    """

    branching: BranchGuidance | None = None
    reweighting: tuple[TokenReweighting, ...] = ()
    canvas: CanvasGuidance | None = None
    sampling: Sampling | None = None

    @property
    def particles(self) -> int:
        """Rows per prompt."""
        return 1 if self.sampling is None else self.sampling.particles

    @property
    def weighs(self) -> bool:
        """Whether texts get weights."""
        return self.sampling is not None and self.sampling.weighs

    @property
    def forks(self) -> bool:
        """Whether texts fork."""
        return self.sampling is not None and self.sampling.forks

    @property
    def learns(self) -> bool:
        """Whether texts that failed change what later ones are drawn from."""
        return self.sampling is not None and self.sampling.learns

    @property
    def restarts(self) -> bool:
        """Whether texts that fail start again."""
        return self.sampling is not None and self.sampling.restarts


def together(guidances: Sequence[Guidance]) -> Guidance | None:
    """Guidances that act together as one; None where there are none.

    Raises:
        ValueError: they cannot be combined.
    """
    if len(guidances) > 1:
        return Composed(tuple(part for one in guidances for part in one.parts))
    return guidances[0] if guidances else None


def split(guidance: Guidance | None) -> Parts:
    """The parts of ``guidance`` by kind, neutral ones left out.

    Raises:
        ValueError: a part is of none of the kinds.
    """
    branching: BranchGuidance | None = None
    reweighting: list[TokenReweighting] = []
    canvas: CanvasGuidance | None = None
    sampling: Sampling | None = None
    for part in parts_of(guidance):
        if isinstance(part, BranchGuidance):
            branching = None if part.is_neutral else part
        elif isinstance(part, TokenReweighting):
            if not part.is_neutral:
                reweighting.append(part)
        elif isinstance(part, CanvasGuidance):
            canvas = None if part.is_neutral else part
        elif isinstance(part, Sampling):
            sampling = None if part.is_neutral else part
        else:
            raise ValueError(_of_no_kind(part))
    return Parts(branching, tuple(reweighting), canvas, sampling)


def with_scale(guidance: Guidance, scale: float) -> Guidance:
    """``guidance`` at another scale; of several that act together, the one that has a scale.

    Raises:
        ValueError: none has.
    """
    parts: list[Any] = list(guidance.parts)
    for number, part in enumerate(parts):
        if "scale" in {field.name for field in fields(part)}:
            parts[number] = replace(part, scale=float(scale))
            return parts[0] if len(parts) == 1 else Composed(tuple(parts))
    raise ValueError(f"scales= needs a guidance with a scale, and {guidance!r} has none")


def _of_no_kind(part: Guidance) -> str:
    return f"guidance={part!r} acts nowhere; derive it from BranchGuidance, TokenReweighting or Sampling"
