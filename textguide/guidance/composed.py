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
            and at most one sampling guidance. They are sorted by kind.

    Raises:
        ValueError: there are two parts of a kind that allows only one, a part is of none of these kinds, or a rule
            that reads several rows is combined with particles, which move between rows.
    """

    parts: tuple[Guidance, ...] = ()

    name = "composed"

    def __post_init__(self) -> None:
        branching: list[BranchGuidance] = []
        reweighting: list[TokenReweighting] = []
        canvas: list[CanvasGuidance] = []
        sampling: list[Sampling] = []
        for part in self._flattened():
            if isinstance(part, BranchGuidance):
                branching.append(part)
            elif isinstance(part, TokenReweighting):
                reweighting.append(part)
            elif isinstance(part, CanvasGuidance):
                canvas.append(part)
            elif isinstance(part, Sampling):
                sampling.append(part)
            else:
                raise ValueError(_of_no_kind(part))
        _check_at_most_one(branching, "their own branches")
        _check_at_most_one(canvas, "a predictor of canvases")
        _check_at_most_one(sampling, "a constraint or a population")
        if branching and sampling:
            _check_rows(branching[0], sampling[0])
        self._put(parts=(*branching, *reweighting, *canvas, *sampling))

    def _flattened(self) -> list[Guidance]:
        """The parts of all parts; from JSON, they are dictionaries."""
        flat: list[Guidance] = []
        for part in self.parts:
            guidance = Guidance.from_dict(dict(part)) if isinstance(part, Mapping) else part
            flat.extend(guidance.parts)
        return flat

    def __str__(self) -> str:
        """The parts with ``+`` between them."""
        return " + ".join(map(str, self.parts))

    @property
    def is_neutral(self) -> bool:
        """Whether every part is neutral."""
        return all(part.is_neutral for part in self.parts)

    def _shown(self) -> tuple[str, Sequence[Block]]:
        parts = [part._shown() for part in self.parts]
        return "several guidances together", [block for title, blocks in parts for block in (Line(title), *blocks)]

    @property
    def needs(self) -> frozenset[Need]:
        """The needs of all parts."""
        return frozenset().union(*(part.needs for part in self.parts))


def _check_at_most_one(parts: Sequence[Guidance], kind: str) -> None:
    if len(parts) > 1:
        names = ", ".join(part.name for part in parts)
        raise ValueError(f"guidance=[{names}]: two guidances with {kind} cannot be combined; pass one")


def _check_rows(branching: BranchGuidance, sampling: Sampling) -> None:
    """Refuse a rule that reads several rows together with a sampling that moves texts between rows."""
    if branching.across_rows and not branching.is_neutral and sampling.moves_rows:
        raise ValueError(
            f"guidance=[{branching.name}, {sampling.name}]: {branching.name} contrasts each text with those of the "
            "other rows, and particles or branches are weighted and moved independently of them; leave one of the "
            "two out, or use AWRS with particles=1 and sampler='awrs'"
        )


@dataclass(frozen=True)
class Parts:
    """The parts of a guidance that are not neutral, by kind.

    Args:
        branching: passes to combine.
        reweighting: token reweightings.
        canvas: evaluates canvases with a predictor.
        sampling: chooses the tokens.
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
        """Whether failed texts change the distribution of later ones."""
        return self.sampling is not None and self.sampling.learns

    @property
    def restarts(self) -> bool:
        """Whether texts that fail start again."""
        return self.sampling is not None and self.sampling.restarts


def together(guidances: Sequence[Guidance]) -> Guidance | None:
    """Combine guidances into one; None if there are none.

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
    """``guidance`` at another scale. If it has several parts, the first one with a scale is changed.

    Raises:
        ValueError: no part has a scale.
    """
    parts: list[Any] = list(guidance.parts)
    for number, part in enumerate(parts):
        if "scale" in {field.name for field in fields(part)}:
            parts[number] = replace(part, scale=float(scale))
            return parts[0] if len(parts) == 1 else Composed(tuple(parts))
    raise ValueError(f"scales= needs a guidance with a scale, and {guidance} does not have one")


def _of_no_kind(part: Guidance) -> str:
    return f"guidance={part!r} never acts; derive it from BranchGuidance, TokenReweighting or Sampling"
