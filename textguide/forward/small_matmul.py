"""Faster matrix products for CPUs on which MKL is slow.

MKL computes ``x @ W.T`` slowly on processors that are not Intel's. With torch 2.13 on an AMD EPYC and one thread,
sixteen rows through a 576×49152 projection take 27 ms in MKL and 13 ms in oneDNN on the same tensors; 128 rows take 115
and 49 ms; two rows take 19 and 7 ms, or 4 ms as ``(W @ x.T).T``. Guided passes therefore use oneDNN, and the transposed
product for two and four rows. The results are equal up to rounding. Plain decoding keeps MKL, because it reproduces
the bits of transformers.

Neither torch nor the user's model is changed. Guided passes run a copy of the model whose modules are shallow copies
that share all weights, and whose linear layers use the faster product.

``TEXTGUIDE_SMALL_MATMUL=0`` switches this off, and ``=1`` switches it on for any CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .module_copies import shallow_copy

LARGEST = 16
"""The largest number of rows for the transposed product if oneDNN is missing or a gradient is needed."""

TRANSPOSED = (2, 4)
"""Numbers of rows for which the transposed product is faster than oneDNN."""


@lru_cache(maxsize=1)
def machine_gains() -> bool:
    """Whether this machine's CPU is one on which MKL is slow."""
    switch = os.environ.get("TEXTGUIDE_SMALL_MATMUL")
    if switch in ("0", "1"):
        return switch == "1"
    if not torch.backends.mkl.is_available():
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def helps(model: Any) -> bool:
    """Whether ``model`` has linear layers that this machine can run faster."""
    return machine_gains() and isinstance(model, nn.Module) and any(_fits(module) for module in model.modules())


def signature(model: nn.Module) -> tuple[Any, ...]:
    """What :func:`fast_copy` depends on; if it has changed, an earlier copy is out of date."""
    return tuple((id(module), module.training, "forward" in module.__dict__) for module in model.modules())


def fast_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with faster linear layers; weights, buffers and hooks are shared."""
    copies: dict[int, nn.Module] = {}  # a module that is used twice stays one module

    def copy(module: nn.Module) -> nn.Module:
        if id(module) in copies:
            return copies[id(module)]
        copied = shallow_copy(module)
        copies[id(module)] = copied
        if _fits(module):
            copied.__class__ = FastLinear
        for name, child in copied._modules.items():
            if child is not None:
                copied._modules[name] = copy(child)
        return copies[id(module)]

    return copy(model)


def _fits(module: nn.Module) -> bool:
    """Whether it is a linear layer with plain float32 weights in memory: no subclass, quantised tensor or hook."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and type(module.weight.data) is Tensor
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and "forward" not in module.__dict__
    )


class FastLinear(nn.Linear):
    """``torch.nn.Linear`` with a faster product for float32 inputs."""

    def forward(self, input: Tensor) -> Tensor:
        """``x Wᵀ + b``, as the layer whose weights it shares."""
        # All in one function, since a model calls it hundreds of times per token.
        weight = self.weight
        bias = self.bias
        rows = input.numel() // input.shape[-1] if input.numel() else 0
        if rows == 0 or not weight.dtype == input.dtype == torch.float32 or weight.dim() != 2:
            return nn.functional.linear(input, weight, bias)
        if rows not in TRANSPOSED:
            product = onednn()
            # oneDNN's operator has no backward pass.
            if product is not None and not (torch.is_grad_enabled() and _requires_grad(input, weight, bias)):
                flat = input.reshape(rows, -1).contiguous()
                out = product(flat, weight.contiguous(), bias, "none", [], "")
                return out.view(*input.shape[:-1], weight.shape[0])
            if rows > LARGEST:
                return nn.functional.linear(input, weight, bias)
        flat = input.reshape(rows, -1)
        if rows == 1:
            flat = flat.repeat(2, 1)  # torch.mm is slow for a single row and for a row of stride 0, transposed or not
        out = torch.mm(weight, flat.t()).t()[:rows].contiguous()
        if bias is not None:
            out += bias
        return out.view(*input.shape[:-1], weight.shape[0])


@lru_cache(maxsize=1)
def onednn() -> Callable[..., Tensor] | None:
    """oneDNN's product of dense tensors, a private operator of torch's compiler; None if torch does not have it."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
        product(torch.ones(1, 2), torch.ones(3, 2), None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product


def _requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
