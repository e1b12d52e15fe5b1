"""``textguide.generate``, ``textguide.stream`` and ``textguide.eager``: from prompts to text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .constraints import Vocabulary
from .engine import branch_inputs
from .engine.custom_generate import GuidedDecoding
from .engine.loop import Observer
from .engine.request import Request, check_names, stop_texts
from .engine.results import Ending, GenerateResult, warn_of_empty_texts
from .engine.run import Batch, Run
from .engine.text_stream import TextStream
from .forward.model_adapter import adapter
from .forward.prefill import pad_left
from .guidance import EAGer, Guidance, as_guidance, parts_of, split
from .guidance.prompts import per_row
from .support.checks import check_model_and_tokenizer, flag, whole_number
from .support.showing import Block, Line, Shown, figure, table

LONGEST = 128
"""Number of new tokens if neither the call nor ``generation_config`` sets it."""
IMAGE_OPTIONS = ("unconditional", "language_model")
"""Options of :func:`textguide.caption` that :func:`generate` accepts with images."""


class StreamChunk(str):
    """A piece of generated text. It is a ``str``, so that ``"".join(stream(…))`` is the text of one prompt.

    Args:
        row: index of the prompt that it continues.
        text: the new text; empty if a later token completes the character.
        token: the token that it was decoded from.
    """

    __slots__ = ("row", "token")
    row: int
    token: int

    def __new__(cls, row: int, text: str, token: int) -> StreamChunk:
        chunk = super().__new__(cls, text)
        chunk.row = row
        chunk.token = token
        return chunk

    @property
    def text(self) -> str:
        """The new text."""
        return str(self)

    def __getnewargs__(self) -> tuple[int, str, int]:  # type: ignore[override]
        return self.row, self.text, self.token

    def __repr__(self) -> str:
        return f"StreamChunk(row={self.row}, text={self.text!r}, token={self.token})"


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int | None = None,
    system: str | None = None,
    constraint: Any = None,
    seed: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    stop: str | Sequence[str] | None = None,
    include_stop: bool = True,
    do_sample: bool | None = None,
    models: Mapping[str, Any] | None = None,
    streamer: Any = None,
    observer: Observer | None = None,
    stopping_criteria: Any = None,
    vocabulary: Vocabulary | None = None,
    speculation: Any = None,
    images: Any = None,
    prefill_memory: int | None = None,
    prefill_progress: Callable[[int, int], Any] | None = None,
    verify: int = 0,
    **options: Any,
) -> GenerateResult:
    """Continue prompts under guidance, with one forward pass per step for all rows of all branches.

    Args:
        model: a transformers model, or an engine of :func:`textguide.vllm_engine`.
        tokenizer: its tokenizer. None uses the engine's own tokenizer. It may also be None if prompts are token ids;
            the result then has token ids and no texts.
        prompts: a text, token ids or a chat (a list of ``{"role", "content"}``), or a list with one of these per row.
            The output of a tokenizer with ``input_ids`` and ``attention_mask`` is accepted too.
        guidance: a guidance such as ``CFG(scale=1.5)``, its text form ``"cfg:scale=1.5"``, or a list of guidances that
            act together. None decodes without guidance.
        max_new_tokens: the largest number of new tokens; default: that of ``generation_config``, else 128.
        system: a system prompt, added to every chat; prompts that are texts become chats.
        constraint: what every text has to satisfy, such as ``Regex("[0-9]+")`` or ``"regex:[0-9]+"``. It is short for
            ``AWRS(constraint)`` in the guidance, which has more settings (particles, lookahead, …).
        seed: makes sampling reproducible without touching torch's global generator; the draws are those of
            ``torch.manual_seed(seed)``. If None, the global generator is used. All rows share one generator, so a row's
            text depends on ``batch_size`` and on the other prompts. Pass a list with one seed per row to make each row
            independent of the others.
        batch_size: number of prompts decoded together; None: all of them.
        stop: text or texts that end a continuation. The continuation includes the stop text and the rest of the token
            that completed it. If nothing else is visible, a warning reports it.
        include_stop: if False, the stop text is removed from ``texts``; its tokens remain in ``new_tokens``. Default:
            True.
        do_sample: draw from the guided distribution instead of taking the most likely token; default: the
            value in ``generation_config``, else True if a sampling option such as ``temperature`` or ``top_p`` is
            passed.
        models: further models, by the names that branches use.
        streamer: a transformers streamer.
        observer: called with a :class:`textguide.engine.loop.StepView` after every step.
        stopping_criteria: transformers stopping criteria in addition to those of ``options``.
        vocabulary: the bytes of each token, for constraints with a tokenizer that textguide cannot read.
        speculation: guess tokens and verify the guesses in the same passes: ``prompt-lookup``, ``recycling``, ``both``,
            or a :class:`textguide.Speculation`. The text stays the same.
        images: one image per prompt, for models that read images. ``tokenizer`` is then the model's processor, and the
            options of :func:`textguide.caption` apply.
        prefill_memory: bytes that a pass over a long prompt may take besides keys and values, by an estimate. Longer
            prompts are read in chunks, with the same result up to rounding; or pass ``prefill_chunk_size``, the number
            of tokens per pass. Default: 1 GiB with guidance; without it, prompts are read in one pass.
        prefill_progress: called while a prompt is read in chunks, with the number of tokens that were read and that are
            to be read.
        verify: number of random steps of the run, each of one row, that are read again by full forward passes without
            cache, padding or batching. ``effect.verification`` reports the largest differences of log-probabilities.
            If rounding does not explain them, there is a :class:`textguide.support.errors.VerificationWarning`.
            Default: 0.
        **options: any option of transformers' ``GenerationConfig``, such as ``temperature``, ``top_p``,
            ``repetition_penalty`` or ``num_return_sequences``; or ``generation_config=``. Options that are not passed
            are those of the model's own ``generation_config``, except ``do_sample`` and the length.

    Returns:
        A :class:`GenerateResult` with texts, token ids, log-probabilities and what guidance did, in the order of the
        prompts.

    Raises:
        ValueError: an argument has a value that cannot work, or it is unknown; the message names the argument and a
            remedy.

    Example:
        >>> model, tokenizer = textguide.load("smollm2")
        >>> out = textguide.generate(model, tokenizer, ["The dragon"], guidance=CFG(scale=1.5), max_new_tokens=8)
        >>> out.texts[0]  # doctest: +SKIP
    """
    flag("include_stop", include_stop)
    image_options = {}
    if images is not None:
        image_options = {name: options.pop(name) for name in IMAGE_OPTIONS if name in options}
    if getattr(model, "textguide_generate", None) is not None:
        return _generate_by_engine(
            model,
            tokenizer,
            prompts,
            guidance,
            max_new_tokens=LONGEST if max_new_tokens is None else max_new_tokens,
            system=system,
            constraint=constraint,
            seed=seed,
            stop=stop,
            do_sample=do_sample,
            options={
                **options,
                **image_options,
                "batch_size": batch_size,
                "models": models,
                "streamer": streamer,
                "observer": observer,
                "stopping_criteria": stopping_criteria,
                "vocabulary": vocabulary,
                "speculation": speculation,
                "images": images,
                "prefill_memory": prefill_memory,
                "prefill_progress": prefill_progress,
                "include_stop": None if include_stop else False,
                "verify": verify or None,
            },
        )
    request = Request.of(
        guidance,
        max_new_tokens,
        stop,
        do_sample,
        speculation,
        options,
        LONGEST,
        constraint=constraint,
        seed=seed,
        batch_size=batch_size,
        include_stop=include_stop,
        models=models,
        streamer=streamer,
        observer=observer,
        stopping_criteria=stopping_criteria,
        vocabulary=vocabulary,
        prefill_memory=prefill_memory,
        prefill_progress=prefill_progress,
        verify=verify,
    )
    if images is not None:
        from .captioning.generation import answer

        if system is not None:
            raise ValueError(f"system={system!r} does not work with images; write it into the prompts")
        return answer(model, tokenizer, images, prompts, request, **image_options)
    run = Run.of(model, tokenizer, request, needs_tokenizer=not _are_token_ids(prompts))
    check_names(generate, options, run.model)
    return run.result(_batches(run, prompts, system))


def stream(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int | None = None,
    system: str | None = None,
    constraint: Any = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    include_stop: bool = True,
    do_sample: bool | None = None,
    models: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    stopping_criteria: Any = None,
    vocabulary: Vocabulary | None = None,
    speculation: Any = None,
    prefill_memory: int | None = None,
    prefill_progress: Callable[[int, int], Any] | None = None,
    verify: int = 0,
    **options: Any,
) -> Iterator[StreamChunk]:
    """Like :func:`generate`, but yield text while it is generated, token by token and row by row.

    A chunk is a ``str`` with a ``row`` and a ``token``. ``"".join(…)`` returns the text if there is one prompt; the
    chunks of several prompts alternate. When the bytes of a token do not complete a character, its text is yielded with
    the token that completes it, or when its row ends. The run stops when the iterator is closed.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompts: as for :func:`generate`, like all other arguments. ``seed`` is a single number, and ``verify`` only
            warns.

    Returns:
        An iterator over :class:`StreamChunk`.

    Raises:
        ValueError: as for :func:`generate`, when the function is called and not at the first token. Also if the
            guidance may still change text that was generated (several particles, samplers that restart texts).

    Example:
        >>> for chunk in textguide.stream(model, tokenizer, "The dragon", CFG(1.5), max_new_tokens=8):
        ...     print(chunk, end="", flush=True)  # doctest: +SKIP
    """
    request = Request.of(
        guidance,
        max_new_tokens,
        stop,
        do_sample,
        speculation,
        options,
        LONGEST,
        constraint=constraint,
        seed=seed,
        models=models,
        include_stop=include_stop,
        observer=observer,
        stopping_criteria=stopping_criteria,
        vocabulary=vocabulary,
        prefill_memory=prefill_memory,
        prefill_progress=prefill_progress,
        verify=verify,
    )
    sampling = split(request.guidance).sampling
    if sampling is not None and sampling.particles > 1:
        name = sampling.rows_field
        raise ValueError(f"{name}={sampling.particles} may still change text that was written; stream with {name}=1")
    if sampling is not None and sampling.restarts:
        raise ValueError("sampler='cars' restarts texts, so that they cannot be streamed; use sampler='awrs' or 'asap'")
    run = Run.of(model, tokenizer, request)
    check_names(stream, options, run.model)
    (batch,) = _batches(run, prompts, system)
    return _stream(run, batch)


@dataclass
class Branched(Shown):
    """The result of :func:`eager`; its fields are lists over prompts.

    Args:
        texts: the texts of each prompt; the first one did not fork from another.
        new_tokens: their token ids.
        log_likelihoods: guided log-probability of each text, in nats.
        origins: for each text None, or the text of the same prompt that it forked from and how many tokens they share.
        tokens: number of computed tokens over all prompts; tokens that texts share count once.
        result: the complete result, with a row for every possible branch, whether it was used or not; with a budget,
            that of the first stage.
    """

    texts: list[list[str]]
    new_tokens: list[list[list[int]]]
    log_likelihoods: list[list[float]]
    origins: list[list[tuple[int, int] | None]]
    tokens: int
    result: GenerateResult

    def replaced(self, number: int, other: Branched) -> Branched:
        """The same, with the texts of prompt ``number`` from ``other``, whose computed tokens are added."""

        def with_other(mine: list[Any], others: list[Any]) -> list[Any]:
            return [*mine[:number], *others, *mine[number + 1 :]]

        return Branched(
            with_other(self.texts, other.texts),
            with_other(self.new_tokens, other.new_tokens),
            with_other(self.log_likelihoods, other.log_likelihoods),
            with_other(self.origins, other.origins),
            self.tokens + other.tokens,
            self.result,
        )

    def _shown(self) -> tuple[str, Sequence[Block]]:
        rows = []
        for prompt, group in enumerate(zip(self.texts, self.log_likelihoods, self.origins, strict=True), 1):
            for number, (text, likelihood, origin) in enumerate(zip(*group, strict=True), 1):
                source = "" if origin is None else f"{prompt}.{origin[0] + 1} after {origin[1]} tokens"
                rows.append([f"{prompt}.{number}", text, figure(likelihood, 2), source])
        blocks: list[Block] = [table(["#", "text", "log-likelihood", "forked from"], rows, "llrl")]
        blocks += [Line(f"{self.tokens} tokens computed", quiet=True), Line(str(self.result.effect), quiet=True)]
        return f"{len(rows)} texts of {len(self.texts)} prompt{'s' * (len(self.texts) != 1)}", blocks


def eager(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    entropy_threshold: float = 2.2,
    max_branches: int = 8,
    budget: int | None = None,
    **options: Any,
) -> Branched:
    """Continue each prompt as one text that forks when the guided distribution has a high entropy.

    See :class:`textguide.EAGer`.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompts: as for :func:`textguide.generate`.
        guidance: a guidance or a list of them, without a constraint.
        entropy_threshold: entropy in nats above which a text forks. Default: 2.2.
        max_branches: the largest number of texts per prompt. Default: 8.
        budget: the largest number of texts over all prompts, at least one per prompt. The texts that confident prompts
            did not use go in equal shares to the prompts that used all of theirs, which are generated a second time
            with a higher limit (the second stage of the paper, without labels). ``len(prompts) * max_branches`` is the
            paper's. Default: None, no second stage.
        **options: options of :func:`textguide.generate`, such as ``max_new_tokens``, ``seed`` or ``temperature``.

    Returns:
        The texts of each prompt, and the text that each one forked from.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> out = textguide.eager(model, tokenizer, "The dragon", max_new_tokens=32, temperature=0.6)  # doctest: +SKIP
        >>> out.texts[0]  # doctest: +SKIP
    """
    if not hasattr(model, "textguide_generate"):
        check_model_and_tokenizer(model, tokenizer)
    guidance = as_guidance(guidance)
    if budget is None:
        return _branched(model, tokenizer, prompts, guidance, EAGer(entropy_threshold, max_branches), options)
    rows = branch_inputs.canonical_prompts(prompts, options.pop("system", None), tokenizer)
    whole_number("budget", budget, len(rows))
    _check_second_stage(guidance, options)
    first = EAGer(entropy_threshold, min(max_branches, budget // len(rows)))
    out = _branched(model, tokenizer, rows, guidance, first, options)
    for number, limit in _limits_of_second_stage(out, first.max_branches, budget).items():
        more = EAGer(entropy_threshold, limit)
        out = out.replaced(number, _branched(model, tokenizer, [rows[number]], guidance, more, options))
    return out


def _branched(
    model: Any, tokenizer: Any, prompts: Any, guidance: Guidance | None, branches: EAGer, options: Mapping[str, Any]
) -> Branched:
    """Generate with ``branches``, and group the rows that were used by prompt."""
    size = branches.max_branches
    result = generate(model, tokenizer, prompts, [*parts_of(guidance), branches], **options)
    if result.origins is None:  # one branch per prompt is plain decoding
        result.origins = [None] * len(result.texts)
    used = result.finished.tolist() if result.finished is not None else [True] * len(result.texts)
    out = Branched([], [], [], [], 0, result)
    for start in range(0, len(used), size):
        rows = [row for row in range(start, start + size) if used[row]]
        number_of = {row: number for number, row in enumerate(rows)}
        origins: list[tuple[int, int] | None] = []
        for row in rows:
            origin = result.origins[row]
            origins.append(None if origin is None else (number_of[origin[0]], origin[1]))
            out.tokens += len(result.new_tokens[row]) - (0 if origin is None else origin[1])
        out.origins.append(origins)
        out.texts.append(_at(result.texts, rows))
        out.new_tokens.append(_at(result.new_tokens, rows))
        out.log_likelihoods.append(result.log_likelihood[rows].tolist())
    return out


def _check_second_stage(guidance: Guidance | None, options: Mapping[str, Any]) -> None:
    """Refuse what has one value per prompt, because some prompts are generated a second time.

    Raises:
        ValueError: the guidance or the seed has one value per prompt.
    """
    branching = split(guidance).branching
    for branch in branching.branches if branching is not None else ():
        several = branch.prompt is not None and per_row(branch.prompt)
        if several or isinstance(branch.edit, tuple):
            raise ValueError("budget= needs one negative prompt or context for all prompts; pass one, or no budget")
    if isinstance(options.get("seed"), (list, tuple)):
        raise ValueError(f"budget= needs one seed, and seed={options['seed']!r} has one per prompt; pass one number")


def _limits_of_second_stage(out: Branched, limit: int, budget: int) -> dict[int, int]:
    """The prompts that used all of their texts, and how many each gets with its share of the unused ones.

    Shares are equal; what cannot be divided goes to the first prompts.
    """
    used = [len(texts) for texts in out.new_tokens]
    full = [number for number, count in enumerate(used) if count == limit]
    left = budget - sum(used)
    if not full or left < 1:
        return {}
    each, rest = divmod(left, len(full))
    limits = {number: limit + each + (place < rest) for place, number in enumerate(full)}
    return {number: more for number, more in limits.items() if more > limit}


def guided_decoding(guidance: Any, **options: Any) -> GuidedDecoding:
    """Create a ``custom_generate`` callable for transformers' ``generate``.

    ``generate`` prepares inputs, processors and stopping criteria, and textguide's loop runs the branches in the same
    forward passes as the conditional rows.

    Args:
        guidance: a guidance, a list of them, or None, as for :func:`textguide.generate`.
        **options: options of :class:`GuidedDecoding`, such as ``tokenizer`` (needed if the guidance contains text or
            uses a classifier), ``models``, ``streamer``, ``observer`` or ``speculation``. ``captioning`` defaults to
            :class:`textguide.captioning.Captioning`.

    Returns:
        The callable. After a run, its ``effect`` reports what guidance did.

    Raises:
        ValueError: an argument has a value that cannot work. When ``generate`` runs, also if the generation mode does
            not work with guidance (beam search, for example).

    Example:
        >>> decoding = textguide.guided_decoding(CFG(1.5))
        >>> ids = model.generate(**inputs, custom_generate=decoding, max_new_tokens=8)  # doctest: +SKIP
    """
    from .captioning.conditions import Captioning

    if options.get("captioning") is None:
        options["captioning"] = Captioning()
    return GuidedDecoding(guidance, **options)


def _stream(run: Run, batch: Batch) -> Iterator[StreamChunk]:
    texts: list[TextStream] = []
    ids: list[list[int]] = []
    for tokens, wrote in run.steps(batch):
        hidden = () if run.request.include_stop else run.stop
        texts = texts or [TextStream(run.tokenizer, hidden) for _ in tokens]
        ids = ids or [[] for _ in tokens]
        for row, text in enumerate(texts):
            if wrote[row]:
                ids[row].append(int(tokens[row]))
            pieces = text.put(int(tokens[row])) if wrote[row] else text.end()
            yield from (StreamChunk(row, new, token) for token, new in pieces)
    for row, text in enumerate(texts):
        yield from (StreamChunk(row, new, token) for token, new in text.end())
    if run.stop:
        written = [run.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        warn_of_empty_texts(written, Ending(stop=run.stop, include_stop=run.request.include_stop))


def _generate_by_engine(model: Any, *arguments: Any, stop: Any, options: Mapping[str, Any], **others: Any) -> Any:
    """Let an engine generate; it refuses options that it does not support."""
    stop_texts(stop, "stop")
    if others["constraint"] is None:
        del others["constraint"]
    passed = {name: value for name, value in options.items() if value is not None}
    return model.textguide_generate(*arguments, stop=stop, options=passed, **others)


def _are_token_ids(prompts: Any) -> bool:
    """Whether ``prompts`` are one or several rows of token ids, which do not need a tokenizer."""
    if isinstance(prompts, Mapping):
        return "input_ids" in prompts
    if hasattr(prompts, "tolist"):
        return True
    if not isinstance(prompts, (list, tuple)) or not prompts:
        return False
    return all(isinstance(one, int) or _are_token_ids(one) for one in prompts)


def _batches(run: Run, prompts: Any, system: str | None) -> list[Batch]:
    """Convert prompts to the inputs of transformers and of the branches."""
    request = run.request
    tokenizer = run.tokenizer
    canonical = branch_inputs.canonical_prompts(prompts, system, tokenizer)
    rows = [branch_inputs.encode(prompt, tokenizer, f"prompts[{number}]") for number, prompt in enumerate(canonical)]
    branches: list[branch_inputs.Rows] = []
    branching = split(request.guidance).branching
    if branching is not None:
        branches = branch_inputs.branch_rows(
            branching,
            cond=rows,
            tokenizer=tokenizer,
            prompts=canonical,
            empty_source=branch_inputs.empty_source(run.model.config),
        )
    if request.forks:  # a row for every branch; transformers only repeats prompts when it samples
        rows = _repeated(rows, request.particles)
        branches = [_repeated(branch, request.particles) for branch in branches]
    branch_inputs.check_rows(run.model, rows, "prompts", request.max_new_tokens, plain=branching is None)
    if branching is not None:
        branch_inputs.check_branches(run.model, branching, branches, request.max_new_tokens, request.models)
        branch_inputs.warn_of_same(branching, rows, branches)
    seeds = request.seed if isinstance(request.seed, tuple) else None
    if seeds is not None and len(seeds) != len(rows):
        raise ValueError(f"seed= has {len(seeds)} seeds and there are {len(rows)} prompts; pass one, or one per prompt")
    size = request.rows_per_batch(len(rows))
    batches = []
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        branch_prompts = [branch[part] for branch in branches] if branching is not None else None
        batch_seeds = None if seeds is None else seeds[part]
        batches.append(Batch(_inputs(run, rows[part]), branch_prompts, seeds=batch_seeds))
    return batches


def _repeated(rows: branch_inputs.Rows, times: int) -> branch_inputs.Rows:
    return [row for row in rows for _ in range(times)]


def _inputs(run: Run, rows: branch_inputs.Rows) -> dict[str, Tensor]:
    device = adapter(run.model).device
    if run.model.config.is_encoder_decoder:
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [run.pad] * (length - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
        return {"input_ids": ids, "attention_mask": mask}
    ids, padding = pad_left(rows, device, run.pad)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if padding is None else padding}


def _at(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[row] for row in rows]
