"""Loading masked diffusion models: the bundled ones, a folder, or a name on a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..models.loading import default_device, refuse_near_miss
from ..support.errors import ModelUnavailableError
from .block_adapters import is_block_adapter, load_block_adapter
from .packages import PACKAGES, load_packaged

BUNDLED = Path(__file__).parent / "models"


def bundled() -> list[str]:
    """Names of the models that come with textguide."""
    return sorted(one.name for one in BUNDLED.iterdir() if (one / "config.json").is_file() or is_block_adapter(one))


def load(
    name: str, *, device: str | None = None, dtype: Any = None, trust_remote_code: bool = False, **kwargs: Any
) -> tuple[Any, Any]:
    """Load a masked diffusion model and its tokenizer.

    Args:
        name: a bundled model (:func:`bundled`: ``sudoku4``, ``molecules``…), ``rxnmapper`` or ``antiberty`` if the
            package of that name is installed, a folder (of a model, or of an adapter from
            ``scripts/train/adapted.py``), or a name on a model hub.
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
        model, tokenizer = load_packaged(name)
        return model.to(device=device, dtype=dtype), tokenizer
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
    model, tokenizer = _from_pretrained(name, source, dtype, trust_remote_code, kwargs)
    return model.to(device).eval(), tokenizer


def _from_pretrained(
    name: str, source: Any, dtype: Any, trust_remote_code: bool, kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        # Code of a checkpoint may register its model under AutoModel only.
        remote = getattr(config, "auto_map", None) and "AutoModelForMaskedLM" not in config.auto_map
        auto = AutoModel if remote else AutoModelForMaskedLM
        model = auto.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code, **kwargs)
        return model, AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it comes with its own code; read it, then pass trust_remote_code=True to run it"
        raise ModelUnavailableError(
            f"masked diffusion model {name!r} could not be loaded: {reason[:300]} (bundled: {', '.join(bundled())})"
        ) from error
