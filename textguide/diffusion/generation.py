"""``textguide.diffusion.generate``, ``infill`` and ``stream``."""

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
from ..step.effect import Effect, warn_if_none
from ..support.showing import Block, Folded, Line, Shown, table
from . import canvas as canvases
from .branches import rows_of, texts_of
from .caching import Caching, caching_of
from .canvas import Canvas
from .constraints.base import Form
from .constraints.resolve import form_of
from .denoisers import Denoiser, denoiser
from .guiding import Guide, candidates_of, checked_guidance, judged_of, remasked_by
from .particles import ParticleSampler, plan_for, repeated, side_by_side
from .predictors import Predictor
from .sampling import CanvasStep, Plan, Sampler, checked_plan, finished, whole_number

DEFAULTS: dict[str, Any] = {
    "order": "confidence", "sampler": None, "temperature": 0.0, "threshold": None, "positions": "guided",
    "corrector": 0, "allowed": None, "early_end": True, "seed": None,
}  # fmt: skip
"""What shapes a canvas beside its size."""


@dataclass(frozen=True)
class DiffusionResult(Shown):
    """What a run wrote.

    Attributes:
        texts: for ``generate`` the new text of each row up to the end token, for ``infill`` the whole text.
        sequences: the rows as they were read, padded on the right, (B, L).
        targets: which positions were filled, bool (B, L).
        steps: denoising steps that each row took.
        passes: forward passes, over all models.
        rows: rows read in them, those of all branches counted.
        tokens: positions read in them, those of padding counted.
        effect: what guidance did.
        history: every step, where ``keep_history`` asked for it; else empty.
        log_weights: under particle Gibbs, log of the estimate of ``E[f^weight]`` of each row, float64 (B,); else None.
    """

    texts: list[str]
    sequences: Tensor
    targets: Tensor
    steps: list[int]
    passes: int
    rows: int
    tokens: int
    effect: Effect
    history: tuple[CanvasStep, ...] = ()
    log_weights: Tensor | None = None

    def _shown(self) -> tuple[str, Sequence[Block]]:
        filled = self.targets.sum(-1).tolist()
        rows = [[str(row + 1), text, str(filled[row]), str(self.steps[row])] for row, text in enumerate(self.texts)]
        blocks: list[Block] = [table(["#", "text", "positions filled", "steps"], rows, "rlrr")]
        if self.history:
            steps = [
                [
                    str(step.index + 1),
                    *(str(int(which.sum())) for which in (step.committed, step.remasked, step.corrected)),
                    str(step.forwards),
                ]
                for step in self.history
            ]
            header = ["step", "filled", "masked again for A-CFG", "drawn again", "passes"]
            blocks.append(Folded(f"{len(steps)} steps", (table(header, steps, "rrrrr"),)))
        passes = f"{self.passes} forward passes over {self.rows} rows"
        blocks += [Line(passes, quiet=True), Line(str(self.effect), quiet=True)]
        return f"{len(self.texts)} text{'s' * (len(self.texts) != 1)} from masks", blocks


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    *,
    guidance: Any = None,
    models: Mapping[str, Any] | None = None,
    gen_length: int = 256,
    steps: int | None = None,
    block_length: int | None = None,
    order: Any = "confidence",
    sampler: Any = None,
    temperature: float = 0.0,
    threshold: float | None = None,
    positions: str = "guided",
    corrector: int = 0,
    allowed: Any = None,
    constraint: Any = None,
    early_end: bool = True,
    cache: Any = False,
    seed: int | None = None,
    keep_history: bool = False,
    warn: bool = True,
) -> DiffusionResult:
    """Write behind each prompt by filling a canvas of masks.

    Args:
        model: a masked diffusion model, or the :class:`Denoiser` of one.
        tokenizer: its tokenizer.
        prompts: a text, token ids or chat messages, or a list with one of these a row. They may differ in length.
        guidance: a guidance whose branches are other prompts, edits of the prompt or other denoisers, such as
            :class:`textguide.CFG` (the prompt masked, or its negative prompt) or :class:`textguide.ACFG`; its text, or
            None. All branches of one model ride in one forward pass. :class:`textguide.CAIF`, alone or behind one of
            them, weighs the candidates of every masked position of the block: the classifier reads the text with the
            candidate filled in and everything that is still masked left out, up to its first end token.
        models: further denoisers with the same tokens, by the name that branches use: masked diffusion models, or a
            :class:`Denoiser` each.
        gen_length: masks behind each prompt.
        steps: denoising steps; None: one a mask. Each fills an equal share of its block. Ignored with ``threshold``.
        block_length: blocks are filled from left to right, each of this many masks; None: the whole canvas at once, or
            the blocks of a model whose attention is causal between them (which count from the row's beginning).
        order: which positions come first: ``confidence`` (probability of the drawn token), ``margin`` (of the two most
            likely tokens), ``entropy``, ``random``, or an object of :mod:`textguide.diffusion.samplers` such as
            ``PositionCalibrated(frequencies=counts)`` (``pc``).
        sampler: how many a step fills, and whether it empties others: None for equal shares; or an object or its text:
            ``EntropyBound(0.1)`` (``eb:gamma=0.1``), ``Stability()`` (``klass``), ``PathPlanning()`` (``p2``),
            ``RemaskingPosterior()`` (``remdm``). The last two revise what is filled: each block takes all its steps,
            of which there may be more than masks.
        temperature: 0 takes the most likely token; above 0 draws from ``p^(1/T)`` with Gumbel noise in float64.
        threshold: fill every position whose certainty reaches this, one at least, in place of equal shares; the sampler
            ``threshold``.
        positions: the distribution that ranks positions: ``guided``, ``conditional`` or ``unconditional`` (CFG++, arXiv
            2406.08070: tokens from the guided distribution, positions by the other branch, the first of several).
        corrector: after each step empty this many of the least certain tokens of the block and draw them from the
            guided distribution at 2γ − 1, while the step itself goes without guidance (predictor-corrector, arXiv
            2408.09000). For guidance by ``lu + γ (lc − lu)``.
        allowed: bool mask of tokens that may be written: (V,), (G, V) for the G masks of each row, (B, G, V), or a
            function ``(row, tokens) -> (G, V)`` of the canvas as it is. Acts behind branches and in front of
            classifiers, whose candidates are allowed ones.
        constraint: a :class:`~textguide.constraints.Constraint` (or what describes one, such as ``regex:[0-9]+``) that
            every finished text satisfies: the new text up to its end token, or up to the end of the canvas. Acts behind
            everything else: tokens are drawn from the guided distributions of all masked positions, given that the
            whole text is in form. Exact for regular constraints; for others see
            :class:`textguide.diffusion.constraints.lookahead.SearchedForm`. Orders and samplers rank by the
            distributions given the form.
        early_end: a row is finished once everything in front of its end token is filled.
        cache: keep keys and values of finished blocks, for models whose forward takes ``past_key_values``. Exact where
            attention is causal between blocks, an approximation where it is bidirectional. Or
            :class:`textguide.diffusion.DelayedCache` (its text: ``delayed:refresh=8,delay=1``), which keeps filled
            positions inside of a block too: an approximation whose error
            :func:`textguide.diffusion.cache_agreement` measures.
        seed: makes sampling reproducible; a list has one a row, which then draws what it draws alone with that seed.
        keep_history: keep the canvas behind every step, for :func:`textguide.diffusion.picture_page`.
        warn: warn where guidance ran and changed nothing.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it, its value and the remedy.

    Example:
        >>> model, tokenizer = textguide.diffusion.load("sudoku4")
        >>> textguide.diffusion.generate(model, tokenizer, "0300124300000431", gen_length=16).texts
    """
    wanted = checked_guidance(guidance, particles=True)
    options = {
        "order": order, "sampler": sampler, "temperature": temperature, "threshold": threshold, "positions": positions,
        "corrector": corrector, "allowed": allowed, "early_end": early_end, "seed": seed,
    }  # fmt: skip
    sampler = _for_generation(
        model, tokenizer, prompts, wanted, models, gen_length, steps, block_length, cache, options, constraint
    )
    return finish(sampler, wanted, keep_history, warn, whole=False)


def stream(model: Any, tokenizer: Any, prompts: Any, **arguments: Any) -> Iterator[CanvasStep]:
    """The canvas behind every step of :func:`generate`, with its arguments.

    Raises:
        ValueError: as :func:`generate`, at once and not at the first step.
    """
    return prepared(model, tokenizer, prompts, **arguments).run()


def prepared(model: Any, tokenizer: Any, prompts: Any, *, guidance: Any = None,
             models: Mapping[str, Any] | None = None, gen_length: int = 256, steps: int | None = None,
             block_length: int | None = None, cache: Any = False, constraint: Any = None,
             **options: Any) -> Sampler:  # fmt: skip
    """What runs behind :func:`stream`, in front of its first step: with the canvas, and the report behind the last one.

    Raises:
        ValueError: as :func:`generate`.
    """
    return _for_generation(
        model, tokenizer, prompts, checked_guidance(guidance), models, gen_length, steps, block_length, cache,
        _shaping(options, "stream"), constraint,
    )  # fmt: skip


def infill(
    model: Any,
    tokenizer: Any,
    texts: Any,
    *,
    guidance: Any = None,
    models: Mapping[str, Any] | None = None,
    steps: int | None = None,
    order: Any = "confidence",
    sampler: Any = None,
    temperature: float = 0.0,
    threshold: float | None = None,
    positions: str = "guided",
    corrector: int = 0,
    allowed: Any = None,
    constraint: Any = None,
    cache: Any = False,
    seed: int | None = None,
    keep_history: bool = False,
    warn: bool = True,
) -> DiffusionResult:
    """Fill the mask tokens of given texts, wherever they stand.

    Args:
        texts: a text or token ids with mask tokens in it, or a list of these.
        guidance: as for :func:`generate`. Without a prompt of its own a branch masks everything that was given;
            another text (a negative prompt, say) holds as many masks as the text that it stands for, and an edit that
            keeps the number of tokens, such as shuffling, changes what is given around the masks.
        models: as for :func:`generate`.
        constraint: of the whole text of a row, with what is given; an end token is no part of it.
        steps: None: as many as the row with the most masks has. The other arguments are those of :func:`generate`.
        cache: as for :func:`generate`; the masks of a text are one block, so that True keeps what stands in front of
            the first of them.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it, its value and the remedy.
    """
    wanted = checked_guidance(guidance, particles=True)
    options = {
        "order": order, "sampler": sampler, "temperature": temperature, "threshold": threshold, "positions": positions,
        "corrector": corrector, "allowed": allowed, "seed": seed,
    }  # fmt: skip
    chosen = _for_infilling(model, tokenizer, texts, wanted, models, steps, options, constraint, caching_of(cache))
    return finish(chosen, wanted, keep_history, warn, whole=True)


def prepared_infill(model: Any, tokenizer: Any, texts: Any, *, guidance: Any = None,
                    models: Mapping[str, Any] | None = None, steps: int | None = None, constraint: Any = None,
                    **options: Any) -> Sampler:  # fmt: skip
    """What runs behind :func:`infill`, in front of its first step.

    Raises:
        ValueError: as :func:`infill`.
    """
    wanted = checked_guidance(guidance)
    return _for_infilling(model, tokenizer, texts, wanted, models, steps, _shaping(options, "infill"), constraint)


def _shaping(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All options that shape a canvas, with their defaults.

    Raises:
        ValueError: one is unknown.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"{unknown[0]}= is no argument of {name}; it takes those that shape the canvas")
    return {**DEFAULTS, **options}


def _for_infilling(
    model: Any, tokenizer: Any, texts: Any, guidance: Guidance | None, models: Mapping[str, Any] | None,
    steps: int | None, options: dict[str, Any], constraint: Any, cache: Caching | None = None,
) -> Sampler:  # fmt: skip
    made, given = denoiser(model, tokenizer), canonical(texts, "texts")
    canvas = canvases.for_infilling(made, [made.encode(text) for text in given])
    steps = int(canvas.target.sum(-1).max()) if steps is None else steps
    plan = checked_plan(count=len(canvas), steps=steps, blocks=1, **{**options, "early_end": False})
    return _sampler(made, guidance, canvas, given, models, plan, infilling=True, cache=cache, constraint=constraint)


def _for_generation(
    model: Any, tokenizer: Any, prompts: Any, guidance: Guidance | None, models: Mapping[str, Any] | None,
    gen_length: Any, steps: Any, block_length: Any, cache: Any, options: dict[str, Any],
    constraint: Any = None,
) -> Sampler:  # fmt: skip
    made = denoiser(model, tokenizer)
    gen_length = whole_number("gen_length", gen_length)
    own = made.block_size
    block_length = (own or gen_length) if block_length is None else whole_number("block_length", block_length)
    if own is not None and block_length != own:
        raise ValueError(
            f"block_length={block_length}: attention of this model is causal between blocks of {own}; leave "
            f"block_length out, or pass a denoiser with block_size={block_length}"
        )
    if own is None and gen_length % block_length:
        raise ValueError(
            f"gen_length={gen_length} is not divisible by block_length={block_length}; "
            f"use gen_length={gen_length // block_length * block_length or block_length} or another block"
        )
    given = canonical(prompts, "prompts")
    canvas = canvases.for_generation(made, [made.encode(prompt) for prompt in given], gen_length, block_length)
    blocks = int(canvas.block.max()) + 1
    steps = (gen_length if own is None else blocks * own) if steps is None else steps
    plan = checked_plan(count=len(given), steps=steps, blocks=blocks, **options)
    return _sampler(made, guidance, canvas, given, models, plan, cache=caching_of(cache), constraint=constraint)


def _sampler(
    model: Denoiser, guidance: Guidance | None, canvas: Canvas, prompts: Sequence[Prompt],
    models: Mapping[str, Any] | None, plan: Plan, *, infilling: bool = False, cache: Caching | None = None,
    constraint: Any = None,
) -> Sampler:  # fmt: skip
    wanted = _scaled(guidance, plan.corrector)
    branching = split(wanted).branching
    texts, again = None, remasked_by(branching)
    if again is None:
        texts = texts_of(model, branching, rows_of(canvas), prompts, infilling=infilling)
    weighed = candidates_of(model, wanted, infilling), judged_of(model, wanted, infilling)
    if (moving := _particles(wanted)) is not None:
        count = moving.particles
        if constraint is not None:
            raise ValueError(
                "constraint= draws whole texts in form, and particle-gibbs weighs draws without; take other guidance"
            )
        plan = plan_for(plan, count, cache, getattr(again, "one_pass", False))
        canvas, texts = side_by_side(canvas, count), repeated(texts, count)
    guide = Guide(model, wanted, canvas, texts, models, cache, *weighed)
    if isinstance(plan.seed, Sequence) and guide.draws:
        raise ValueError(f"seed={plan.seed!r}: {wanted} draws for all rows at once; give one number")
    return Sampler(model, canvas, guide, plan, _form(model, constraint, canvas, wanted, infilling))


def _particles(guidance: Guidance | None) -> ParticleGibbs | None:
    found = split(guidance).canvas
    return found if isinstance(found, ParticleGibbs) else None


def _form(model: Denoiser, constraint: Any, canvas: Canvas, guidance: Guidance | None, whole: bool) -> Form | None:
    """What keeps the texts of a canvas in form.

    Raises:
        ValueError: the guidance leaves only some tokens of each position, which may make no text together.
    """
    if constraint is None:
        return None
    parts = split(guidance)
    for part in (*parts.reweighting, *([] if parts.canvas is None else [parts.canvas])):
        if (samples := getattr(part, "samples", None)) and not part.is_neutral:
            raise ValueError(
                f"{part.name} leaves the tokens of samples={samples} texts, which may make no text in form together; "
                "take samples=None beside constraint="
            )
        top_k = getattr(part, "top_k", None)
        if not part.is_neutral and top_k is not None and top_k < model.size:
            raise ValueError(
                f"{part.name} leaves top_k={top_k} tokens of each position, which may make no text in form together; "
                "take top_k=None beside constraint="
            )
    return form_of(model, constraint, canvas, whole)


def finish(sampler: Sampler, guidance: Guidance | None, keep_history: bool, warn: bool, whole: bool) -> DiffusionResult:
    """Run a sampler to its end: what it wrote."""
    guide = sampler.guide
    passes, rows, tokens = guide.passes, guide.rows, guide.tokens
    history = []
    canvas, log_weights, steps = sampler.canvas, None, sampler.steps_taken
    if (moving := _particles(guidance)) is not None:
        if keep_history:
            raise ValueError("keep_history=True shows one canvas a row, and particle-gibbs moves them; leave it off")
        predictor = Predictor(sampler.model, moving, whole)
        run = ParticleSampler(moving, predictor, sampler)
        ids, steps = run.run()
        first = torch.arange(0, len(canvas), moving.particles, device=canvas.ids.device)
        canvas, log_weights = replace(canvas.pick(first), ids=ids), run.log_mean
        guide.meter.classified += predictor.asked
    else:
        for step in sampler.run():
            if keep_history:
                history.append(step)
    effect = sampler.effect
    if warn and log_weights is None:
        warn_if_none(effect, guidance)
    model = sampler.model
    return DiffusionResult(
        texts=[decode(model, canvas, row, whole) for row in range(len(canvas))],
        sequences=canvas.ids,
        targets=canvas.target,
        steps=steps,
        passes=guide.passes - passes,
        rows=guide.rows - rows,
        tokens=guide.tokens - tokens,
        effect=effect,
        history=tuple(history),
        log_weights=log_weights,
    )


def decode(model: Denoiser, canvas: Canvas, row: int, whole: bool) -> str:
    """The text of a row: what was filled in up to the end token, or the whole row."""
    ids = canvas.text_ids(row) if whole else finished(canvas.targets(row), model.end_id)
    return str(model.tokenizer.decode(ids, skip_special_tokens=not whole))


def canonical(values: Any, name: str) -> list[Prompt]:
    """Prompts, one a row, in canonical form.

    Raises:
        ValueError: they are no prompts; ``name`` is the argument that the message names.
    """
    if as_prompt(values) is not None:
        values = [values]
    if isinstance(values, (bytes, bytearray)) or not isinstance(values, (Sequence, Tensor)):
        raise ValueError(f"{name} must be a text, token ids or chat messages, or a list with one of these a row")
    rows = []
    for value in values:
        prompt = as_prompt(value)
        if prompt is None:
            raise ValueError(f"{name} must be texts, token ids or chat messages; give a list with one of these a row")
        rows.append(prompt)
    if not rows:
        raise ValueError(f"{name} is empty; give one text at least")
    return rows


def _scaled(guidance: Guidance | None, corrector: int) -> Guidance | None:
    """The corrector samples at γ' = 2γ − 1, since the predictor goes without guidance.

    Raises:
        ValueError: the guidance is not ``lu + γ (lc − lu)``.
    """
    if not corrector or guidance is None or guidance.is_neutral:
        return guidance
    if not isinstance(guidance, Scaled) or type(guidance).mix is not Scaled.mix:
        raise ValueError(
            f"corrector={corrector} draws tokens again at 2γ − 1, and {guidance.name} is not lu + γ (lc − lu); use "
            "CFG, or leave corrector 0"
        )
    return replace(guidance, scale=2 * guidance.scale - 1)
