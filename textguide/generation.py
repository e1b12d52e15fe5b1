"""``textguide.generate`` and ``textguide.stream``: from prompts to text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .constraints import Vocabulary
from .engine import branch_inputs
from .engine.custom_generate import GuidedDecoding, empty_source
from .engine.effect import Effect, join, warn_if_none
from .engine.loop import Decoded, Observer
from .engine.results import GenerateResult, constraint_fields
from .engine.speculation import as_speculation
from .engine.speculation.value import join as join_speculation
from .forward.row_batch import pad_left
from .guidance import EAGer, as_guidance, split
from .smc.starting import warn_of_deaths, weighs

SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class StreamChunk:
    """A piece of text as it is written.

    Args:
        row: the prompt it continues.
        text: the new text; may be empty while a character is incomplete.
        token: the token behind it.
    """

    row: int
    text: str
    token: int


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int = 128,
    system: str | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    stop: str | Sequence[str] | None = None,
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
        guidance: such as ``CFG(scale=1.5)``, or a list of guidances that act together; None decodes plainly.
        max_new_tokens: longest continuation.
        system: a system prompt; texts become chats.
        seed: makes sampling reproducible without touching torch's global generator; None uses that one.
        batch_size: rows decoded at once; None: all.
        stop: text or texts that end a continuation.
        do_sample: draw from the law in place of taking the most likely token; default: whether a sampling option such
            as ``temperature`` or ``top_p`` is given.
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
            ``num_return_sequences``…

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> model, tokenizer = textguide.load("smollm2")
        >>> out = textguide.generate(model, tokenizer, ["The dragon"], guidance=CFG(scale=1.5), max_new_tokens=8)
        >>> out.texts[0]  # doctest: +SKIP
    """
    served = getattr(model, "textguide_generate", None)
    if served is not None:
        given = {"batch_size": batch_size, "models": models, "streamer": streamer, "observer": observer}
        given |= {"stopping_criteria": stopping_criteria, "vocabulary": vocabulary, "speculation": speculation}
        given |= {"images": images}
        return served(
            tokenizer,
            prompts,
            guidance,
            max_new_tokens=max_new_tokens,
            system=system,
            seed=seed,
            stop=stop,
            do_sample=do_sample,
            options={**options, **{name: value for name, value in given.items() if value is not None}},
        )
    if images is not None:
        from .captioning.generation import caption

        if system is not None or stop is not None:
            raise ValueError("system= and stop= do not work with images; write them into the prompts")
        shared = {"models": models, "streamer": streamer, "observer": observer, "vocabulary": vocabulary}
        return caption(
            model, tokenizer, images, guidance, prompts=prompts, max_new_tokens=max_new_tokens, seed=seed,
            batch_size=batch_size, do_sample=do_sample, stopping_criteria=stopping_criteria, **shared, **options,
        )  # fmt: skip
    run = _Run(model, tokenizer, prompts, guidance, max_new_tokens, system, seed, stop, do_sample, options)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    size = len(run.ids) if batch_size is None else batch_size * (run.particles if run.forks else 1)
    speculation = as_speculation(speculation)
    done, effects, starts = [], [], []
    for start in range(0, len(run.ids), size):
        rows = slice(start, start + size)
        decoding = run.decoding(
            rows, models=models, streamer=streamer, observer=observer, vocabulary=vocabulary, speculation=speculation
        )
        run.call(decoding, rows, stopping_criteria)
        assert decoding.last is not None
        done.append(decoding.last)
        effects.append(decoding.last.effect)
        starts.append(decoding.last.sequences.shape[1] - decoding.last.log_probs.shape[1])  # type: ignore[union-attr]
    effect = join(effects)
    warn_if_none(effect, run.guidance)
    warn_of_deaths([decoded.constraint for decoded in done if decoded.constraint is not None])
    return run.result(done, starts, effect)


def stream(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int = 128,
    system: str | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    do_sample: bool | None = None,
    models: Mapping[str, Any] | None = None,
    speculation: Any = None,
    **options: Any,
) -> Iterator[StreamChunk]:
    """Like :func:`generate`, but yields text as it is written, token by token and row by row.

    The run stops when the iterator is closed. Arguments as for :func:`generate`.
    """
    run = _Run(model, tokenizer, prompts, guidance, max_new_tokens, system, seed, stop, do_sample, options)
    if run.particles > 1:
        what = "max_branches" if run.forks else "particles"
        raise ValueError(f"{what}={run.particles} may still change what is written; stream with {what}=1")
    return _stream(run, models=models, speculation=speculation)


def _stream(run: _Run, **settings: Any) -> Iterator[StreamChunk]:
    decoding = run.decoding(slice(None), **settings)
    texts: list[_TextStream] = []
    for step in run.call(decoding.steps, slice(None)):
        if isinstance(step, Decoded):
            warn_if_none(step.effect, decoding.guidance)
            return
        tokens = step.tolist()
        texts = texts or [_TextStream(run.tokenizer, run.end_tokens) for _ in tokens]
        for row, (text, token) in enumerate(zip(texts, tokens, strict=True)):
            if not text.ended:
                yield StreamChunk(row, text.put(token), token)


class _TextStream:
    """Decodes a growing list of tokens; holds back bytes that do not make a character yet."""

    def __init__(self, tokenizer: Any, end_tokens: set[int]) -> None:
        self.tokenizer, self.end_tokens = tokenizer, end_tokens
        self.tokens: list[int] = []
        self.start = 0
        self.written = ""
        self.ended = False

    def put(self, token: int) -> str:
        self.ended = token in self.end_tokens
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens[self.start :], skip_special_tokens=True)
        if text.endswith("�") and not self.ended:
            return ""
        new = text[len(self.written) :]
        self.written = text
        # Decode from the last line on, so that a long text costs no more a token than a short one.
        if text.endswith("\n"):
            self.start, self.written = len(self.tokens), ""
        return new


class _Run:
    """One call of :func:`generate` or :func:`stream`: checked arguments, encoded prompts, and how to decode them."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Any,
        guidance: Any,
        max_new_tokens: int,
        system: str | None,
        seed: int | None,
        stop: str | Sequence[str] | None,
        do_sample: bool | None,
        options: dict[str, Any],
    ) -> None:
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r} must be a whole number of 1 or more")
        self.guidance = as_guidance(guidance)
        constraint = split(self.guidance).constraint
        draws = weighs(constraint)
        self.particles: int = getattr(constraint, "particles", 1)
        self.forks = isinstance(constraint, EAGer)
        if self.particles > 1 and not self.forks:
            # Every particle is a row.
            options = {**options, "num_return_sequences": options.get("num_return_sequences", 1) * self.particles}
        if draws:
            # transformers cuts laws off at 50 tokens unless told otherwise, and a form may need any of them.
            options = {"top_k": 0, "top_p": 1.0, **options}
        if do_sample is None:
            do_sample = draws or any(options.get(name) is not None for name in SAMPLING_OPTIONS)
        check_sampling(options)
        for name in ("custom_generate", "logits_to_keep", "max_length"):
            if name in options:
                raise ValueError(f"{name}= cannot be given to textguide.generate; use model.generate for it")
        self.model, self.tokenizer, self.options = model, tokenizer, {**options, "do_sample": do_sample}
        self.max_new_tokens = max_new_tokens
        self.device = model.device
        self.canonical = branch_inputs.canonical_prompts(prompts, system, tokenizer)
        self.ids = [
            branch_inputs.encode(prompt, tokenizer, f"prompts[{number}]")
            for number, prompt in enumerate(self.canonical)
        ]
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.branch_rows: list[branch_inputs.Rows] | None = None
        branching = split(self.guidance).branching
        if branching is not None:
            empty = empty_source(model.config) if self.is_encoder_decoder else None
            self.branch_rows = branch_inputs.branch_rows(
                branching, cond=self.ids, tokenizer=tokenizer, prompts=self.canonical, empty_source=empty
            )
        if self.forks:  # a row for every branch, which transformers makes for samples alone
            self.ids = [row for row in self.ids for _ in range(self.particles)]
            chosen = self.branch_rows or []
            self.branch_rows = [[row for row in rows for _ in range(self.particles)] for rows in chosen] or None
        self._check_ids()
        self.stop = [stop] if isinstance(stop, str) else list(stop or [])
        self.generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        ends = self.options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
        self.end_tokens = set(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])

    def decoding(self, rows: slice, **options: Any) -> GuidedDecoding:
        chosen = None if self.branch_rows is None else [branch[rows] for branch in self.branch_rows]
        return GuidedDecoding(
            self.guidance,
            tokenizer=self.tokenizer,
            generator=self.generator,
            log_probs=True,
            warn=False,
            branch_prompts=chosen,
            **options,
        )

    def call(self, custom_generate: Any, rows: slice, stopping_criteria: Any = None) -> Any:
        """Let transformers prepare the run and hand it to ``custom_generate``."""
        from transformers import StoppingCriteriaList, StopStringCriteria

        criteria = StoppingCriteriaList(stopping_criteria or [])
        if self.stop:
            criteria.append(StopStringCriteria(self.tokenizer, self.stop))
        inputs = self._inputs(self.ids[rows])
        options = dict(self.options)
        if options.get("pad_token_id") is None and getattr(self.model.generation_config, "pad_token_id", None) is None:
            # Rows that end before others are filled with it; what it is does not matter.
            options["pad_token_id"] = min(self.end_tokens, default=0)
        return self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            custom_generate=custom_generate,
            stopping_criteria=criteria,
            **options,
        )

    def result(self, done: list[Decoded], starts: list[int], effect: Effect) -> GenerateResult:
        return collect(done, starts, effect, self.tokenizer, self.end_tokens, self._pad())

    def _inputs(self, rows: branch_inputs.Rows) -> dict[str, Tensor]:
        if self.is_encoder_decoder:
            length = max(len(row) for row in rows)
            pad = self._pad()
            ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self.device)
            mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.device)
            return {"input_ids": ids, "attention_mask": mask}
        ids, padding = pad_left(rows, self.device, self._pad())
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if padding is None else padding}

    def _pad(self) -> int:
        pad = self.options.get("pad_token_id", getattr(self.model.generation_config, "pad_token_id", None))
        return pad if pad is not None else min(self.end_tokens, default=0)

    def _check_ids(self) -> None:
        config = self.model.config.get_text_config(decoder=True)
        size = getattr(config, "vocab_size", None)
        limit = getattr(config, "max_position_embeddings", None)
        room = 0 if self.is_encoder_decoder else self.max_new_tokens
        named = [("prompts", self.ids)] + [("negative_prompt", rows) for rows in self.branch_rows or []]
        for name, rows in named:
            for number, row in enumerate(rows):
                if size is not None and not all(0 <= token < size for token in row):
                    wrong = next(token for token in row if not 0 <= token < size)
                    raise ValueError(f"{name}[{number}] has token id {wrong}; the vocabulary has {size} tokens")
                if limit is not None and len(row) + room > limit:
                    raise ValueError(
                        f"{name}[{number}] has {len(row)} tokens and max_new_tokens={self.max_new_tokens}, but the "
                        f"model has {limit} positions; shorten one of them"
                    )


def collect(
    done: Sequence[Decoded], starts: Sequence[int], effect: Effect, tokenizer: Any, ends: Set[int], pad: int
) -> GenerateResult:
    """The batches of one run as one result.

    Args:
        starts: where the new tokens of each batch begin.
        ends: tokens that end a text.
        pad: fills rows up.
    """
    new = max(run.log_probs.shape[1] for run in done)  # type: ignore[union-attr]
    prompt = max(starts)
    sequences, log_probs, tokens = [], [], []
    for run, start in zip(done, starts, strict=True):
        assert run.log_probs is not None
        missing = new - run.log_probs.shape[1]
        sequences.append(F.pad(run.sequences, (prompt - start, missing), value=pad))
        log_probs.append(F.pad(run.log_probs, (0, missing)))
        written = run.sequences[:, start:].tolist()
        if run.constraint is None:
            tokens += [_trim(row, ends) for row in written]
        else:
            tokens += [row[:length] for row, length in zip(written, run.constraint.lengths, strict=True)]
    log_prob = torch.cat(log_probs)
    outcomes = [run.constraint for run in done if run.constraint is not None]
    reports = [run.speculation for run in done if run.speculation is not None]
    return GenerateResult(
        texts=[tokenizer.decode(row, skip_special_tokens=True) for row in tokens],
        sequences=torch.cat(sequences),
        new_tokens=tokens,
        log_likelihood=log_prob.sum(-1),
        log_probs=log_prob,
        effect=effect,
        speculation=join_speculation(reports) if reports else None,
        **(constraint_fields(outcomes) if outcomes else {}),
    )


def _trim(row: list[int], ends: Set[int]) -> list[int]:
    for i, token in enumerate(row):
        if token in ends:
            return row[: i + 1]
    return row


def check_sampling(options: Mapping[str, Any]) -> None:
    """Refuse values of sampling options that transformers would ignore or fail on late."""
    bounds: dict[str, tuple[Any, str]] = {
        "temperature": (lambda x: x > 0, "above 0; leave it out for greedy decoding"),
        "top_p": (lambda x: 0 < x <= 1, "in (0, 1]"),
        "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
        "top_k": (lambda x: x >= 0 and x == int(x), "a whole number of 0 or more; 0 keeps every token"),
        "repetition_penalty": (lambda x: x > 0, "above 0; 1 changes nothing"),
    }
    for name, (holds, meaning) in bounds.items():
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value)):
            raise ValueError(f"{name}={value!r} must be {meaning}")
