"""Passes of a model in evaluation mode and in float32, whatever its own mode and dtype are.

What padding does to an answer is a property of an architecture. It can only be seen if nothing else changes the answer:
no dropout, and no rounding to eight bits, which is larger than some of the differences that padding makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_HALF = (torch.float16, torch.bfloat16)
_MOVES = frozenset(
    {
        "__get__", "__getitem__", "chunk", "contiguous", "detach", "expand", "expand_as", "flatten", "index_select",
        "movedim", "narrow", "permute", "reshape", "select", "size", "split", "squeeze", "swapaxes", "t", "transpose",
        "unbind", "unflatten", "unsqueeze", "view",
    }
)  # fmt: skip
"""Functions that only move numbers. They keep their dtype, so that a stack of weights is not converted as a whole."""
_LARGEST = 1 << 26
"""Weights with more numbers are converted in parts."""


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put every module of ``model`` in evaluation mode, and restore the mode of each afterwards."""
    # Not `model.eval()`: a module may do more in it, such as merging an adapter.
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Compute passes of ``model`` in float32 in this thread. Its weights are converted one by one, while they are used.

    Nothing is stored, so that this needs no memory for a second copy of the model.
    """
    with torch.autocast(model.device.type, enabled=False):
        if any(tensor.dtype in _HALF for tensor in [*model.parameters(), *model.buffers()]):
            with _Float32():
                yield
        else:
            yield


class _Float32(TorchFunctionMode):
    """Replaces half precision by float32 in every function of torch: in its inputs, its ``dtype`` and its result."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if function == Tensor.dtype.__get__:  # type: ignore[attr-defined]
            return _single(function(*args))
        if name in _MOVES:
            return function(*args, **kwargs)
        if function is F.embedding:
            return _single(function(*args, **kwargs))
        if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__":
            return function(args[0], *_converted(args[1:], args[0].dtype), **kwargs)
        if name in ("half", "bfloat16"):
            return args[0].float()
        if function is F.linear and args[1].dtype in _HALF and args[1].numel() > _LARGEST:
            return _large_linear(*args, **kwargs)
        return function(*map(_single, args), **{key: _single(value) for key, value in kwargs.items()})


def _single(value: Any) -> Any:
    """``value`` with float32 instead of half precision."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _HALF else value
    if type(value) in (list, tuple):
        return type(value)(map(_single, value))
    return value


def _converted(values: Any, dtype: torch.dtype) -> Any:
    """Tensors of floating-point numbers in ``values`` as ``dtype``, which is that of the tensor that is written to."""
    if dtype not in _HALF:
        return _single(values)
    return [value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in values]


def _large_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    inputs = inputs.float()
    rows = max(1, _LARGEST // weight.shape[1])
    outputs = torch.cat([F.linear(inputs, part.float()) for part in weight.split(rows)], dim=-1)
    return outputs if bias is None else outputs + bias.float()
