"""Loading masked diffusion models: the bundled ones, a folder, or a name on a model hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..models.hub import offline_if_unreachable
from ..models.loading import default_device, refuse_near_miss
from ..support.errors import ModelUnavailableError
from .block_adapters import is_block_adapter, load_block_adapter
from .packages import PACKAGES, load_packaged

BUNDLED = Path(__file__).parent / "models"


def bundled() -> list[str]:
    """Names of the models that come with textguide."""
    return sorted(one.name for one in BUNDLED.iterdir() if (one / "config.json").is_file() or is_block_adapter(one))


def load(
    name: str,
    *,
    tokenizer: Any = None,
    device: str | None = None,
    dtype: Any = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a masked diffusion model and its tokenizer.

    Args:
        name: a bundled model (:func:`bundled`: ``sudoku4``, ``molecules``…), ``rxnmapper`` or ``antiberty`` if the
            package of that name is installed, a folder (of a model, or of an adapter from
            ``scripts/train/adapted.py``), or a name on a model hub.
        tokenizer: a tokenizer, a folder with one, or its name on a model hub, for checkpoints that come without a
            tokenizer (MDLM uses ``"gpt2"``). None: the tokenizer of ``name``.
        device: the device of the model; default: a GPU if there is one.
        dtype: default: float32 on a CPU, else the dtype of the checkpoint.
        trust_remote_code: allow code that comes with the checkpoint to run; LLaDA and Dream need it.
        **kwargs: passed to ``from_pretrained``.

    Returns:
        ``(model, tokenizer)``, the model in evaluation mode.

    Raises:
        ModelUnavailableError: ``name`` cannot be loaded; an UnknownModelError if it resembles a bundled name.
    """
    device = device or default_device()
    if name in PACKAGES and not Path(name).is_dir():
        model, words = load_packaged(name)
        return model.to(device=device, dtype=dtype), words
    adapter = next((one for one in (Path(name), BUNDLED / name) if is_block_adapter(one)), None)
    if adapter is not None:
        return load_block_adapter(adapter, device, dtype)
    if not Path(name).exists():
        refuse_near_miss(name, [*bundled(), *PACKAGES])
    if dtype is None:
        import torch

        dtype = torch.float32 if device == "cpu" else "auto"
    is_bundled = not Path(name).is_dir() and (BUNDLED / name / "config.json").is_file()
    source = BUNDLED / name if is_bundled else name
    with _explained(name, source):
        model = _model(source, dtype, trust_remote_code, kwargs)
    words = tokenizer
    if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
        words = _tokenizer(name, source if tokenizer is None else tokenizer, trust_remote_code)
    return model.to(device).eval(), words


_HEADS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
"""Where the code of a checkpoint may register its model. Under ``AutoModel`` some have the backbone without a head
(LLaDA 2, SDAR), and some the whole model (Dream)."""


def _model(source: Any, dtype: Any, trust_remote_code: bool, kwargs: dict[str, Any]) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    registered = getattr(config, "auto_map", None) or {}
    name = next((head for head in _HEADS if head in registered), _HEADS[0])
    auto = getattr(transformers, name)
    return auto.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code, **kwargs)


def _tokenizer(name: str, source: Any, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        with offline_if_unreachable(source):
            return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ModelUnavailableError(
            f"masked diffusion model {name!r}: no tokenizer could be loaded from {str(source)!r} ({reason}); pass "
            "tokenizer=, the name of the one it was trained with, such as 'gpt2', or a tokenizer"
        ) from error


@contextmanager
def _explained(name: str, source: Any) -> Iterator[None]:
    """Turn errors of transformers while it loads a model into one line.

    Raises:
        ModelUnavailableError: instead of the error of transformers.
    """
    from safetensors import SafetensorError

    try:
        with offline_if_unreachable(source):
            yield
    # Code of a checkpoint may import packages that are missing, or use what this transformers does not have.
    except (OSError, ValueError, ImportError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it comes with its own code; read it, then pass trust_remote_code=True to run it"
        raise ModelUnavailableError(
            f"masked diffusion model {name!r} could not be loaded: {reason[:300]} (bundled: {', '.join(bundled())})"
        ) from error
