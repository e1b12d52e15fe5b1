"""A repair of vLLM's adapters on a CPU. Imports vLLM only when it is called.

vLLM's kernels for GPUs leave out a row whose slot is −1, which means no adapter. Those for CPUs use −1 as an index, and
apply the last adapter. So a batch with and without adapters came out wrong, plain requests included. Here the shrunk
activations of such rows are set to 0, so that nothing is added to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .wrapping import wrap_once


def mend() -> None:
    """Let rows without an adapter have none, if vLLM runs on a CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    wrap_once(punica_cpu, "bgmv_shrink", by_token)
    wrap_once(punica_cpu, "sgmv_shrink", by_sequence)


def by_token(shrink: Callable[..., None]) -> Callable[..., None]:
    """``bgmv_shrink``, which has a slot for each token."""

    def mended(inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, *args: Any, **kwargs: Any) -> None:
        shrink(inputs, weights, output, slots, *args, **kwargs)
        output[: len(slots)][slots < 0] = 0.0

    return mended


def by_sequence(shrink: Callable[..., None]) -> Callable[..., None]:
    """``sgmv_shrink``, which has a slot for each sequence of tokens."""

    def mended(
        inputs: Tensor,
        weights: Tensor,
        output: Tensor,
        starts: Tensor,
        lengths: Tensor,
        slots: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        shrink(inputs, weights, output, starts, lengths, slots, *args, **kwargs)
        slots_of_tokens = torch.repeat_interleave(slots, lengths)
        output[: len(slots_of_tokens)][slots_of_tokens < 0] = 0.0

    return mended
