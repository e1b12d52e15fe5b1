"""Further models that one vLLM engine has besides the served one, for branches that name a model. Knows no vLLM.

They are parts of one model of vLLM's (``combined_model.py``), which runs all of them on every token of every request
and keeps the further models' logits for the processor in the same process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from textguide.guidance.base import SELF
from textguide.models import small
from textguide.models.loading import locate

from .extras import ours_of

COMBINED_MODEL = "TextguideCombinedModel"
"""The architecture that vLLM loads."""
COMBINED_MODEL_CLASS = "textguide.logits_processors.vllm_plugin.combined_model:CombinedModel"
_LOGITS: dict[str, dict[str, Tensor]] = {}


def resolve(model: str) -> str:
    """The folder of a bundled or small model or of a converted GGUF file; other names are returned as they are.

    Raises:
        ModelUnavailableError: as for :func:`textguide.load`.
    """
    is_small = model in small.NAMES and not Path(model).is_dir()
    return str(small.folder(model) if is_small else locate(model))


def models_of(config: Any) -> dict[str, str]:
    """The further models that an engine was started with: the folder of each, by name."""
    return dict(ours_of(config).get("models") or {})


def logits_of(config: Any) -> dict[str, Tensor]:
    """The logits (R, V) of the newest step under each further model, by name; the model writes them here.

    Args:
        config: vLLM's ``VllmConfig`` in the process that runs the models.
    """
    return _LOGITS.setdefault(str(config.instance_id), {})


def check_models(served: str, models: Mapping[str, str], longest: int | None) -> dict[str, Any]:
    """Refuse models that cannot be combined with the served one.

    Args:
        served: folder or name of the served model.
        models: folders or names of the further models, by name.
        longest: ``max_model_len``, if it is given.

    Returns:
        What the combined model has to know of the served one: its architectures.

    Raises:
        ValueError: a model has another vocabulary, is not a decoder, or has too few positions; the message names it.
    """
    from transformers import AutoConfig

    main = AutoConfig.from_pretrained(served)
    size = main.get_text_config(decoder=True).vocab_size
    longest = longest or main.get_text_config(decoder=True).max_position_embeddings
    for name, path in models.items():
        if not name or name == SELF or not name.isprintable():
            raise ValueError(f"models: {name!r} cannot be the name of a model; choose one such as amateur")
        _check_model(name, path, AutoConfig.from_pretrained(path), size, longest)
    return {"architectures": list(main.architectures or ())}


def _check_model(name: str, path: str, config: Any, size: int, longest: int | None) -> None:
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or text is not config:
        raise ValueError(f"model {name}={path}: {config.model_type} is not a decoder of text only; name another model")
    if text.vocab_size != size:
        raise ValueError(
            f"model {name}={path} has {text.vocab_size} tokens in its vocabulary and the served model {size}; "
            "their next-token distributions cannot be combined: use models that share a tokenizer"
        )
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and longest is not None and longest > positions:
        raise ValueError(f"model {name}={path} has {positions} positions; set max_model_len to {positions} or less")


REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "enforce_eager": ((None, True), "graphs and compiled passes were not tested with them"),
    "enable_lora": ((None, False), "adapters were not tested with them"),
    "quantization": ((None,), "quantised weights were not tested with them"),
    "load_format": ((None, "auto", "safetensors", "hf"), "their weights are read as safetensors"),
    "hf_overrides": ((None, {}), "they set it themselves"),
    "tokenizer_mode": ((None, "auto", "hf"), "they were tested with tokenizers of transformers"),
}
"""Options of an engine that were not tested with further models: the values that were, and why."""


def engine_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an engine with further models.

    Args:
        options: of the engine without them.

    Raises:
        ValueError: an option was not tested with them; the message names it.
    """
    for name, (tested, reason) in REFUSED.items():
        if options.get(name) not in tested:
            raise ValueError(f"{name}={options[name]!r} does not work with further models: {reason}; leave it out")
    return {**options, "enforce_eager": True, "hf_overrides": {"architectures": [COMBINED_MODEL]}}
