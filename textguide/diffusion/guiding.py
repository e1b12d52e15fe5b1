"""One denoising step: the guided distribution of every position that is still masked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance import Guidance, Step, as_guidance, split
from ..guidance.acfg import Remasked
from ..guidance.algebra import log_softmax
from ..guidance.base import BranchGuidance
from ..guidance.canvas_guidance import CanvasReweighting
from ..guidance.experimental.time_step import Noisier
from ..guidance.particle_gibbs import ParticleGibbs
from ..guidance.places import check_place
from ..step.effect import EffectMeter
from ..step.guided_step import guided_step, refuse_invalid
from .branches import Laid, Reader, Row, denoisers_of, rows_of, texts_of
from .caching import Caching
from .candidates import Candidates
from .canvas import Canvas
from .denoisers import Denoiser
from .noising import Noising
from .predictors import Judged
from .remasking import Remasking


@dataclass
class Distributions:
    """What one step says about its masked positions, in row-major order (N of them).

    Attributes:
        guided: log-probabilities (N, V).
        cond: the same without guidance, (N, V).
        uncond: the first extra branch, (N, V); equal to ``cond`` in rows where none ran.
        remasked: positions that A-CFG's second pass read as masks, bool (B, L).
        certainty: by which these were chosen, (B, L); None where none were.
    """

    guided: Tensor
    cond: Tensor
    uncond: Tensor
    remasked: Tensor
    certainty: Tensor | None = None


class Guide:
    """Guidance on one canvas, step by step.

    Args:
        model: the denoiser.
        guidance: as :func:`checked_guidance` gave it, or None.
        canvas: the batch as it was before anything was filled.
        texts: what each extra branch reads, row by row (see :func:`texts_of`); None: what follows from the canvas.
        models: further denoisers by the names that branches use.
        cache: what is kept between two passes; None: nothing.
        candidates: applies the token reweightings of the guidance; None: made from it, for texts that end at their
            first end token.
        judged: applies its predictor of canvases; likewise.

    Attributes:
        denoisers: all that run, by name.
        is_neutral: whether nothing of the guidance acts.
    """

    def __init__(
        self,
        model: Denoiser,
        guidance: Guidance | None,
        canvas: Canvas,
        texts: Sequence[Sequence[Row]] | None = None,
        models: Mapping[str, Any] | None = None,
        cache: Caching | None = None,
        candidates: Candidates | None = None,
        judged: Judged | None = None,
    ) -> None:
        self.model = model
        parts = split(guidance)
        self.guidance = branching = parts.branching
        self.is_neutral = branching is None and not parts.reweighting and parts.canvas is None
        self._candidates = candidates or candidates_of(model, guidance)
        self.judged = judged or judged_of(model, guidance)
        self.meter = EffectMeter(len(branching.branches) if branching is not None else 1, model.device)
        self.denoisers = denoisers_of(model, branching, models)
        self._total = canvas.target.sum(-1)
        edit = remasked_by(branching)
        self._reader: Reader
        if edit is not None:
            if cache is not None:
                raise ValueError(
                    f"cache={cache} keeps the prompt's keys, and A-CFG masks parts of it anew at every step; use "
                    "CFG, or leave cache off"
                )
            if isinstance(edit, Noisier):
                self._reader = Noising(model, edit)
            else:
                self._reader = Remasking(model, edit, len(canvas))
        else:
            texts = texts_of(model, branching, rows_of(canvas)) if texts is None else texts
            self._reader = Laid(self.denoisers, canvas, branching, texts, cache)

    def watch(self, found: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        """Tell ``found`` of every pass that keeps something, as :attr:`Laid.watch`."""
        if isinstance(self._reader, Laid):
            self._reader.watch = found

    def use(self, generator: torch.Generator | None) -> None:
        """Draw what is drawn here from ``generator``."""
        for part in (self.judged, self._reader):
            if isinstance(part, (Judged, Noising)):
                part.generator = generator

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers of its own."""
        texts = self.judged is not None and bool(getattr(self.judged.guidance, "samples", None))
        return texts or isinstance(self._reader, Noising)

    @property
    def passes(self) -> int:
        """Forward passes so far, over all denoisers."""
        return sum(model.passes for model in set_of(self.denoisers))

    @property
    def rows(self) -> int:
        """Rows read in them."""
        return sum(model.rows for model in set_of(self.denoisers))

    @property
    def tokens(self) -> int:
        """Positions read in them."""
        return sum(model.tokens for model in set_of(self.denoisers))

    def progress(self, canvas: Canvas, rows: Tensor) -> Tensor:
        """Share of each row's targets that are filled, (B,): 0 at first and 1 for the last position."""
        total = self._total[rows]
        filled = total - canvas.masked(self.model.mask_id).sum(-1)
        return (filled / (total - 1).clamp(min=1)).clamp(max=1.0)

    def distributions(
        self, canvas: Canvas, rows: Tensor, where: Tensor, allowed: Tensor | None = None, *, guided: bool = True
    ) -> Distributions:
        """The distributions at ``where`` (bool (B, L)) of these rows of the batch.

        Args:
            canvas: the rows as they are now; a part of the batch that the guide was made for.
            rows: which rows of that batch they are, (B,).
            where: positions whose distribution is wanted; all of them masked, N in number.
            allowed: tokens that may be written there, bool (N, V); None: all. The others are no candidates of a token
                reweighting.
            guided: False: the distributions without guidance, from one pass.

        Raises:
            ValueError: guidance gave something that no token can be drawn from.
        """
        progress = self.progress(canvas, rows)
        active = self._active(progress) if guided else torch.zeros_like(rows, dtype=torch.bool)
        passes = self._reader.read(canvas, rows, where, active)
        counts = where.sum(-1)
        each = progress.repeat_interleave(counts)[:, None]  # of every position
        chosen = passes.ran.repeat_interleave(counts)
        combines = self.guidance is not None and bool(chosen.any())

        def reweight(log_probs: Tensor) -> tuple[Tensor, Tensor]:
            acted = torch.zeros_like(chosen)
            if self._candidates is not None:
                log_probs, acted = self._candidates(log_probs, canvas, rows, where, each)
            if self.judged is not None:
                log_probs, judged = self.judged(log_probs, canvas, where, each)
                acted = acted | judged
            return log_probs, acted

        reweights = guided and (self._candidates is not None or self.judged is not None)
        outcome = guided_step(
            passes.cond,
            passes.others,
            self.guidance if combines else None,
            Step(each[chosen]),
            rows=chosen,
            allowed=allowed,
            reweight=reweight if reweights else None,
            normalised=True,
        )
        if reweights:
            self.meter.classified = sum(
                (
                    0 if self._candidates is None else self._candidates.texts_scored,
                    0 if self.judged is None else self.judged.predictor.asked,
                )
            )
        if outcome.valid is not None and not bool(outcome.valid.all()):
            places = where.nonzero()[:, 0][~outcome.valid]
            refuse_invalid(self.guidance, sorted(set(rows[places].tolist())))
        self.meter.add(outcome, torch.ones_like(chosen))
        uncond = passes.cond.clone()
        if combines and len(passes.others):
            uncond[chosen] = passes.others[0]
        if allowed is not None:
            uncond = log_softmax(uncond.masked_fill(~allowed, -math.inf))
        cond = passes.cond if outcome.cond is None else outcome.cond
        mixed = cond.clone() if outcome.log_probs is None else outcome.log_probs
        return Distributions(mixed, cond, uncond, passes.remasked, passes.certainty)

    def _active(self, progress: Tensor) -> Tensor:
        guidance = self.guidance
        if guidance is None:
            return torch.zeros_like(progress, dtype=torch.bool)
        acts = {at: guidance.active(Step(at)) for at in set(progress.tolist())}
        return torch.tensor([acts[at] for at in progress.tolist()], device=progress.device)


def candidates_of(model: Denoiser, guidance: Guidance | None, whole: bool = False) -> Candidates | None:
    """What applies the token reweightings of ``guidance``; None where there are none.

    Args:
        whole: the text of a row, which a classifier reads, is all of it.
    """
    reweighting = split(guidance).reweighting
    return Candidates(model, reweighting, whole) if reweighting else None


def judged_of(model: Denoiser, guidance: Guidance | None, whole: bool = False) -> Judged | None:
    """What applies the predictor of canvases of ``guidance``, ``whole`` as above; None where there is none."""
    canvas = split(guidance).canvas
    return Judged(model, canvas, whole) if isinstance(canvas, CanvasReweighting) else None


def set_of(denoisers: Mapping[str, Denoiser]) -> list[Denoiser]:
    """The denoisers, each once."""
    return list({id(model): model for model in denoisers.values()}.values())


def remasked_by(guidance: BranchGuidance | None) -> Remasked | Noisier | None:
    """How a branch of ``guidance`` masks the canvas again; None where none does."""
    edits = [branch.edit for branch in (guidance.branches if guidance is not None else ())]
    return next((edit for edit in edits if isinstance(edit, (Remasked, Noisier))), None)


def checked_guidance(guidance: Any, particles: bool = False) -> Guidance | None:
    """``guidance`` where masked diffusion can use it.

    Args:
        particles: canvases can be filled side by side.

    Raises:
        ValueError: it is no guidance, or one that needs what a canvas has not; the message names the place that has.
    """
    guidance = as_guidance(guidance)
    check_place(guidance, "diffusion")
    canvas = split(guidance).canvas
    if isinstance(canvas, ParticleGibbs) and not particles:
        raise ValueError(
            f"guidance {canvas.name!r} fills several canvases side by side and draws one of them at the end; use "
            "textguide.diffusion.generate or infill"
        )
    return guidance
