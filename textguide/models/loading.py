"""Loading a model with its tokenizer: the bundled one, a folder, or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..support.errors import ModelUnavailableError
from . import bundled, small


def default_device() -> str:
    """The device used where none is named: ``cuda``, else ``mps``, else ``cpu``."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def load(
    name: str = bundled.NAME,
    *,
    device: str | None = None,
    dtype: Any = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    refresh: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a language model and its tokenizer, ready to decode.

    Args:
        name: ``"smollm2"`` for the bundled SmolLM2-135M-Instruct, ``"smollm2-small"`` and the like for the models of
            :mod:`textguide.models.small`, a folder, or a name on a model hub.
        device: where the model goes, such as ``"cuda"`` or ``"cpu"``; default: a GPU if there is one.
        dtype: a ``torch.dtype`` or its name; default: float32 on a CPU, else the dtype of the checkpoint.
        device_map: passed to accelerate, for models larger than one device; excludes ``device``.
        trust_remote_code: allow code that comes with the checkpoint to run. Off unless asked for.
        refresh: convert the bundled model again.
        **kwargs: passed to ``from_pretrained``.

    Returns:
        ``(model, tokenizer)``; the model is in evaluation mode and the tokenizer pads on the left.

    Raises:
        ModelUnavailableError: nothing loadable stands behind ``name``; the message says what to do.
        ValueError: an argument has a value that cannot work.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} exclude each other; give one of them")
    device = _checked_device(device) if device_map is None else None
    dtype = _checked_dtype(dtype)
    if dtype is None:
        dtype = torch.float32 if device is not None and torch.device(device).type == "cpu" else "auto"

    if name in small.NAMES and not Path(name).is_dir():
        small_dtype = None if dtype == "auto" else dtype
        model = small.load(name, device=None if device_map else device, dtype=small_dtype)
        return model, AutoTokenizer.from_pretrained(bundled.folder(), padding_side="left")
    is_bundled = name == bundled.NAME and not Path(name).is_dir()
    source = bundled.folder(refresh) if is_bundled else Path(name) if Path(name).exists() else name
    if isinstance(source, str) and source.startswith(("/", ".", "~")):
        raise ModelUnavailableError(f"model {name!r} looks like a folder, and there is none; check the path")
    if isinstance(source, Path) and not (source / "config.json").is_file():
        raise ModelUnavailableError(f"{source} is no model folder (it has no config.json); name one that has")
    common = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(source, dtype=dtype, device_map=device_map, **common, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelUnavailableError(_explain(name, source, error)) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **common)
    except Exception as error:  # the reader of tokenizer files raises bare ones
        raise ModelUnavailableError(_explain(name, source, error)) from error
    if device_map is None:
        model = model.to(device)
    return model.eval(), tokenizer


def _checked_device(device: str | None) -> str:
    import torch

    if device is None:
        return default_device()
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is no torch device; use 'cpu', 'cuda' or 'cuda:1'") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no CUDA device; use device='cpu'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but torch sees no MPS device; use device='cpu'")
    return device


def _checked_dtype(dtype: Any) -> Any:
    import torch

    if dtype is None or dtype == "auto":
        return dtype
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is no floating-point type; use 'float32', 'bfloat16' or 'float16'")
    return named


def _explain(name: str, source: Any, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason:
        return f"model {name!r} comes with its own code; read it, then pass trust_remote_code=True to run it"
    if isinstance(source, Path):
        return f"the model in {source} could not be read: {reason[:300]}"
    if "connect" in reason.lower() or "offline" in reason.lower() or "resolve" in reason.lower():
        return (
            f"model {name!r} is neither a folder here nor in the hub's local cache, and the hub cannot be reached; "
            f"download it where there is a network, or use the bundled model {bundled.NAME!r}"
        )
    return f"model {name!r} could not be loaded: {reason[:300]}"
