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
    adapter: Any = None,
    adapter_scale: float | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a language model and its tokenizer, ready to decode.

    Args:
        name: ``"smollm2"`` for the bundled SmolLM2-135M-Instruct, ``"smollm2-small"`` and the like for the models of
            :mod:`textguide.models.small`, a folder, a GGUF file of an architecture that transformers reads (converted
            once, into the cache: see :func:`textguide.models.conversion.folder_of`), or a name on a model hub.
        device: where the model goes, such as ``"cuda"`` or ``"cpu"``; default: a GPU if there is one.
        dtype: a ``torch.dtype`` or its name; default: float32 on a CPU, else the dtype of the checkpoint (of a GGUF
            file that of its converted copy: float32 below 500 million weights, bfloat16 above).
        device_map: passed to accelerate, for models larger than one device; excludes ``device``.
        trust_remote_code: allow code that comes with the checkpoint to run. Off unless asked for.
        refresh: convert the bundled model or the GGUF file again.
        adapter: folder of an adapter (PEFT), which is added to the weights, so that it costs nothing.
        adapter_scale: γ, where ``textguide distill`` wrote the adapter; default: what it was trained for.
        **kwargs: passed to ``from_pretrained``.

    Returns:
        ``(model, tokenizer)``; the model is in evaluation mode and the tokenizer pads on the left.

    Raises:
        UnknownModelError: ``name`` is no model's; a :class:`ModelUnavailableError` and a :class:`ValueError`.
        ModelUnavailableError: the model cannot be loaded; the message says what to do.
        MissingExtraError: ``name`` is a GGUF file that is not converted yet, and the package ``gguf`` is not installed;
            or ``adapter`` is given without the package ``peft``.
        ValueError: an argument has a value that cannot work.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} exclude each other; give one of them")
    device = checked_device(device) if device_map is None else None
    asked = dtype = checked_dtype(dtype)
    if dtype is None:
        dtype = torch.float32 if device is not None and torch.device(device).type == "cpu" else "auto"

    if name in small.NAMES and not Path(name).is_dir():
        small_dtype = None if dtype == "auto" else dtype
        model = small.load(name, device=None if device_map else device, dtype=small_dtype)
        return _adapted(model, adapter, adapter_scale), AutoTokenizer.from_pretrained(
            bundled.folder(), padding_side="left"
        )
    source = locate(name, asked, refresh)
    common = {"trust_remote_code": trust_remote_code}
    with explained(name, source):
        config = AutoConfig.from_pretrained(source, **common)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(source, dtype=dtype, device_map=device_map, **common, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **common)
    if device_map is None:
        model = model.to(device)
    return _adapted(model.eval(), adapter, adapter_scale), tokenizer


def _adapted(model: Any, folder: Any, scale: float | None) -> Any:
    if folder is None:
        if scale is not None:
            raise ValueError(f"adapter_scale={scale} has no adapter; give adapter= too")
        return model
    return merged(model, folder, scale)


def locate(name: str | Path, dtype: Any = None, refresh: bool = False) -> Path | str:
    """What transformers is to load for ``name``: a folder, or a name on a model hub, which is not asked here.

    Args:
        name: as for :func:`load`, but for the names of :mod:`textguide.models.small`, which have no folder.
        dtype: in which the model is wanted, where it has to be converted.
        refresh: convert again.

    Raises:
        UnknownModelError: there is no such folder or file, or it holds no model, or the name is nearly a bundled one,
            or that of a small model.
        ModelUnavailableError: the bundled model or a GGUF file cannot be converted.
        MissingExtraError: the package ``gguf``, which that needs, is not installed.
    """
    path = Path(name)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        files = sorted(path.glob("*.gguf"))
        remedy = f"name the file itself, such as {files[0]}" if files else "name one that has"
        raise UnknownModelError(f"{path} is no model folder (it has no config.json); {remedy}")
    if path.suffix.lower() == ".gguf" or quantized_file.is_one(path):
        if not path.is_file():
            raise UnknownModelError(f"there is no file {path}; check the path")
        return conversion.folder_of(path, dtype, refresh)
    if path.exists():
        raise UnknownModelError(f"{path} is no model folder and no GGUF file; name one")
    name = str(name)
    if name == bundled.NAME:
        return bundled.folder(refresh)
    if name.startswith(("/", ".", "~")):
        raise UnknownModelError(f"model {name!r} looks like a folder, and there is none; check the path")
    if name in small.NAMES:
        raise UnknownModelError(
            f"model {name!r} has no folder of its own and does not run here; textguide.load gives it"
        )
    refuse_near_miss(name, [bundled.NAME, *small.NAMES])
    return name


def refuse_near_miss(name: str, known: Collection[str]) -> None:
    """Refuse a name that is nearly that of a bundled model: asking a model hub for it takes long, and finds nothing.

    Raises:
        UnknownModelError: ``name`` has no slash and is close to one of ``known``.
    """
    if "/" not in name and name not in known and (close := difflib.get_close_matches(name.lower(), known, 1, 0.75)):
        raise UnknownModelError(f"model {name!r} is unknown; did you mean {close[0]!r}?")


@contextmanager
def explained(name: Any, source: Path | str) -> Iterator[None]:
    """What transformers raises while it loads a model, as one line.

    Raises:
        ModelUnavailableError: in place of it.
    """
    try:
        yield
    except (RuntimeError, ImportError, MemoryError):  # of the machine: it says more
        raise
    except Exception as error:  # files that are damaged raise anything
        raise ModelUnavailableError(_explain(name, source, error)) from error


def checked_device(device: str | None) -> str:
    """``device`` where torch has it; None: :func:`default_device`.

    Raises:
        ValueError: it is no device, or torch does not see it.
    """
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


def checked_dtype(dtype: Any) -> Any:
    """``dtype`` as a ``torch.dtype``; None and ``"auto"`` as they are.

    Raises:
        ValueError: it is no floating-point type.
    """
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
