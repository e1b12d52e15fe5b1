"""``textguide.generate``, ``textguide.stream`` and ``textguide.eager``: from prompts to text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .constraints import Vocabulary
from .engine import branch_inputs
from .engine.custom_generate import GuidedDecoding, empty_source
from .engine.loop import Observer
from .engine.results import GenerateResult
from .engine.run import Batch, Request, Run, stop_texts
from .engine.text_stream import TextStream
from .forward.model_adapter import adapter
from .forward.prefill import pad_left
from .guidance import EAGer, as_guidance, parts_of, split
from .support.showing import Block, Line, Shown, figure, table

LONGEST = 128
"""New tokens where nothing says how many."""
OF_IMAGES = ("unconditional", "language_model")
"""Options of :func:`textguide.caption` that :func:`generate` takes with images."""


class StreamChunk(str):
    """A piece of text as it is written: a ``str``, so that ``"".join(stream(…))`` is the text of one prompt.

    Args:
        row: the prompt it continues.
        text: the new text; empty where a later token completes the character.
        token: the token behind it.
    """

    __slots__ = ("row", "token")
    row: int
    token: int

    def __new__(cls, row: int, text: str, token: int) -> StreamChunk:
        chunk = super().__new__(cls, text)
        chunk.row, chunk.token = row, token
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
    **options: Any,
) -> GenerateResult:
    """Continue prompts under guidance, one forward pass a step for all rows of all branches.

    Args:
        model: a transformers model, or an engine of :func:`textguide.vllm_engine`.
        tokenizer: its tokenizer; None for the engine's own.
        prompts: a text, token ids or a chat (a list of ``{"role", "content"}``), or a list with one of these per row.
        guidance: such as ``CFG(scale=1.5)``, its text ``"cfg:scale=1.5"``, or a list of guidances that act together;
            None decodes plainly.
        max_new_tokens: longest continuation; default: that of ``generation_config``, else 128.
        system: a system prompt; texts become chats.
        seed: makes sampling reproducible without touching torch's global generator, and draws what
            ``torch.manual_seed(seed)`` would; None uses the global one. Rows draw from it in turn at every step, so
            that another ``batch_size`` or other prompts beside a row give it other texts. A list has a seed for each
            row, which then draws what it draws alone.
        batch_size: rows decoded at once; None: all.
        stop: text or texts that end a continuation; they stay in it, with the rest of the token that completed them.
        include_stop: False leaves the text of ``stop`` out of ``texts``; the tokens of it are counted either way.
        do_sample: draw from the guided distribution in place of taking the most likely token; default: what
            ``generation_config`` says, else whether a sampling option such as ``temperature`` or ``top_p`` is given.
        models: further models by the name that branches use.
        streamer: a transformers streamer.
        observer: called with a :class:`textguide.engine.loop.StepView` after every step.
        stopping_criteria: transformers stopping criteria beside those of ``options``.
        vocabulary: what each token adds to a text, for constraints with a tokenizer that textguide cannot read.
        speculation: guess tokens and read the guesses in the same passes: ``prompt-lookup``, ``recycling``, ``both``,
            or a :class:`textguide.Speculation`. What is written stays the same.
        images: an image a prompt, for models that see; ``tokenizer`` is then their processor, and the options of
            :func:`textguide.caption` apply.
        **options: anything of transformers' ``GenerationConfig``: ``temperature``, ``top_p``, ``repetition_penalty``,
            ``num_return_sequences``…; or ``generation_config=`` with a whole one. What neither gives is taken from
            the model's own ``generation_config``, apart from ``do_sample`` and the length.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> model, tokenizer = textguide.load("smollm2")
        >>> out = textguide.generate(model, tokenizer, ["The dragon"], guidance=CFG(scale=1.5), max_new_tokens=8)
        >>> out.texts[0]  # doctest: +SKIP
    """
    pictured = {name: options.pop(name) for name in OF_IMAGES if images is not None and name in options}
    given = {"batch_size": batch_size, "models": models, "streamer": streamer, "observer": observer}
    given |= {"stopping_criteria": stopping_criteria, "vocabulary": vocabulary}
    if not isinstance(include_stop, bool):
        raise ValueError(f"include_stop={include_stop!r} must be True or False")
    served = getattr(model, "textguide_generate", None)
    if served is not None:
        given |= {"speculation": speculation, "images": images, "include_stop": None if include_stop else False}
        stop_texts(stop, "stop")
        return served(
            tokenizer,
            prompts,
            guidance,
            max_new_tokens=LONGEST if max_new_tokens is None else max_new_tokens,
            system=system,
            seed=seed,
            stop=stop,
            do_sample=do_sample,
            options={**options, **pictured, **{name: value for name, value in given.items() if value is not None}},
        )
    request = Request.of(
        guidance, max_new_tokens, stop, do_sample, speculation, options, longest=LONGEST, seed=seed,
        include_stop=include_stop, **given,
    )  # fmt: skip
    if images is not None:
        from .captioning.generation import answer

        if system is not None:
            raise ValueError(f"system={system!r} does not work with images; write it into the prompts")
        return answer(model, tokenizer, images, prompts, request, **pictured)
    run = Run.of(model, tokenizer, request)
    return run.result(_batches(run, prompts, system))


def stream(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int | None = None,
    system: str | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    include_stop: bool = True,
    do_sample: bool | None = None,
    models: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    stopping_criteria: Any = None,
    vocabulary: Vocabulary | None = None,
    speculation: Any = None,
    **options: Any,
) -> Iterator[StreamChunk]:
    """Like :func:`generate`, but yields text as it is written, token by token and row by row.

    A chunk is a ``str`` that also knows its ``row`` and its ``token``: ``"".join(…)`` gives the text of one prompt, and
    chunks of several prompts take turns.

    A token whose bytes do not make a character yet waits for the one that completes it, or for the end of its row.

    The run stops when the iterator is closed. Arguments as for :func:`generate`.
    """
    request = Request.of(
        guidance, max_new_tokens, stop, do_sample, speculation, options, longest=LONGEST, seed=seed, models=models,
        include_stop=include_stop, observer=observer, stopping_criteria=stopping_criteria, vocabulary=vocabulary,
    )  # fmt: skip
    sampling = split(request.guidance).sampling
    if sampling is not None and sampling.particles > 1:
        what = sampling.rows_field
        raise ValueError(f"{what}={sampling.particles} may still change what is written; stream with {what}=1")
    if split(request.guidance).restarts:
        raise ValueError(
            "sampler='cars' begins texts again, so that none can be streamed; use sampler='awrs' or 'asap'"
        )
    run = Run.of(model, tokenizer, request)
    (batch,) = _batches(run, prompts, system)
    return _stream(run, batch)


@dataclass
class Branched(Shown):
    """What :func:`eager` returns; lists over prompts.

    Args:
        texts: the texts of each prompt, the first one never forked from another.
        new_tokens: their ids.
        log_likelihoods: guided log-probability of each.
        origins: for each text None, or the text of the same prompt that it forked from and how many tokens they share.
        tokens: tokens that were computed, shared ones once, over all prompts.
        result: everything, with a row for every branch that might have been used.
    """

    texts: list[list[str]]
    new_tokens: list[list[list[int]]]
    log_likelihoods: list[list[float]]
    origins: list[list[tuple[int, int] | None]]
    tokens: int
    result: GenerateResult

    def _shown(self) -> tuple[str, Sequence[Block]]:
        rows = [
            [
                f"{prompt}.{place + 1}",
                text,
                figure(likelihood, 2),
                "" if origin is None else f"{prompt}.{origin[0] + 1} behind {origin[1]} tokens",
            ]
            for prompt, group in enumerate(zip(self.texts, self.log_likelihoods, self.origins, strict=True), 1)
            for place, (text, likelihood, origin) in enumerate(zip(*group, strict=True))
        ]
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
    **options: Any,
) -> Branched:
    """Continue each prompt as one text that forks where the guided distribution has much entropy; see
    :class:`textguide.EAGer`.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompts: as for :func:`textguide.generate`.
        guidance: a guidance or a list of them, without a constraint.
        entropy_threshold: nats above which a text forks.
        max_branches: most texts a prompt.
        **options: of :func:`textguide.generate`: ``max_new_tokens``, ``seed``, ``temperature``…

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> out = textguide.eager(model, tokenizer, "The dragon", max_new_tokens=32, temperature=0.6)  # doctest: +SKIP
        >>> out.texts[0]  # doctest: +SKIP
    """
    given = as_guidance(guidance)
    branches = EAGer(entropy_threshold, max_branches)
    result = generate(model, tokenizer, prompts, [*parts_of(given), branches], **options)
    if result.origins is None:  # one branch a prompt is plain decoding
        result.origins = [None] * len(result.texts)
    used = result.finished.tolist() if result.finished is not None else [True] * len(result.texts)
    out = Branched([], [], [], [], 0, result)
    for start in range(0, len(used), max_branches):
        rows = [row for row in range(start, start + max_branches) if used[row]]
        place = {row: number for number, row in enumerate(rows)}
        origins: list[tuple[int, int] | None] = []
        for row in rows:
            origin = result.origins[row]
            origins.append(None if origin is None else (place[origin[0]], origin[1]))
            out.tokens += len(result.new_tokens[row]) - (0 if origin is None else origin[1])
        out.origins.append(origins)
        out.texts.append(_at(result.texts, rows))
        out.new_tokens.append(_at(result.new_tokens, rows))
        out.log_likelihoods.append(result.log_likelihood[rows].tolist())
    return out


def guided_decoding(guidance: Any, **options: Any) -> GuidedDecoding:
    """A ``custom_generate`` callable for transformers; see :class:`GuidedDecoding` for the options."""
    from .captioning.conditions import Captioning

    if options.get("captioning") is None:
        options["captioning"] = Captioning()
    return GuidedDecoding(guidance, **options)


def _stream(run: Run, batch: Batch) -> Iterator[StreamChunk]:
    texts: list[TextStream] = []
    for tokens, wrote in run.steps(batch):
        hidden = () if run.request.include_stop else run.stop
        texts = texts or [TextStream(run.tokenizer, hidden) for _ in tokens]
        for row, text in enumerate(texts):
            pieces = text.put(int(tokens[row])) if wrote[row] else text.end()
            yield from (StreamChunk(row, new, token) for token, new in pieces)
    for row, text in enumerate(texts):
        yield from (StreamChunk(row, new, token) for token, new in text.end())


def _batches(run: Run, prompts: Any, system: str | None) -> list[Batch]:
    """Prompts as what transformers and the branches read."""
    request, tokenizer, config = run.request, run.tokenizer, run.model.config
    canonical = branch_inputs.canonical_prompts(prompts, system, tokenizer)
    rows = [branch_inputs.encode(prompt, tokenizer, f"prompts[{number}]") for number, prompt in enumerate(canonical)]
    branches: list[branch_inputs.Rows] = []
    branching = split(request.guidance).branching
    if branching is not None:
        empty = empty_source(config) if config.is_encoder_decoder else None
        branches = branch_inputs.branch_rows(
            branching, cond=rows, tokenizer=tokenizer, prompts=canonical, empty_source=empty
        )
    if request.forks:  # a row for every branch, which transformers makes for samples alone
        rows, *branches = [[row for row in one for _ in range(request.particles)] for one in (rows, *branches)]
    branch_inputs.check_rows(run.model, rows, "prompts", request.max_new_tokens)
    if branching is not None:
        branch_inputs.check_branches(run.model, branching, branches, request.max_new_tokens, request.models)
        branch_inputs.warn_of_same(branching, rows, branches)
    seeds = request.seed if isinstance(request.seed, tuple) else None
    if seeds is not None and len(seeds) != len(rows):
        raise ValueError(f"seed= has {len(seeds)} seeds and there are {len(rows)} prompts; give one, or one for each")
    batches = []
    for start in range(0, len(rows), request.size(len(rows))):
        part = slice(start, start + request.size(len(rows)))
        own = [branch[part] for branch in branches] if branching is not None else None
        batches.append(Batch(_inputs(run, rows[part]), own, seeds=None if seeds is None else seeds[part]))
    return batches


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
