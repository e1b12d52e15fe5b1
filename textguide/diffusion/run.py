"""A run on canvases: rows whose masks are filled, checked before the first forward pass, in one batch or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..guidance import Guidance, split
from ..guidance.particle_gibbs import ParticleGibbs
from ..guidance.prompts import Prompt, as_prompt
from ..guidance.scaled import Scaled
from ..step.effect import warn_if_none
from ..support.checks import whole_number
from .branches import branch_texts
from .canvas import Canvas, Row, check_length, count_blocks, lay_out, rows_to_infill
from .constraints.base import CanvasConstraint
from .constraints.resolve import canvas_constraint
from .denoisers import Denoiser
from .guiding import Guide, canvas_edit
from .options import CanvasOptions
from .particles import ParticleSampler, options_of_particles, repeat_rows, repeat_texts
from .predictors import Predictor
from .results import DiffusionResult, join_results, row_text
from .row_formats import check_rows, problems_of
from .sampling import CanvasStep, Sampler


@dataclass(frozen=True)
class CanvasRun:
    """Everything about a run that is known before its first forward pass.

    Args:
        model: the denoiser.
        guidance: as :func:`~textguide.diffusion.guiding.checked_guidance` returned it, with the scale of a corrector.
        options: how the canvases are filled; ``steps`` is a number.
        rows: what the conditional branch reads.
        texts: what each extra branch reads, per row; None if a branch reads the canvas itself (A-CFG).
        models: further denoisers by the names that branches use.
        block_length: masks per block.
        blocks: blocks of the longest row.
        infilling: masks inside of given texts are filled, which are one block.
    """

    model: Denoiser
    guidance: Guidance | None
    options: CanvasOptions
    rows: list[Row]
    texts: list[list[Row]] | None
    models: Mapping[str, Any] | None
    block_length: int
    blocks: int
    infilling: bool

    @classmethod
    def after_prompts(
        cls,
        model: Denoiser,
        prompts: Any,
        guidance: Guidance | None,
        models: Mapping[str, Any] | None,
        options: CanvasOptions,
    ) -> CanvasRun:
        """A run that writes after prompts.

        Raises:
            ValueError: the prompts or the options cannot work; the message names the argument and the remedy.
        """
        length = options.max_new_tokens
        block_length = _block_length(model, options)
        given = canonical_prompts(prompts, "prompts")
        rows: list[Row] = [[*model.encode(prompt), *[None] * length] for prompt in given]
        check_rows(model, rows, "prompts")
        check_length(model, rows, f"max_new_tokens={length}")
        blocks = count_blocks(model, rows, length, block_length)
        steps = options.steps
        if steps is None:
            steps = length if model.block_size is None else blocks * model.block_size
        elif steps < blocks:
            raise ValueError(
                f"steps={steps} is fewer than the {blocks} blocks; use at least one step per block, or larger blocks"
            )
        options = replace(options, steps=steps)
        return cls._of(model, guidance, models, options, rows, given, block_length, blocks, infilling=False)

    @classmethod
    def in_texts(
        cls,
        model: Denoiser,
        texts: Any,
        guidance: Guidance | None,
        models: Mapping[str, Any] | None,
        options: CanvasOptions,
    ) -> CanvasRun:
        """A run that fills the mask tokens of texts.

        Raises:
            ValueError: the texts or the options cannot work; the message names the argument and the remedy.
        """
        given = canonical_prompts(texts, "texts")
        rows = rows_to_infill(model, [model.encode(text) for text in given])
        check_rows(model, rows, "texts")
        check_length(model, rows, "the text")
        steps = max(row.count(None) for row in rows) if options.steps is None else options.steps
        # An end token is a token like others here: it ends nothing.
        options = replace(options, steps=steps, early_end=False)
        whole = max(map(len, rows))
        return cls._of(model, guidance, models, options, rows, given, block_length=whole, blocks=1, infilling=True)

    @classmethod
    def _of(
        cls,
        model: Denoiser,
        guidance: Guidance | None,
        models: Mapping[str, Any] | None,
        options: CanvasOptions,
        rows: list[Row],
        prompts: Sequence[Prompt],
        block_length: int,
        blocks: int,
        infilling: bool,
    ) -> CanvasRun:
        options.check_rows(len(rows))
        guidance = _with_corrector_scale(guidance, options.corrector)
        branching = split(guidance).branching
        texts = None
        if canvas_edit(branching) is None:
            texts = branch_texts(model, branching, rows, prompts, infilling=infilling)
        return cls(model, guidance, options, rows, texts, models, block_length, blocks, infilling)

    @property
    def particles(self) -> ParticleGibbs | None:
        """The guidance that fills several canvases per prompt, if there is one."""
        canvas = split(self.guidance).canvas
        return canvas if isinstance(canvas, ParticleGibbs) else None

    def sampler(self, start: int = 0, stop: int | None = None) -> Sampler:
        """A sampler for the rows ``start`` to ``stop``, before its first step.

        Raises:
            ValueError: options, guidance and model do not work together.
        """
        stop = len(self.rows) if stop is None else min(stop, len(self.rows))
        options = self.options.of_rows(start, stop)
        canvas = lay_out(self.model, self.rows[start:stop], self.block_length, "what is to be filled")
        texts = None if self.texts is None else [branch[start:stop] for branch in self.texts]
        if self.particles is not None:
            if options.constraint is not None:
                raise ValueError(
                    "constraint= draws whole texts that satisfy it, and particle-gibbs weighs draws without; use other "
                    "guidance"
                )
            one_pass = getattr(canvas_edit(split(self.guidance).branching), "one_pass", False)
            options = options_of_particles(options, self.particles.particles, one_pass)
            canvas = repeat_rows(canvas, self.particles.particles)
            texts = repeat_texts(texts, self.particles.particles)
        guide = Guide(self.model, self.guidance, canvas, texts, self.models, options.caching, self.infilling)
        if isinstance(options.seed, Sequence) and guide.draws:
            raise ValueError(f"seed={options.seed!r}: {self.guidance} draws for all rows at once; give one number")
        return Sampler(self.model, canvas, guide, options, self.blocks, self._constraint(canvas))

    def _constraint(self, canvas: Canvas) -> CanvasConstraint | None:
        """The constraint on the texts of a canvas.

        Raises:
            ValueError: the guidance leaves only some tokens of each position, which may not make a text together.
        """
        constraint = self.options.constraint
        if constraint is None:
            return None
        parts = split(self.guidance)
        for part in (*parts.reweighting, *([] if parts.canvas is None else [parts.canvas])):
            if part.is_neutral:
                continue
            samples = getattr(part, "samples", None)
            top_k = getattr(part, "top_k", None)
            if samples:
                raise ValueError(
                    f"{part.name} leaves the tokens of samples={samples} texts, of which none may satisfy the "
                    "constraint; use samples=None with constraint="
                )
            if top_k is not None and top_k < self.model.size:
                raise ValueError(
                    f"{part.name} leaves top_k={top_k} tokens of each position, of whose texts none may satisfy the "
                    "constraint; use top_k=None with constraint="
                )
        return canvas_constraint(self.model, constraint, canvas, self.infilling)

    def result(
        self,
        *,
        batch_size: int | None = None,
        stop: Sequence[str] = (),
        include_stop: bool = True,
        keep_history: bool = False,
        warn: bool = True,
    ) -> DiffusionResult:
        """Fill all rows; the arguments are those of :func:`textguide.diffusion.generate`."""
        size = len(self.rows) if batch_size is None else whole_number("batch_size", batch_size, 1)
        if keep_history and size < len(self.rows):
            raise ValueError(
                f"keep_history=True keeps the canvas of one batch, and batch_size={size} makes several; leave one of "
                "them out"
            )
        results = [
            self.finish(sampler, stop=stop, include_stop=include_stop, keep_history=keep_history)
            for sampler in self._batches(size)
        ]
        result = join_results(results, self.model.pad_id)
        if warn and self.particles is None:
            warn_if_none(result.effect, self.guidance)
        return result

    def _batches(self, size: int) -> Iterator[Sampler]:
        """A sampler per batch; without a seed per row, all draw from the generator of the first."""
        generator: torch.Generator | None = None
        for start in range(0, len(self.rows), size):
            try:
                sampler = self.sampler(start, start + size)
            except ValueError as error:
                if not start:
                    raise
                raise ValueError(f"in the batch that starts with row {start}: {error}") from error
            if generator is not None:
                sampler.use(generator)
            if not isinstance(self.options.seed, Sequence):
                generator = sampler.generator
            yield sampler

    def finish(
        self,
        sampler: Sampler,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = True,
        keep_history: bool = False,
    ) -> DiffusionResult:
        """Run a sampler of this run to its end."""
        guide = sampler.guide
        passes = guide.passes
        rows = guide.rows
        tokens = guide.tokens
        history: list[CanvasStep] = []
        canvas = sampler.canvas
        steps = sampler.steps_taken
        log_weights: Tensor | None = None
        if self.particles is None:
            for step in sampler.run():
                if keep_history:
                    history.append(step)
        else:
            if keep_history:
                raise ValueError(
                    "keep_history=True shows one canvas per row, and particle-gibbs moves them; leave it off"
                )
            predictor = Predictor(self.model, self.particles, self.infilling)
            particle_sampler = ParticleSampler(self.particles, predictor, sampler)
            ids, steps = particle_sampler.run()
            first = torch.arange(0, len(canvas), self.particles.particles, device=canvas.ids.device)
            canvas = replace(canvas.pick(first), ids=ids)
            log_weights = particle_sampler.log_mean
            guide.meter.classified += predictor.queries
            guide.meter.sampler = self.particles.name
            guide.meter.sampled_steps = int(canvas.target.sum())
        texts = [row_text(self.model, canvas, row, self.infilling, stop, include_stop) for row in range(len(canvas))]
        return DiffusionResult(
            texts=[one.text for one in texts],
            sequences=canvas.ids,
            targets=canvas.target,
            steps=steps,
            passes=guide.passes - passes,
            rows=guide.rows - rows,
            tokens=guide.tokens - tokens,
            effect=sampler.effect,
            history=tuple(history),
            log_weights=log_weights,
            new_tokens=[one.new_tokens for one in texts],
            finish_reasons=[one.finish_reason for one in texts],
            problems=problems_of(self.model, [canvas.text_ids(row) for row in range(len(canvas))]),
        )


def _block_length(model: Denoiser, options: CanvasOptions) -> int:
    """Masks per block."""
    length = options.max_new_tokens
    own = model.block_size
    if own is not None:
        if options.block_length not in (None, own):
            raise ValueError(
                f"block_length={options.block_length}: attention of this model is causal between blocks of {own}; "
                f"leave block_length out, or pass a denoiser with block_size={options.block_length}"
            )
        return own
    block_length = length if options.block_length is None else options.block_length
    if length % block_length:
        divisible = length // block_length * block_length or block_length
        raise ValueError(
            f"max_new_tokens={length} is not divisible by block_length={block_length}; use "
            f"max_new_tokens={divisible} or another block"
        )
    return block_length


def _with_corrector_scale(guidance: Guidance | None, corrector: int) -> Guidance | None:
    """The corrector samples at γ' = 2γ − 1, since the predictor runs without guidance.

    Raises:
        ValueError: the guidance is not ``lu + γ (lc − lu)``.
    """
    if not corrector or guidance is None or guidance.is_neutral:
        return guidance
    if not isinstance(guidance, Scaled) or not guidance.ignores_shifts:
        raise ValueError(
            f"corrector={corrector} draws tokens again at 2γ − 1, and {guidance.name} is not lu + γ (lc − lu); use "
            "CFG, or leave corrector 0"
        )
    return replace(guidance, scale=2 * guidance.scale - 1)


def canonical_prompts(values: Any, name: str) -> list[Prompt]:
    """Prompts in canonical form, one per row.

    Args:
        name: the argument, for messages.

    Raises:
        ValueError: they are not prompts.
    """
    if as_prompt(values) is not None:
        values = [values]
    if isinstance(values, (bytes, bytearray)) or not isinstance(values, (Sequence, Tensor)):
        raise ValueError(f"{name} must be a text, token ids or chat messages, or a list with one of these per row")
    rows = []
    for value in values:
        prompt = as_prompt(value)
        if prompt is None:
            raise ValueError(f"{name} must be texts, token ids or chat messages; give a list with one of these per row")
        rows.append(prompt)
    if not rows:
        raise ValueError(f"{name} is empty; give at least one text")
    return rows
