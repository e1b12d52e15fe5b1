"""vLLM's adapters on a CPU, where rows without an adapter got that of the last slot. Imports vLLM where it is called.

Its kernels for GPUs leave out a row whose slot is −1, which stands for no adapter; those for CPUs index with it, and
take the last one. A batch with adapters and without came out wrong, plain requests too. What such a row has been shrunk
to is set to 0 here, so that nothing is added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def mend() -> None:
    """Let rows without an adapter have none, where vLLM runs on a CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    if not getattr(punica_cpu.bgmv_shrink, "mended", False):
        punica_cpu.bgmv_shrink = by_token(punica_cpu.bgmv_shrink)
        punica_cpu.sgmv_shrink = by_sequence(punica_cpu.sgmv_shrink)


def by_token(shrink: Callable[..., None]) -> Callable[..., None]:
    """``bgmv_shrink``, whose slots are those of tokens."""

    def mended(inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, *others: Any, **more: Any) -> None:
        shrink(inputs, weights, output, slots, *others, **more)
        output[: len(slots)][slots < 0] = 0.0

    mended.mended = True  # type: ignore[attr-defined]
    return mended


def by_sequence(shrink: Callable[..., None]) -> Callable[..., None]:
    """``sgmv_shrink``, whose slots are those of sequences of tokens."""

    def mended(
        inputs: Tensor, weights: Tensor, output: Tensor, starts: Tensor, lengths: Tensor, slots: Tensor, *others: Any,
        **more: Any,
    ) -> None:  # fmt: skip
        shrink(inputs, weights, output, starts, lengths, slots, *others, **more)
        of_tokens = torch.repeat_interleave(slots, lengths)
        output[: len(of_tokens)][of_tokens < 0] = 0.0

    return mended
