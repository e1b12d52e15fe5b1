"""A run of many rows in batches: it passes a request to transformers and our loop, and collects the result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..forward.model_adapter import adapter
from ..guidance import split
from ..step.effect import join, warn_if_none
from ..support.checks import check_model_and_tokenizer
from .branch_inputs import Rows, without_padding
from .caller import GenerateCall
from .custom_generate import BranchReader, GuidedDecoding
from .request import Request, stop_texts
from .results import Decoded, Ending, GenerateResult, collect
from .verification import Verifier


@dataclass(frozen=True)
class Batch:
    """The rows that are decoded together.

    Args:
        inputs: the inputs of ``model.generate``.
        branch_prompts: token ids of every branch and row; None: those that the guidance defines.
        captioning: provides the branches if the rows have images.
        seeds: one seed per row, if each row has its own.
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
        tokenizer: its tokenizer; None: the run reads and returns token ids only.
        request: the arguments of the run.
        ends: tokens that end a text.
        pads: whether to pass a padding token to ``generate`` if the model does not define one.
    """

    model: Any
    tokenizer: Any
    request: Request
    ends: frozenset[int]
    pads: bool = True

    @classmethod
    def of(cls, model: Any, tokenizer: Any, request: Request, needs_tokenizer: bool = True) -> Run:
        """Create a run, with the end tokens of the request or of the model's generation configuration.

        Raises:
            ValueError: ``model`` is not a model, or ``tokenizer`` not a tokenizer.
        """
        check_model_and_tokenizer(model, tokenizer, needs_tokenizer)
        ends = request.options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
        return cls(model, tokenizer, request, end_tokens(ends))

    @property
    def pad(self) -> int:
        """The token that pads rows that end before others."""
        pad = self.request.options.get("pad_token_id", getattr(self.model.generation_config, "pad_token_id", None))
        return pad if pad is not None else min(self.ends, default=0)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a row: those of the request, or else those of the model's generation configuration."""
        if self.request.stop:
            return self.request.stop
        return stop_texts(getattr(self.model.generation_config, "stop_strings", None) or None, "stop_strings")

    @property
    def rows_per_prompt(self) -> int:
        """Rows that continue the same prompt."""
        name = "num_return_sequences"
        texts = self.request.options.get(name) or getattr(self.model.generation_config, name, None) or 1
        return int(texts) * self.request.particles

    def result(self, batches: Iterable[Batch]) -> GenerateResult:
        """Decode all batches."""
        request = self.request
        decoding = self._decoding()
        done: list[Decoded] = []
        with self._lessons():
            for batch in batches:
                decoding = self._for_batch(decoding, batch)
                self._generate(decoding, batch)
                assert decoding.last is not None
                done.append(decoding.last)
        effect = join([decoded.effect for decoded in done])
        if decoding.verifier is not None:
            effect = replace(effect, verification=decoding.verifier.report())
        warn_if_none(effect, request.guidance)
        populations = [decoded.population for decoded in done if decoded.population is not None]
        if populations:
            from ..smc.starting import warn_of_deaths

            warn_of_deaths(populations)
        ending = Ending(self.ends, self.stop, request.max_new_tokens, request.include_stop)
        return collect(done, effect, self.tokenizer, self.pad, ending, self.rows_per_prompt)

    def steps(self, batch: Batch) -> Iterator[tuple[list[int], list[bool]]]:
        """Yield the tokens of every step of one batch, and which rows wrote them; the other rows had ended."""
        decoding = self._for_batch(self._decoding(), batch)

        def loop(
            model: Any,
            input_ids: Tensor,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: Any,
            **model_kwargs: Any,
        ) -> Iterator[Any]:
            call = GenerateCall(streamer=self.request.streamer)
            return decoding.steps(
                model, input_ids, logits_processor, stopping_criteria, generation_config, call, **model_kwargs
            )

        for step in self._generate(loop, batch):
            if isinstance(step, Decoded):
                warn_if_none(step.effect, decoding.guidance)
                if decoding.verifier is not None:
                    decoding.verifier.report()
            else:
                tokens, wrote = step
                yield tokens.tolist(), wrote.tolist()

    def _decoding(self) -> GuidedDecoding:
        """The request in the form that our loop accepts."""
        request = self.request
        one_seed = request.seed if not isinstance(request.seed, tuple) else None
        return GuidedDecoding(
            request.guidance,
            tokenizer=self.tokenizer,
            models=request.models,
            streamer=request.streamer,
            generator=None if one_seed is None else self._generator(one_seed),
            observer=request.observer,
            log_probs=True,
            warn=False,
            vocabulary=request.vocabulary,
            speculation=request.speculation,
            stop=self.stop,
            prefill_memory=request.prefill_memory,
            prefill_progress=request.prefill_progress,
            verifier=Verifier(request.verify, one_seed or 0) if request.verify else None,
        )

    def _for_batch(self, decoding: GuidedDecoding, batch: Batch) -> GuidedDecoding:
        """A copy of ``decoding`` for the rows of one batch."""
        generator = decoding.generator
        if isinstance(self.request.seed, tuple):
            if batch.seeds is None:
                raise ValueError("seed= with one per row does not work with images; pass one seed")
            generator = tuple(self._generator(seed) for seed in batch.seeds)
        if decoding.verifier is not None and self.model.config.is_encoder_decoder and "input_ids" in batch.inputs:
            decoding.verifier.sources = without_padding(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        return replace(decoding, branch_prompts=batch.branch_prompts, captioning=batch.captioning, generator=generator)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(adapter(self.model).device).manual_seed(seed)

    def _lessons(self) -> Any:
        """A context in which samplers learn from texts that failed, if the guidance has such a sampler."""
        if not split(self.request.guidance).learns:
            return contextlib.nullcontext()
        from ..smc.lessons import lessons

        return lessons()

    def _generate(self, custom_generate: Any, batch: Batch) -> Any:
        """Let transformers prepare the batch and call ``custom_generate``."""
        request = self.request
        options: dict[str, Any] = dict(request.options)
        if getattr(self.model.generation_config, "stop_strings", None):  # ours are among the criteria
            options["stop_strings"] = None
        if request.particles > 1 and not request.forks:  # every particle is a row
            options["num_return_sequences"] = options.get("num_return_sequences", 1) * request.particles
        if split(request.guidance).weighs:
            # By default transformers cuts distributions off at 50 tokens, and a constraint may need any token.
            options = {"top_k": 0, "top_p": 1.0, **options}
        if self.pads and getattr(self.model.generation_config, "pad_token_id", None) is None:
            options["pad_token_id"] = self.pad
        if request.stopping_criteria is not None:
            from transformers import StoppingCriteriaList

            options["stopping_criteria"] = StoppingCriteriaList(request.stopping_criteria)
        return self.model.generate(
            **batch.inputs,
            max_new_tokens=request.max_new_tokens,
            do_sample=request.samples,
            custom_generate=custom_generate,
            **options,
        )


def end_tokens(ends: Any) -> frozenset[int]:
    """The ``eos_token_id`` of a configuration as a set."""
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, (list, tuple)) else [ends])
