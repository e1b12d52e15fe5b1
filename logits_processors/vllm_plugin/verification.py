"""Verification of guesses in vLLM's first model runner: logits at several positions of a request, one after the other.

The token of every position is drawn from the guided distribution of that position with the same random numbers as
without guesses. The next position only counts if that token is the one that was guessed. So the same tokens are
written, in fewer steps. (Speculative sampling, Leviathan et al., arXiv 2211.17192, does this for guesses that were not
drawn at random.) vLLM has no hook for it, so two methods of the runner are wrapped. Knows no vLLM but the names of what
it wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .processor_v1 import FirstRunnerProcessor
from .wrapping import wrap_once


def read_guesses(runner: Any) -> None:
    """Let model runners read guesses that are scheduled without vLLM's own speculation.

    Args:
        runner: vLLM's class of model runners.
    """
    wrap_once(runner, "_prepare_inputs", _with_guesses)
    wrap_once(runner, "_sample", _with_verification)


def _with_guesses(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Ask for logits at the guesses too, as vLLM does for its own speculation."""

    def _prepare_inputs(self: Any, scheduled: Any, counts: Any) -> Any:
        prepared = prepare(self, scheduled, counts)
        guesses = scheduled.scheduled_spec_decode_tokens
        if not guesses or prepared[1] is not None:
            return prepared
        drafts = np.array([len(guesses.get(name, ())) for name in self.input_batch.req_ids], dtype=np.int32)
        metadata = self._calc_spec_decode_metadata(drafts, np.cumsum(counts, dtype=np.int32))
        return metadata.logits_indices, metadata, int(drafts.max()) + 1

    return _prepare_inputs


def _with_verification(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Let the guided processor verify the guesses of a step that has some."""

    def _sample(self: Any, logits: Any, metadata: Any) -> Any:
        processors = self.input_batch.logitsprocs.non_argmax_invariant
        guided = next((one for one in processors if isinstance(one, FirstRunnerProcessor)), None)
        if metadata is None or guided is None or self.speculative_config is not None:
            return sample(self, logits, metadata)
        return verified(guided, self.sampler, logits, metadata, self.input_batch.sampling_metadata)

    return _sample


def verified(processor: FirstRunnerProcessor, sampler: Any, logits: Tensor, metadata: Any, sampling: Any) -> Any:
    """The output of vLLM's sampler, with several tokens in the rows of requests whose guesses were right.

    Args:
        processor: of the batch.
        sampler: vLLM's.
        logits: (T, V), for each request those of its newest token and of its guesses.
        metadata: vLLM's ``SpecDecodeMetadata``.
        sampling: vLLM's ``SamplingMetadata``.
    """
    counts: list[int] = metadata.num_draft_tokens
    starts = [0, *accumulate(count + 1 for count in counts)][:-1]
    drafts = metadata.draft_token_ids.tolist()
    firsts = [0, *accumulate(counts)][:-1]
    guesses = [drafts[first : first + count] for first, count in zip(firsts, counts, strict=True)]
    written = processor.verify(logits, starts, guesses, sampler.greedy_sample)
    # The sampler calls the processor for all rows, and those that were verified are done.
    processor.verified = frozenset(written)
    try:
        output = sampler(logits=logits[metadata.bonus_logits_indices], sampling_metadata=sampling)
    finally:
        processor.verified = frozenset()
    first = output.sampled_token_ids
    width = 1 + max(counts)
    tokens = torch.full((len(counts), width), -1, dtype=first.dtype, device=first.device)
    tokens[:, :1] = first
    for row, ids in written.items():
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=first.dtype, device=first.device)
    output.sampled_token_ids = tokens
    if output.logprobs_tensors is not None:
        # A row for each position; the scheduler replaces those of guided requests.
        output.logprobs_tensors = type(output.logprobs_tensors)(
            *(None if part is None else part.repeat_interleave(width, 0) for part in output.logprobs_tensors)
        )
    return output
