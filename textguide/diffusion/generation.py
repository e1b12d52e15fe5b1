"""``textguide.diffusion.generate``, ``infill`` and ``stream``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..engine.effect import Effect, warn_if_none
from ..guidance import as_guidance
from ..guidance.prompts import as_prompt
from . import canvas as canvases
from .canvas import Canvas
from .denoisers import Denoiser, denoiser
from .guiding import Guide, checked_guidance, negative_rows
from .prefix import Prefix
from .sampling import CanvasStep, Sampler, checked_plan, finished, whole_number


@dataclass(frozen=True)
class DiffusionResult:
    """What a run wrote.

    Attributes:
        texts: for ``generate`` the new text of each row up to the end token, for ``infill`` the whole text.
        sequences: the rows as they were read, padded on the right, (B, L).
        targets: which positions were filled, bool (B, L).
        steps: denoising steps that each row took.
        passes: forward passes over the model.
        rows: rows read in them, both halves of guidance counted.
        effect: what guidance did.
        history: every step, where ``keep_history`` asked for it; else empty.
    """

    texts: list[str]
    sequences: Tensor
    targets: Tensor
    steps: list[int]
    passes: int
    rows: int
    effect: Effect
    history: tuple[CanvasStep, ...] = ()


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    *,
    guidance: Any = None,
    gen_length: int = 256,
    steps: int | None = None,
    block_length: int | None = None,
    order: str = "confidence",
    temperature: float = 0.0,
    threshold: float | None = None,
    positions: str = "guided",
    corrector: int = 0,
    allowed: Any = None,
    early_end: bool = True,
    cache: bool = False,
    seed: int | None = None,
    keep_history: bool = False,
    warn: bool = True,
) -> DiffusionResult:
    """Write behind each prompt by filling a canvas of masks.

    Args:
        model: a masked diffusion model, or the :class:`Denoiser` of one.
        tokenizer: its tokenizer.
        prompts: a text, token ids or chat messages, or a list with one of these a row. They may differ in length.
        guidance: :class:`textguide.CFG` (the prompt masked, or its negative prompt, in the same forward pass),
            :class:`textguide.ACFG`, or None.
        gen_length: masks behind each prompt.
        steps: denoising steps; None: one a mask. Each fills an equal share of its block. Ignored with ``threshold``.
        block_length: blocks are filled from left to right, each of this many masks; None: the whole canvas at once.
        order: which positions come first: ``confidence`` (probability of the drawn token), ``margin`` (of the two most
            likely tokens), ``entropy`` or ``random``.
        temperature: 0 takes the most likely token; above 0 draws from ``p^(1/T)`` with Gumbel noise in float64.
        threshold: fill every position whose certainty reaches this, one at least, in place of equal shares.
        positions: the distribution that ranks positions: ``guided``, ``conditional`` or ``unconditional`` (CFG++, arXiv
            2406.08070: tokens from the guided distribution, positions by the other branch).
        corrector: after each step empty this many of the least certain tokens of the block and draw them from the
            guided distribution at 2γ − 1, while the step itself goes without guidance (predictor-corrector, arXiv
            2408.09000).
        allowed: bool mask of tokens that may be written: (V,), (G, V) for the G masks of each row, (B, G, V), or a
            function ``(row, tokens) -> (G, V)`` of the canvas as it is.
        early_end: a row is finished once everything in front of its end token is filled.
        cache: keep keys and values of finished blocks, for models whose forward takes ``past_key_values``. Exact where
            attention is causal between blocks, an approximation where it is bidirectional.
        seed: makes sampling reproducible.
        keep_history: keep the canvas behind every step, for :func:`textguide.diffusion.picture_page`.
        warn: warn where guidance ran and changed nothing.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it, its value and the remedy.

    Example:
        >>> model, tokenizer = textguide.diffusion.load("sudoku4")
        >>> textguide.diffusion.generate(model, tokenizer, "0300124300000431", gen_length=16).texts
    """
    options = {
        "order": order, "temperature": temperature, "threshold": threshold, "positions": positions,
        "corrector": corrector, "allowed": allowed, "early_end": early_end, "seed": seed,
    }  # fmt: skip
    guidance = as_guidance(guidance)
    sampler = _for_generation(model, tokenizer, prompts, guidance, gen_length, steps, block_length, cache, options)
    return _finish(sampler, guidance, keep_history, warn, whole=False)


def stream(model: Any, tokenizer: Any, prompts: Any, *, guidance: Any = None, gen_length: int = 256,
           steps: int | None = None, block_length: int | None = None, cache: bool = False,
           **options: Any) -> Iterator[CanvasStep]:  # fmt: skip
    """The canvas behind every step of :func:`generate`, with its arguments.

    Raises:
        ValueError: as :func:`generate`, at once and not at the first step.
    """
    defaults: dict[str, Any] = {
        "order": "confidence", "temperature": 0.0, "threshold": None, "positions": "guided", "corrector": 0,
        "allowed": None, "early_end": True, "seed": None,
    }  # fmt: skip
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(f"{unknown[0]}= is no argument of stream; it takes those of generate that shape the canvas")
    sampler = _for_generation(
        model, tokenizer, prompts, guidance, gen_length, steps, block_length, cache, {**defaults, **options}
    )
    return sampler.run()


def infill(
    model: Any,
    tokenizer: Any,
    texts: Any,
    *,
    guidance: Any = None,
    steps: int | None = None,
    order: str = "confidence",
    temperature: float = 0.0,
    threshold: float | None = None,
    positions: str = "guided",
    corrector: int = 0,
    allowed: Any = None,
    seed: int | None = None,
    keep_history: bool = False,
    warn: bool = True,
) -> DiffusionResult:
    """Fill the mask tokens of given texts, wherever they stand.

    Args:
        texts: a text or token ids with mask tokens in it, or a list of these.
        guidance: as for :func:`generate`; CFG masks everything that was given, and takes no negative prompt.
        steps: None: as many as the row with the most masks has. The other arguments are those of :func:`generate`.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it, its value and the remedy.
    """
    made, guidance = denoiser(model, tokenizer), as_guidance(guidance)
    if getattr(guidance, "negative_prompt", None) is not None:
        raise ValueError("negative_prompt has no meaning for infilling, where there is no prompt; leave it out")
    canvas = canvases.for_infilling(made, [made.encode(text) for text in _rows(texts, "texts")])
    steps = int(canvas.target.sum(-1).max()) if steps is None else steps
    plan = checked_plan(
        count=len(canvas), steps=steps, blocks=1, order=order, temperature=temperature, threshold=threshold,
        positions=positions, corrector=corrector, early_end=False, allowed=allowed, seed=seed,
    )  # fmt: skip
    guide = Guide(made, _scaled(checked_guidance(guidance), corrector), canvas)
    return _finish(Sampler(made, canvas, guide, plan), guidance, keep_history, warn, whole=True)


def _for_generation(
    model: Any, tokenizer: Any, prompts: Any, guidance: Any, gen_length: Any, steps: Any, block_length: Any,
    cache: bool, options: dict[str, Any],
) -> Sampler:  # fmt: skip
    made = denoiser(model, tokenizer)
    gen_length = whole_number("gen_length", gen_length)
    block_length = gen_length if block_length is None else whole_number("block_length", block_length)
    if gen_length % block_length:
        raise ValueError(
            f"gen_length={gen_length} is not divisible by block_length={block_length}; "
            f"use gen_length={gen_length // block_length * block_length or block_length} or another block"
        )
    steps = gen_length if steps is None else steps
    rows = [made.encode(prompt) for prompt in _rows(prompts, "prompts")]
    plan = checked_plan(count=len(rows), steps=steps, blocks=gen_length // block_length, **options)
    wanted = checked_guidance(guidance)
    negatives = negative_rows(made, wanted, len(rows))
    canvas = canvases.for_generation(made, rows, gen_length, block_length)
    kept = Prefix(made, canvas, wanted, negatives) if cache else None
    guide = Guide(made, _scaled(wanted, plan.corrector), canvas, negatives, kept)
    return Sampler(made, canvas, guide, plan)


def _finish(sampler: Sampler, guidance: Any, keep_history: bool, warn: bool, whole: bool) -> DiffusionResult:
    passes, rows = sampler.model.passes, sampler.model.rows
    history = []
    for step in sampler.run():
        if keep_history:
            history.append(step)
    effect = sampler.effect
    if warn and not isinstance(guidance, type(None)):
        with warnings.catch_warnings():
            warn_if_none(effect, guidance)
    model, canvas = sampler.model, sampler.canvas
    return DiffusionResult(
        texts=[decode(model, canvas, row, whole) for row in range(len(canvas))],
        sequences=canvas.ids,
        targets=canvas.target,
        steps=sampler.steps_taken,
        passes=model.passes - passes,
        rows=model.rows - rows,
        effect=effect,
        history=tuple(history),
    )


def decode(model: Denoiser, canvas: Canvas, row: int, whole: bool) -> str:
    """The text of a row: what was filled in up to the end token, or the whole row."""
    ids = canvas.text_ids(row) if whole else finished(canvas.targets(row), model.end_id)
    return str(model.tokenizer.decode(ids, skip_special_tokens=not whole))


def _rows(values: Any, name: str) -> Sequence[Any]:
    if as_prompt(values) is not None:
        return [values]
    if isinstance(values, (bytes, bytearray)) or not isinstance(values, (Sequence, Tensor)):
        raise ValueError(f"{name} must be a text, token ids or chat messages, or a list with one of these a row")
    rows = list(values)
    if not rows:
        raise ValueError(f"{name} is empty; give one text at least")
    return rows


def _scaled(guidance: Any, corrector: int) -> Any:
    """The corrector samples at γ' = 2γ − 1, since the predictor goes without guidance."""
    return guidance if guidance is None or not corrector else replace(guidance, scale=2 * guidance.scale - 1)
