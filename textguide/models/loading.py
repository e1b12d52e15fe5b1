"""Loading a model with its tokenizer: the bundled one, a folder, a GGUF file, or a hub name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..forward.low_rank import merged
from ..support.errors import ModelUnavailableError, UnknownModelError
from . import bundled, conversion, quantized_file, small
from .hub import offline_if_unreachable


def default_device() -> str:
    """The device that is used by default: ``cuda`` if available, else ``mps``, else ``cpu``."""
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
    adapter: Any = None,
    adapter_scale: float | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a language model and its tokenizer, ready to decode.

    Args:
        name: ``"smollm2"`` for the bundled SmolLM2-135M-Instruct, ``"smollm2-small"`` or another name of
            :mod:`textguide.models.small`, a folder, a GGUF file of an architecture that transformers reads (converted
            once, into the cache: see :func:`textguide.models.conversion.folder_of`), or a name on a model hub.
        device: the device of the model, such as ``"cuda"`` or ``"cpu"``; default: a GPU if there is one.
        dtype: a ``torch.dtype`` or its name; default: float32 on a CPU, else the dtype of the checkpoint. The converted
            copy of a GGUF file has float32 below 500 million weights and bfloat16 above.
        device_map: passed to accelerate, for models that are larger than one device; excludes ``device``.
        trust_remote_code: allow code that comes with the checkpoint to run; off by default.
        refresh: convert the bundled model or the GGUF file again.
        adapter: folder of a PEFT adapter, which is merged into the weights, so that it costs nothing at inference.
        adapter_scale: γ, if ``textguide distill`` wrote the adapter; default: the γ that it was trained for.
        **kwargs: passed to ``from_pretrained``.

    Returns:
        ``(model, tokenizer)``; the model is in evaluation mode and the tokenizer pads on the left.

    Raises:
        UnknownModelError: there is no model with that name. It is also a :class:`ValueError`.
        ModelUnavailableError: the model cannot be loaded; the message has the remedy.
        MissingExtraError: ``name`` is a GGUF file that is not converted yet and the package ``gguf`` is not installed,
            or ``adapter`` is used and the package ``peft`` is not installed.
        ValueError: an argument has an invalid value.

    Example:
        >>> model, tokenizer = textguide.load("smollm2")
        >>> model, tokenizer = textguide.load("Qwen/Qwen2.5-0.5B", dtype="bfloat16")  # doctest: +SKIP
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} exclude each other; pass one of them")
    device = checked_device(device) if device_map is None else None
    requested = checked_dtype(dtype)
    dtype = requested
    if dtype is None:
        dtype = torch.float32 if device is not None and torch.device(device).type == "cpu" else "auto"

    if name in small.NAMES and not Path(name).is_dir():
        small_dtype = None if dtype == "auto" else dtype
        model = small.load(name, device=None if device_map else device, dtype=small_dtype)
        tokenizer = AutoTokenizer.from_pretrained(small.TOKENIZER, padding_side="left")
        return _with_adapter(model, adapter, adapter_scale), tokenizer
    source = locate(name, requested, refresh)
    common = {"trust_remote_code": trust_remote_code}
    with explained(name, source):
        config = AutoConfig.from_pretrained(source, **common)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(source, dtype=dtype, device_map=device_map, **common, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **common)
    if device_map is None:
        model = model.to(device)
    return _with_adapter(model.eval(), adapter, adapter_scale), tokenizer


def _with_adapter(model: Any, folder: Any, scale: float | None) -> Any:
    if folder is None:
        if scale is not None:
            raise ValueError(f"adapter_scale={scale} has no adapter; pass adapter= too")
        return model
    return merged(model, folder, scale)


def locate(name: str | Path, dtype: Any = None, refresh: bool = False) -> Path | str:
    """What transformers has to load for ``name``: a folder, or a name on a model hub. The hub is not contacted.

    Args:
        name: as for :func:`load`, except the names of :mod:`textguide.models.small`, which have no folder.
        dtype: the dtype that the caller will use, if the model has to be converted.
        refresh: convert again.

    Raises:
        UnknownModelError: there is no such folder or file, it is not a model, the name is a small model's, or it is a
            misspelt name of a bundled model.
        ModelUnavailableError: the bundled model or a GGUF file cannot be converted.
        MissingExtraError: converting needs the package ``gguf``, which is not installed.
    """
    path = Path(name)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        files = sorted(path.glob("*.gguf"))
        remedy = f"name the file itself, such as {files[0]}" if files else "name a folder that has one"
        raise UnknownModelError(f"{path} is not a model folder (it has no config.json); {remedy}")
    if path.suffix.lower() == ".gguf" or quantized_file.is_one(path):
        if not path.is_file():
            raise UnknownModelError(f"there is no file {path}; check the path")
        return conversion.folder_of(path, dtype, refresh)
    if path.exists():
        raise UnknownModelError(f"{path} is neither a model folder nor a GGUF file; name one of these")
    name = str(name)
    if name == bundled.NAME:
        return bundled.folder(refresh)
    if name.startswith(("/", ".", "~")):
        raise UnknownModelError(f"model {name!r} looks like a folder that does not exist; check the path")
    if name in small.NAMES:
        raise UnknownModelError(f"model {name!r} has no folder, so it cannot be used here; textguide.load returns it")
    refuse_near_miss(name, [bundled.NAME, *small.NAMES])
    return name


def refuse_near_miss(name: str, known: Collection[str]) -> None:
    """Refuse a misspelt name of a bundled model, because looking it up on a model hub takes long and finds nothing.

    Raises:
        UnknownModelError: ``name`` has no slash and is close to one of ``known``.
    """
    if "/" in name or name in known:
        return
    close = difflib.get_close_matches(name.lower(), known, 1, 0.75)
    if close:
        raise UnknownModelError(f"model {name!r} is unknown; did you mean {close[0]!r}?")


@contextmanager
def explained(name: Any, source: Path | str) -> Iterator[None]:
    """Turn errors of transformers while it loads a model into one line; ask the hub only if it can be reached.

    Raises:
        ModelUnavailableError: instead of the error of transformers.
    """
    try:
        with offline_if_unreachable(source):
            yield
    except (RuntimeError, ImportError, MemoryError):  # about this machine, and clear enough
        raise
    except Exception as error:  # damaged files raise all kinds of errors
        raise ModelUnavailableError(_explain(name, source, error)) from error


def checked_device(device: str | None) -> str:
    """``device`` if torch has it; for None the :func:`default_device`.

    Raises:
        ValueError: it is not a device, or torch does not see it.
    """
    import torch

    if device is None:
        return default_device()
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not a torch device; use 'cpu', 'cuda' or 'cuda:1'") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no CUDA device; use device='cpu'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but torch sees no MPS device; use device='cpu'")
    return device


def checked_dtype(dtype: Any) -> Any:
    """``dtype`` as a ``torch.dtype``; None and ``"auto"`` are returned as they are.

    Raises:
        ValueError: it is not a floating-point type.
    """
    import torch

    if dtype is None or dtype == "auto":
        return dtype
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not a floating-point type; use 'float32', 'bfloat16' or 'float16'")
    return named


def _explain(name: str, source: Any, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason:
        return f"model {name!r} has its own code; read it, then pass trust_remote_code=True to run it"
    if isinstance(source, Path):
        return f"the model in {source} could not be read: {reason[:300]}"
    if "connect" in reason.lower() or "offline" in reason.lower() or "resolve" in reason.lower():
        return (
            f"model {name!r} is neither a local folder nor in the hub's local cache, and the hub cannot be reached; "
            f"download it on a machine with a network, or use the bundled model {bundled.NAME!r}"
        )
    return f"model {name!r} could not be loaded: {reason[:300]}"
