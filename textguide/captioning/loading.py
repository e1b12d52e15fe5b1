"""Loads captioners and dual encoders: bundled ones, a folder, or a name on a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..models.hub import offline_if_unreachable
from ..models.loading import default_device, refuse_near_miss
from ..support.errors import ModelUnavailableError

BUNDLED = Path(__file__).parent / "models"


def bundled() -> list[str]:
    """Names of the models that come with textguide: captioners, and dual encoders that score captions."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / "config.json").is_file())


def load(name: str = "drawn-scenes", *, device: str | None = None, dtype: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """Load a captioner, or a CLIP-like dual encoder, with its processor.

    Args:
        name: a bundled model (:func:`bundled`: ``drawn-scenes`` captions drawn shapes, ``drawn-scenes-dual`` scores
            such captions), a folder, or a name on a model hub.
        device: the device of the model; default: a GPU if there is one.
        dtype: default: float32 on a CPU, else the dtype of the checkpoint.
        **kwargs: passed to ``from_pretrained``.

    Returns:
        ``(model, processor)``, the model in evaluation mode.

    Raises:
        ModelUnavailableError: the model cannot be loaded; its subclass UnknownModelError, if ``name`` is similar to the
            name of a bundled model.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoProcessor

    device = device or default_device()
    if dtype is None:
        import torch

        dtype = torch.float32 if device == "cpu" else "auto"
    is_bundled = not Path(name).is_dir() and (BUNDLED / name / "config.json").is_file()
    source: Any = BUNDLED / name if is_bundled else name
    if not Path(name).exists():
        refuse_near_miss(name, bundled())
    try:
        with offline_if_unreachable(source):
            config = AutoConfig.from_pretrained(source)
            kind = getattr(transformers, (config.architectures or [""])[0], None)
            if kind is None:
                raise ValueError(
                    f"its configuration does not name an architecture that transformers knows ({config.architectures})"
                )
            model = kind.from_pretrained(source, dtype=dtype, **kwargs)
            processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelUnavailableError(
            f"captioner {name!r} could not be loaded: {reason[:300]} (bundled: {', '.join(bundled())})"
        ) from error
    return model.to(device).eval(), processor
