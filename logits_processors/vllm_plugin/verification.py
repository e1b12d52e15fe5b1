"""Guesses in vLLM's first model runner: logits at several positions of a request, judged one after another.

The token of every position is taken from the guided distribution of that position as without guesses, from the same
random numbers; the next position counts where that token is the one that was guessed. So the same tokens are written,
in fewer steps. (It is what speculative sampling, Leviathan et al., arXiv 2211.17192, does with guesses that were not
drawn at random.) vLLM has no hook for it: two methods of the runner are wrapped. Knows no vLLM but these.
"""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .processor_v1 import FirstRunnerProcessor


def read_guesses(runner: Any) -> None:
    """Let model runners of the class ``runner`` read guesses that are scheduled without vLLM's own speculation."""
    prepare, sample = runner._prepare_inputs, runner._sample
    if getattr(prepare, "reads_guesses", False):
        return

    @functools.wraps(prepare)
    def _prepare_inputs(self: Any, scheduled: Any, counts: Any) -> Any:
        prepared = prepare(self, scheduled, counts)
        guesses = scheduled.scheduled_spec_decode_tokens
        if not guesses or prepared[1] is not None:
            return prepared
        drafts = np.array([len(guesses.get(name, ())) for name in self.input_batch.req_ids], dtype=np.int32)
        metadata = self._calc_spec_decode_metadata(drafts, np.cumsum(counts, dtype=np.int32))
        return metadata.logits_indices, metadata, int(drafts.max()) + 1

    @functools.wraps(sample)
    def _sample(self: Any, logits: Any, metadata: Any) -> Any:
        processors = self.input_batch.logitsprocs.non_argmax_invariant
        ours = next((one for one in processors if isinstance(one, FirstRunnerProcessor)), None)
        if metadata is None or ours is None or self.speculative_config is not None:
            return sample(self, logits, metadata)
        return judged(ours, self.sampler, logits, metadata, self.input_batch.sampling_metadata)

    _prepare_inputs.reads_guesses = True  # type: ignore[attr-defined]
    runner._prepare_inputs, runner._sample = _prepare_inputs, _sample


def judged(processor: FirstRunnerProcessor, sampler: Any, logits: Tensor, metadata: Any, sampling: Any) -> Any:
    """What vLLM's sampler gives, with several tokens in the rows of requests whose guesses were right.

    Args:
        processor: of the batch.
        sampler: vLLM's.
        logits: of each request the newest token's and those of its guesses, (T, V).
        metadata: vLLM's ``SpecDecodeMetadata``.
        sampling: vLLM's ``SamplingMetadata``.
    """
    counts: list[int] = metadata.num_draft_tokens
    starts = [0, *accumulate(count + 1 for count in counts)][:-1]
    drafts = metadata.draft_token_ids.tolist()
    firsts = [0, *accumulate(counts)][:-1]
    guesses = [drafts[first : first + count] for first, count in zip(firsts, counts, strict=True)]
    written = processor.judge(logits, starts, guesses, sampler.greedy_sample)
    processor.judged = frozenset(written)
    try:
        output = sampler(logits=logits[metadata.bonus_logits_indices], sampling_metadata=sampling)
    finally:
        processor.judged = frozenset()
    first = output.sampled_token_ids
    width = 1 + max(counts)
    tokens = torch.full((len(counts), width), -1, dtype=first.dtype, device=first.device)
    tokens[:, :1] = first
    for row, ids in written.items():
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=first.dtype, device=first.device)
    output.sampled_token_ids = tokens
    if output.logprobs_tensors is not None:  # the scheduler puts those of guided rows in place
        output.logprobs_tensors = type(output.logprobs_tensors)(
            *(None if part is None else part.repeat_interleave(width, 0) for part in output.logprobs_tensors)
        )
    return output
