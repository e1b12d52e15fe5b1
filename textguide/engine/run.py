"""A run of many rows in batches: what was asked for, and the way through transformers and our loop to its result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..constraints import Vocabulary
from ..forward.model_adapter import adapter
from ..guidance import Guidance, as_guidance, split
from ..smc.lessons import lessons
from ..smc.starting import warn_of_deaths
from ..step.effect import join, warn_if_none
from ..support.checks import check_model_and_tokenizer
from .branch_inputs import Rows
from .custom_generate import BranchReader, GuidedDecoding
from .loop import Observer
from .options import SAMPLING_OPTIONS, check_values, with_config
from .results import Decoded, Ending, GenerateResult, collect
from .speculation import Speculation, as_speculation


@dataclass(frozen=True)
class Request:
    """What a run is asked for, whatever it reads; arguments as for :func:`textguide.generate`.

    Args:
        seed: one for the run, or a tuple with one a row.
        options: of transformers' ``GenerationConfig``.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """

    guidance: Guidance | None
    max_new_tokens: int
    seed: int | tuple[int, ...] | None = None
    batch_size: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = True
    do_sample: bool | None = None
    models: Mapping[str, Any] | None = None
    streamer: Any = None
    observer: Observer | None = None
    stopping_criteria: Any = None
    vocabulary: Vocabulary | None = None
    speculation: Speculation | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        whole["num_return_sequences"] = self.options.get("num_return_sequences")
        for name, value in whole.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of 1 or more")
        kinds: dict[str, tuple[Any, str]] = {
            "seed": (_is_seed, "a whole number, or a list with one a row"),
            "do_sample": (lambda x: isinstance(x, bool), "True or False"),
            "include_stop": (lambda x: isinstance(x, bool), "True or False"),
            "models": (lambda x: isinstance(x, Mapping), "a mapping from names to models"),
            "streamer": (lambda x: hasattr(x, "put") and hasattr(x, "end"), "a streamer of transformers"),
            "observer": (callable, "a function of a StepView"),
            "stopping_criteria": (lambda x: isinstance(x, Iterable), "a list of transformers' stopping criteria"),
        }
        for name, (holds, meaning) in kinds.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value!r} must be {meaning}")
        check_values(self.options)
        if isinstance(self.seed, tuple):
            sampling = split(self.guidance).sampling
            if sampling is not None:
                raise ValueError(
                    f"seed= with one per row does not work with {sampling}, whose rows share their random numbers; "
                    "pass one seed, or one prompt at a time"
                )
            if (self.options.get("num_return_sequences") or 1) > 1:
                raise ValueError("seed= with one a row does not go with num_return_sequences; repeat the prompts")

    @classmethod
    def of(
        cls,
        guidance: Any,
        max_new_tokens: int | None,
        stop: Any,
        do_sample: bool | None,
        speculation: Any,
        options: Mapping[str, Any],
        longest: int,
        **others: Any,
    ) -> Request:
        """The request of a call: what is given by itself counts before what ``generation_config=`` says.

        Args:
            options: of the call, ``generation_config`` among them.
            longest: new tokens where nothing says how many.
            others: further fields, as they are.
        """
        merged = with_config(options, max_new_tokens)
        new = merged.pop("max_new_tokens", None)
        samples = merged.pop("do_sample", None)
        others["seed"] = as_seeds(others.get("seed"))
        return cls(
            guidance=as_guidance(guidance),
            max_new_tokens=max_new_tokens if max_new_tokens is not None else longest if new is None else new,
            stop=stop_texts(stop, "stop") + stop_texts(merged.pop("stop_strings", None), "stop_strings"),
            do_sample=samples if do_sample is None else do_sample,
            speculation=as_speculation(speculation),
            options=merged,
            **others,
        )

    @property
    def particles(self) -> int:
        """Rows that one text needs."""
        return split(self.guidance).particles

    @property
    def forks(self) -> bool:
        """Whether texts fork, into rows that have to be there from the start."""
        return split(self.guidance).forks

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        if self.do_sample is not None:
            return self.do_sample
        given = any(self.options.get(name) is not None for name in SAMPLING_OPTIONS)
        return given or split(self.guidance).weighs

    def size(self, rows: int) -> int:
        """Rows of one batch, of ``rows`` in all."""
        return rows if self.batch_size is None else self.batch_size * (self.particles if self.forks else 1)


@dataclass(frozen=True)
class Batch:
    """The rows that are decoded at once.

    Args:
        inputs: what ``model.generate`` reads.
        branch_prompts: token ids of every branch and row; None: what the guidance names.
        captioning: brings the branches where the rows have images.
        seeds: of every row, where each has its own.
    """

    inputs: Mapping[str, Any]
    branch_prompts: list[Rows] | None = None
    captioning: BranchReader | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Run:
    """A request on a model.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        request: what is asked for.
        ends: tokens that end a text.
        pads: whether ``generate`` is told a token to pad with where the model names none.
    """

    model: Any
    tokenizer: Any
    request: Request
    ends: frozenset[int]
    pads: bool = True

    @classmethod
    def of(cls, model: Any, tokenizer: Any, request: Request) -> Run:
        """The run of ``request`` on ``model``, whose generation configuration says where a text ends.

        Raises:
            ValueError: ``model`` is no model, or ``tokenizer`` no tokenizer.
        """
        check_model_and_tokenizer(model, tokenizer)
        ends = request.options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
        return cls(model, tokenizer, request, end_tokens(ends))

    @property
    def pad(self) -> int:
        """Fills rows that end before others."""
        pad = self.request.options.get("pad_token_id", getattr(self.model.generation_config, "pad_token_id", None))
        return pad if pad is not None else min(self.ends, default=0)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a row: what was asked for, else what the model's own generation configuration says."""
        own = getattr(self.model.generation_config, "stop_strings", None)
        return self.request.stop or (stop_texts(own, "stop_strings") if own else ())

    @property
    def ending(self) -> Ending:
        """What ends a row."""
        return Ending(self.ends, self.stop, self.request.max_new_tokens, self.request.include_stop)

    def result(self, batches: Iterable[Batch]) -> GenerateResult:
        """Decode all batches."""
        request = self.request
        decoding = self.decoding()
        done: list[Decoded] = []
        with lessons():
            for batch in batches:
                decoding = self._with(decoding, batch)
                self._call(decoding, batch)
                assert decoding.last is not None
                done.append(decoding.last)
        effect = join([decoded.effect for decoded in done])
        warn_if_none(effect, request.guidance)
        warn_of_deaths([decoded.population for decoded in done if decoded.population is not None])
        return collect(done, effect, self.tokenizer, self.pad, self.ending)

    def steps(self, batch: Batch) -> Iterator[tuple[list[int], list[bool]]]:
        """The tokens of every step of one batch, and which rows wrote them; the others had ended."""
        decoding = self._with(self.decoding(), batch)
        for step in self._call(decoding.steps, batch):
            if isinstance(step, Decoded):
                warn_if_none(step.effect, decoding.guidance)
            else:
                tokens, wrote = step
                yield tokens.tolist(), wrote.tolist()

    def decoding(self) -> GuidedDecoding:
        """The request as our loop takes it."""
        request = self.request
        return GuidedDecoding(
            request.guidance,
            tokenizer=self.tokenizer,
            models=request.models,
            streamer=request.streamer,
            generator=self._generator(request.seed) if not isinstance(request.seed, tuple) else None,
            observer=request.observer,
            log_probs=True,
            warn=False,
            vocabulary=request.vocabulary,
            speculation=request.speculation,
        )

    def _with(self, decoding: GuidedDecoding, batch: Batch) -> GuidedDecoding:
        own: dict[str, Any] = {}
        if isinstance(self.request.seed, tuple):
            if batch.seeds is None:
                raise ValueError("seed= with one a row does not go with images; give one seed")
            own["generator"] = tuple(self._generator(seed) for seed in batch.seeds)
        return replace(decoding, branch_prompts=batch.branch_prompts, captioning=batch.captioning, **own)

    def _generator(self, seed: Any) -> Any:
        return None if seed is None else torch.Generator(adapter(self.model).device).manual_seed(seed)

    def _call(self, custom_generate: Any, batch: Batch) -> Any:
        """Let transformers prepare the batch and hand it to ``custom_generate``."""
        from transformers import StoppingCriteriaList, StopStringCriteria

        request = self.request
        criteria = StoppingCriteriaList(request.stopping_criteria or [])
        options: dict[str, Any] = dict(request.options)
        if getattr(self.model.generation_config, "stop_strings", None):  # ours are among the criteria
            options["stop_strings"] = None
        if self.stop:
            criteria.append(StopStringCriteria(self.tokenizer, list(self.stop)))
        if request.particles > 1 and not request.forks:  # every particle is a row
            options["num_return_sequences"] = options.get("num_return_sequences", 1) * request.particles
        if split(request.guidance).weighs:
            # transformers cuts distributions off at 50 tokens unless told otherwise, and a constraint may need any.
            options = {"top_k": 0, "top_p": 1.0, **options}
        if self.pads and getattr(self.model.generation_config, "pad_token_id", None) is None:
            options["pad_token_id"] = self.pad
        return self.model.generate(
            **batch.inputs,
            max_new_tokens=request.max_new_tokens,
            do_sample=request.samples,
            custom_generate=custom_generate,
            stopping_criteria=criteria,
            **options,
        )


def end_tokens(ends: Any) -> frozenset[int]:
    """The ``eos_token_id`` of a configuration as a set."""
    return frozenset(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])


def stop_texts(stop: Any, name: str) -> tuple[str, ...]:
    """Texts that end a continuation as a tuple.

    Raises:
        ValueError: one of them is no text, or empty, which would end every continuation at once.
    """
    if stop is None:
        return ()
    texts = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else (stop,)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name}={stop!r} must be a text or a list of texts, none of them empty")
    return texts


def _is_seed(value: Any) -> bool:
    return hasattr(value, "__index__") or (isinstance(value, tuple) and all(hasattr(one, "__index__") for one in value))


def as_seeds(seed: Any) -> Any:
    """``seed`` with a list of seeds as a tuple."""
    return tuple(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else seed
