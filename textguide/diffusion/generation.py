"""``textguide.diffusion.generate``, ``infill`` and ``stream``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..engine.request import stop_texts
from ..support.checks import flag
from .caching import Caching
from .denoisers import denoiser
from .guiding import checked_guidance
from .options import Allowed, CanvasOptions
from .results import DiffusionResult
from .run import CanvasRun
from .samplers import Order, Unmasking
from .sampling import CanvasStep

_NAME = "textguide.diffusion"


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    order: Order | str = "confidence",
    sampler: Unmasking | str | None = None,
    temperature: float = 0.0,
    threshold: float | None = None,
    positions: str = "guided",
    corrector: int = 0,
    allowed: Allowed | None = None,
    constraint: Any = None,
    early_end: bool = True,
    cache: Caching | str | bool | None = False,
    seed: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    stop: str | Sequence[str] | None = None,
    include_stop: bool = True,
    models: Mapping[str, Any] | None = None,
    keep_history: bool = False,
    warn: bool = True,
    **others: Any,
) -> DiffusionResult:
    """Write after each prompt by filling a canvas of masks.

    Args:
        model: a masked diffusion model, or the :class:`Denoiser` of one.
        tokenizer: its tokenizer.
        prompts: a text, token ids or chat messages, or a list with one of these per row. Rows may differ in length.
        guidance: a guidance whose branches are other prompts, edits of the prompt or other denoisers, such as
            :class:`textguide.CFG` (the prompt masked, or its negative prompt) or :class:`textguide.ACFG`; its text, or
            None. All branches of one model share one forward pass. :class:`textguide.CAIF`, on its own or combined
            with one of them, reweights the candidates of every masked position of the block: the classifier reads the
            text with the candidate filled in, up to its first end token, and without everything that is still masked.
        max_new_tokens: masks after each prompt; default: 256. ``gen_length`` is another name of it.
        steps: denoising steps; None: one per mask. Each fills an equal share of its block. Ignored with ``threshold``.
        block_length: blocks are filled from left to right, each with this many masks; None: the whole canvas at once,
            or the blocks of a model whose attention is causal between them (counted from the beginning of the row).
        order: which positions come first: ``confidence`` (probability of the drawn token), ``margin`` (between the two
            most likely tokens), ``entropy``, ``random``, or an object of :mod:`textguide.diffusion.samplers` such as
            ``PositionCalibrated(frequencies=counts)`` (``pc``).
        sampler: how many positions a step fills, and whether it empties others: None for equal shares; or an object or
            its text: ``EntropyBound(0.1)`` (``eb:gamma=0.1``), ``Stability()`` (``klass``), ``PathPlanning()``
            (``p2``), ``RemaskingPosterior()`` (``remdm``). The last two revise what is filled: each block takes all its
            steps, of which there may be more than masks.
        temperature: 0 takes the most likely token; above 0 draws from ``p^(1/T)`` with Gumbel noise in float64.
        threshold: fill every position whose certainty reaches this, and at least one, instead of equal shares; the
            sampler ``threshold``.
        positions: the distribution that ranks positions: ``guided``, ``conditional`` or ``unconditional`` (CFG++, arXiv
            2406.08070: tokens from the guided distribution, positions by the other branch, the first of several).
        corrector: after each step, empty this many of the least certain tokens of the block and draw them from the
            guided distribution at 2γ − 1, while the step itself runs without guidance (predictor-corrector, arXiv
            2408.09000). For guidance of the form ``lu + γ (lc − lu)``.
        allowed: bool mask of tokens that may be written: (V,), (G, V) for the G masks of each row, (B, G, V), or a
            function ``(row, tokens) -> (G, V)`` of the canvas as it is. Applied after the branches and before
            classifiers, whose candidates are allowed tokens.
        constraint: a :class:`~textguide.constraints.Constraint` (or its description, such as ``regex:[0-9]+``) that
            every finished text satisfies: the new text up to its end token, or up to the end of the canvas. Applied
            last: tokens are drawn from the guided distributions of all masked positions, given that the whole text
            satisfies the constraint. Exact for regular constraints; for others see
            :class:`textguide.diffusion.constraints.lookahead.LookaheadConstraint`. Orders and samplers rank positions
            by the distributions given the constraint.
        early_end: finish a row when everything before its end token is filled.
        cache: True keeps keys and values of finished blocks, for models whose forward accepts ``past_key_values``. This
            is exact if attention is causal between blocks, and an approximation if it is bidirectional. Or
            :class:`textguide.diffusion.DelayedCache` (its text: ``delayed:refresh=8,delay=1``), which keeps filled
            positions inside of a block too: an approximation whose error
            :func:`textguide.diffusion.cache_agreement` measures.
        seed: makes sampling reproducible. All rows share one generator, so that a row's text depends on
            ``batch_size`` and on the other prompts. A list has one seed per row, which then draws what it draws alone.
        batch_size: rows that are filled at once; None: all. Without draws, or with a seed per row, results do not
            depend on it.
        stop: text or texts that end a row: its text is cut after the first of them, in reading order. The canvas is
            filled as without ``stop``, because what comes later in a text can change what comes before; ``stop``
            therefore saves no passes.
        include_stop: False leaves the text of ``stop`` out of ``texts``. It is kept by default, with the rest of the
            token that completed it.
        models: further denoisers with the same tokens, by the names that branches use: masked diffusion models, or a
            :class:`Denoiser` each.
        keep_history: keep the canvas after every step, for :func:`textguide.diffusion.picture_page`.
        warn: warn if guidance ran and changed nothing.

    Raises:
        ValueError: an argument is unknown or has a value that cannot work; the message names it, its value and the
            remedy.

    Example:
        >>> model, tokenizer = textguide.diffusion.load("sudoku4")
        >>> textguide.diffusion.generate(model, tokenizer, "0300124300000431", max_new_tokens=16).texts
    """
    options = CanvasOptions.of_call(f"{_NAME}.generate", locals())
    guidance = checked_guidance(guidance, particles=True)
    run = CanvasRun.after_prompts(denoiser(model, tokenizer), prompts, guidance, models, options)
    return run.result(
        batch_size=batch_size,
        stop=stop_texts(stop, "stop"),
        include_stop=flag("include_stop", include_stop),
        keep_history=keep_history,
        warn=warn,
    )


def stream(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    models: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[CanvasStep]:
    """Yield the canvas after every step of :func:`generate`, whose arguments apply, except those of the finished text
    (``stop``, ``batch_size``, ``keep_history``, ``warn``).

    Raises:
        ValueError: as :func:`generate`, when it is called and not at the first step.
    """
    for name in ("stop", "include_stop", "batch_size", "keep_history", "warn"):
        if name in options:
            raise ValueError(f"{name}= is for finished texts, and stream yields canvases; use {_NAME}.generate")
    run = CanvasRun.after_prompts(
        denoiser(model, tokenizer),
        prompts,
        checked_guidance(guidance),
        models,
        CanvasOptions.of(options, f"{_NAME}.stream"),
    )
    return run.sampler().run()


def infill(
    model: Any,
    tokenizer: Any,
    texts: Any,
    guidance: Any = None,
    *,
    steps: int | None = None,
    order: Order | str = "confidence",
    sampler: Unmasking | str | None = None,
    temperature: float = 0.0,
    threshold: float | None = None,
    positions: str = "guided",
    corrector: int = 0,
    allowed: Allowed | None = None,
    constraint: Any = None,
    cache: Caching | str | bool | None = False,
    seed: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    models: Mapping[str, Any] | None = None,
    keep_history: bool = False,
    warn: bool = True,
    **others: Any,
) -> DiffusionResult:
    """Fill the mask tokens of given texts.

    Args:
        texts: a text or token ids with mask tokens at any positions, or a list of these.
        guidance: as for :func:`generate`. A branch without its own prompt reads masks instead of everything that is
            given; another text (a negative prompt, for example) contains as many masks as the text that it replaces;
            and an edit that keeps the number of tokens, such as shuffling, changes what is given around the masks.
        steps: None: as many as the row with the most masks has.
        constraint: on the whole text of a row, including what is given; an end token is not part of it.
        cache: as for :func:`generate`; the masks of a text are one block, so True keeps what comes before the first of
            them.
        model, tokenizer, order, sampler, temperature, threshold, positions, corrector, allowed, seed, batch_size,
            models, keep_history, warn: as for :func:`generate`.

    Raises:
        ValueError: an argument is unknown or has a value that cannot work; the message names it, its value and the
            remedy.
    """
    if "stop" in others:
        raise ValueError("stop= is for text after a prompt; infill fills the masks of a text whose end is given")
    options = CanvasOptions.of_call(f"{_NAME}.infill", locals(), infilling=True)
    guidance = checked_guidance(guidance, particles=True)
    run = CanvasRun.in_texts(denoiser(model, tokenizer), texts, guidance, models, options)
    return run.result(batch_size=batch_size, keep_history=keep_history, warn=warn)
