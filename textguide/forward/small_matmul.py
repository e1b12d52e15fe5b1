"""Matrix products on CPUs where the library's own are slow.

MKL computes ``x @ W.T`` slowly on processors other than Intel's: with torch 2.13 on an AMD EPYC, one thread, sixteen
rows through a 576×49152 projection take 27 ms against 13 ms in oneDNN on the same tensors, 128 rows 115 against 49, and
two rows 19 against 7, or 4 ms as ``(W @ x.T).T``. So guided passes use oneDNN, and the transposed product for two and
four rows. The results agree to rounding. Plain decoding is left alone, since it promises the very bits of transformers.

Nothing of torch or of the user's model is changed: guided passes run a twin of the model, whose modules are shallow
copies that share all weights, and whose linear layers multiply in the faster form.

``TEXTGUIDE_SMALL_MATMUL=0`` switches it off, ``=1`` on for any CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .module_copies import twin_of

LARGEST = 16
"""Most rows of the transposed product, where oneDNN is missing or has no gradient."""

TRANSPOSED = (2, 4)
"""Numbers of rows for which the transposed product is faster than oneDNN."""


@lru_cache(maxsize=1)
def machine_gains() -> bool:
    """Whether this machine gains from the other form."""
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
    """Whether ``model`` has products that this machine computes faster in the other form."""
    return machine_gains() and isinstance(model, nn.Module) and any(_fits(module) for module in model.modules())


def signature(model: nn.Module) -> tuple[Any, ...]:
    """What a twin of ``model`` was made of; another one is made when this has changed."""
    return tuple((id(module), module.training, "forward" in module.__dict__) for module in model.modules())


def twin(model: nn.Module) -> nn.Module:
    """``model`` with other linear layers; all weights, buffers and hooks are shared."""
    known: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in known:
            other = known[id(module)] = twin_of(module)
            if _fits(module):
                other.__class__ = FastLinear
            for name, child in other._modules.items():
                if child is not None:
                    other._modules[name] = copied(child)
        return known[id(module)]

    return copied(model)


def _fits(module: nn.Module) -> bool:
    """Whether it is a linear layer with plain float32 weights in memory: no subclass, no quantised tensor, no hook."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and type(module.weight.data) is Tensor
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and "forward" not in module.__dict__
    )


class FastLinear(nn.Linear):
    """``torch.nn.Linear`` in a faster form for float32 inputs."""

    def forward(self, input: Tensor) -> Tensor:
        """``x Wᵀ + b``, as of the layer whose weights it shares."""
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, in a faster form for float32 inputs."""
    rows = input.numel() // input.shape[-1] if input.numel() else 0
    if rows == 0 or not weight.dtype == input.dtype == torch.float32 or weight.dim() != 2:
        return nn.functional.linear(input, weight, bias)
    flat = input.reshape(rows, -1)
    if rows not in TRANSPOSED and not _needs_gradient(input, weight, bias):
        product = onednn()
        if product is not None:
            out = product(flat.contiguous(), weight.contiguous(), bias, "none", [], "")
            return out.view(*input.shape[:-1], weight.shape[0])
    if rows > LARGEST:
        return nn.functional.linear(input, weight, bias)
    if rows == 1:
        flat = flat.repeat(2, 1)  # one row alone, or a row of stride 0, takes the slow path in either form
    out = torch.mm(weight, flat.t()).t()[:rows].contiguous()
    if bias is not None:
        out += bias
    return out.view(*input.shape[:-1], weight.shape[0])


@lru_cache(maxsize=1)
def onednn() -> Callable[..., Tensor] | None:
    """oneDNN's product of dense tensors, which torch keeps for its compiler; None where this torch has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
        product(torch.ones(1, 2), torch.ones(3, 2), None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
