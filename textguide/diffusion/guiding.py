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
from ..step.guided_step import Reweight, guided_step, refuse_invalid
from .branches import BranchCanvases, BranchReader, branch_denoisers, branch_texts, canvas_rows
from .caching import Caching
from .candidates import CandidateReweighting
from .canvas import Canvas, Row
from .denoisers import Denoiser
from .noising import NoisingReader
from .predictors import PredictorReweighting
from .remasking import RemaskingReader


@dataclass
class Distributions:
    """The distributions of one step at its N masked positions, in row-major order.

    Attributes:
        guided: log-probabilities, (N, V).
        cond: the same without guidance, (N, V).
        uncond: those of the first extra branch, (N, V); equal to ``cond`` in rows in which none ran.
        remasked: positions that A-CFG's second pass read as masks, bool (B, L).
        certainty: by which these were chosen, (B, L); None if none were.
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
        guidance: as :func:`checked_guidance` returned it, or None.
        canvas: the batch before anything is filled.
        texts: what each extra branch reads, per row (see :func:`branch_texts`); None: what follows from the canvas.
        models: further denoisers by the names that branches use.
        cache: what is kept between two passes; None: nothing.
        whole: classifiers read the whole row (``infill``); else the text ends at its first end token.
        candidates: applies the token reweightings of the guidance, if several guides share one; None: made here.

    Attributes:
        denoisers: all that run, by name.
        predictor: applies the predictor of canvases of the guidance; None if it has none.
        is_neutral: whether no part of the guidance acts.
    """

    def __init__(
        self,
        model: Denoiser,
        guidance: Guidance | None,
        canvas: Canvas,
        texts: Sequence[Sequence[Row]] | None = None,
        models: Mapping[str, Any] | None = None,
        cache: Caching | None = None,
        whole: bool = False,
        candidates: CandidateReweighting | None = None,
    ) -> None:
        self.model = model
        parts = split(guidance)
        self.guidance = parts.branching
        self.is_neutral = parts.branching is None and not parts.reweighting and parts.canvas is None
        self._candidates = candidates
        if candidates is None and parts.reweighting:
            self._candidates = CandidateReweighting(model, parts.reweighting, whole)
        self.predictor: PredictorReweighting | None = None
        if isinstance(parts.canvas, CanvasReweighting):
            self.predictor = PredictorReweighting(model, parts.canvas, whole)
        branches = 1 if self.guidance is None else len(self.guidance.branches)
        self.meter = EffectMeter(branches, model.device)
        self.denoisers = branch_denoisers(model, self.guidance, models)
        self._target_counts = canvas.target.sum(-1)
        self._reader = self._reader_for(canvas, texts, cache)

    def _reader_for(self, canvas: Canvas, texts: Sequence[Sequence[Row]] | None, cache: Caching | None) -> BranchReader:
        edit = canvas_edit(self.guidance)
        if edit is None:
            if texts is None:
                texts = branch_texts(self.model, self.guidance, canvas_rows(canvas))
            return BranchCanvases(self.denoisers, canvas, self.guidance, texts, cache)
        if cache is not None:
            raise ValueError(
                f"cache={cache} keeps the prompt's keys, and A-CFG masks parts of the prompt again at every step; use "
                "CFG, or leave cache off"
            )
        if isinstance(edit, Noisier):
            return NoisingReader(self.model, edit)
        return RemaskingReader(self.model, edit, len(canvas))

    def watch(self, compare: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        """Call ``compare`` for every pass that uses kept keys; see :attr:`BranchCanvases.watch`."""
        if isinstance(self._reader, BranchCanvases):
            self._reader.watch = compare

    def use(self, generator: torch.Generator | None) -> None:
        """Draw all random numbers of the guidance from ``generator``."""
        for part in (self.predictor, self._reader):
            if isinstance(part, (PredictorReweighting, NoisingReader)):
                part.generator = generator

    @property
    def draws(self) -> bool:
        """Whether the guidance draws random numbers."""
        samples = self.predictor is not None and bool(getattr(self.predictor.guidance, "samples", None))
        return samples or isinstance(self._reader, NoisingReader)

    @property
    def passes(self) -> int:
        """Forward passes so far, over all denoisers."""
        return sum(model.passes for model in self._distinct_denoisers())

    @property
    def rows(self) -> int:
        """Rows read so far, over all denoisers."""
        return sum(model.rows for model in self._distinct_denoisers())

    @property
    def tokens(self) -> int:
        """Positions read so far, over all denoisers."""
        return sum(model.tokens for model in self._distinct_denoisers())

    def _distinct_denoisers(self) -> list[Denoiser]:
        return list({id(model): model for model in self.denoisers.values()}.values())

    def progress(self, canvas: Canvas, rows: Tensor) -> Tensor:
        """Share of each row's targets that are filled, (B,): 0 before the first position, 1 before the last."""
        total = self._target_counts[rows]
        filled = total - canvas.masked(self.model.mask_id).sum(-1)
        return (filled / (total - 1).clamp(min=1)).clamp(max=1.0)

    def distributions(
        self, canvas: Canvas, rows: Tensor, positions: Tensor, allowed: Tensor | None = None, *, guided: bool = True
    ) -> Distributions:
        """The distributions at ``positions`` (bool (B, L)) of these rows of the batch.

        Args:
            canvas: the rows as they are now; a part of the batch that the guide was made for.
            rows: the numbers of these rows in that batch, (B,).
            positions: N positions whose distributions are needed.
            allowed: tokens that may be written there, bool (N, V); None: all. Other tokens are not candidates of a
                token reweighting either.
            guided: False: the distributions without guidance, from one pass.

        Raises:
            ValueError: the guidance gave something that no token can be drawn from.
        """
        progress = self.progress(canvas, rows)
        active = self._active(progress) if guided else torch.zeros_like(rows, dtype=torch.bool)
        branches = self._reader.read(canvas, rows, positions, active)
        counts = positions.sum(-1)
        progress_of_positions = progress.repeat_interleave(counts)[:, None]
        combined = branches.ran.repeat_interleave(counts)  # positions whose branches are combined
        combines = self.guidance is not None and bool(combined.any())
        reweight = self._reweight(canvas, rows, positions, progress_of_positions) if guided else None
        outcome = guided_step(
            branches.cond,
            branches.others,
            self.guidance if combines else None,
            Step(progress_of_positions[combined]),
            rows=combined,
            allowed=allowed,
            reweight=reweight,
            normalised=True,
        )
        if reweight is not None:
            self.meter.classified = self._texts_scored()
        if outcome.valid is not None and not bool(outcome.valid.all()):
            invalid = positions.nonzero()[:, 0][~outcome.valid]
            refuse_invalid(self.guidance, sorted(set(rows[invalid].tolist())))
        row_of = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        self.meter.add(outcome, torch.ones_like(combined), row_of=row_of)
        uncond = branches.cond.clone()
        if combines and len(branches.others):
            uncond[combined] = branches.others[0]
        if allowed is not None:
            uncond = log_softmax(uncond.masked_fill(~allowed, -math.inf))
        cond = branches.cond if outcome.cond is None else outcome.cond
        mixed = cond.clone() if outcome.log_probs is None else outcome.log_probs
        return Distributions(mixed, cond, uncond, branches.remasked, branches.certainty)

    def _reweight(self, canvas: Canvas, rows: Tensor, positions: Tensor, progress: Tensor) -> Reweight | None:
        """Classifiers of candidates first, then the predictor of canvases; None if there is neither."""
        candidates = self._candidates
        predictor = self.predictor
        if candidates is None and predictor is None:
            return None

        def reweight(log_probs: Tensor) -> tuple[Tensor, Tensor]:
            acted = torch.zeros(len(log_probs), dtype=torch.bool, device=log_probs.device)
            if candidates is not None:
                log_probs, acted = candidates(log_probs, canvas, rows, positions, progress)
            if predictor is not None:
                log_probs, by_predictor = predictor(log_probs, canvas, positions, progress)
                acted = acted | by_predictor
            return log_probs, acted

        return reweight

    def _texts_scored(self) -> int:
        by_classifiers = 0 if self._candidates is None else self._candidates.texts_scored
        by_predictor = 0 if self.predictor is None else self.predictor.predictor.queries
        return by_classifiers + by_predictor

    def _active(self, progress: Tensor) -> Tensor:
        """Rows in which the guidance acts at their progress, bool (B,)."""
        guidance = self.guidance
        if guidance is None:
            return torch.zeros_like(progress, dtype=torch.bool)
        is_active = {at: guidance.active(Step(at)) for at in set(progress.tolist())}
        return torch.tensor([is_active[at] for at in progress.tolist()], device=progress.device)


def canvas_edit(guidance: BranchGuidance | None) -> Remasked | Noisier | None:
    """How a branch of ``guidance`` changes the canvas itself (A-CFG, TSG); None if no branch does."""
    edits = [branch.edit for branch in (guidance.branches if guidance is not None else ())]
    return next((edit for edit in edits if isinstance(edit, (Remasked, Noisier))), None)


def checked_guidance(guidance: Any, particles: bool = False) -> Guidance | None:
    """``guidance`` as an object, if masked diffusion can use it.

    Args:
        particles: whether several canvases can be filled together.

    Raises:
        ValueError: it is not a guidance, or it needs something that a canvas does not have; the message names where
            it works.
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
