"""Matrix products on CPUs where the library's own are slow.

MKL computes ``x @ W.T`` slowly on processors other than Intel's: with torch 2.13 on an AMD EPYC, one thread, sixteen
rows through a 576×49152 projection take 27 ms against 13 ms in oneDNN on the same tensors, 128 rows 115 against 49, and
two rows 19 against 7, or 4 ms as ``(W @ x.T).T``. So guided passes use oneDNN, and the transposed product for two and
four rows. The results agree to rounding. Plain decoding is left alone, since it promises the very bits of transformers.

``TEXTGUIDE_SMALL_MATMUL=0`` switches it off, ``=1`` on for any CPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGEST = 16
"""Most rows of the transposed product, where oneDNN is missing or has no gradient."""

TRANSPOSED = (2, 4)
"""Numbers of rows for which the transposed product is faster than oneDNN."""

_lock = threading.Lock()
_users = 0
_original: Callable[..., Tensor] = torch.nn.functional.linear
_here = threading.local()


@lru_cache(maxsize=1)
def helps() -> bool:
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


@contextmanager
def enabled(model: Any) -> Iterator[None]:
    """Use the other form in this thread, for a model on the CPU, while the block runs."""
    global _users, _original
    if not helps() or model.device.type != "cpu":
        yield
        return
    with _lock:
        if _users == 0:
            _original = torch.nn.functional.linear
            torch.nn.functional.linear = linear
        _users += 1
    before = getattr(_here, "active", False)
    _here.active = True
    try:
        yield
    finally:
        _here.active = before
        with _lock:
            _users -= 1
            if _users == 0:
                torch.nn.functional.linear = _original


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, in a faster form for float32 inputs."""
    rows = input.numel() // input.shape[-1] if input.numel() else 0
    fits = rows > 0 and weight.dtype == input.dtype == torch.float32 and weight.dim() == 2
    if not fits or not getattr(_here, "active", False):
        return _original(input, weight, bias)
    flat = input.reshape(rows, -1)
    if rows not in TRANSPOSED and not _needs_gradient(input, weight, bias):
        product = onednn()
        if product is not None:
            out = product(flat.contiguous(), weight.contiguous(), bias, "none", [], "")
            return out.view(*input.shape[:-1], weight.shape[0])
    if rows > LARGEST:
        return _original(input, weight, bias)
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
