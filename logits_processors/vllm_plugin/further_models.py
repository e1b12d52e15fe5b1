"""Further models that one vLLM engine holds beside the served one, for branches that ask another model. Knows no vLLM.

They are parts of one model of vLLM's (``twin.py``), which runs them all on every token of every request, and keeps what
the further ones say of each row for the processor in the same process.
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

TWIN = "TextguideTwin"
"""The architecture that vLLM is told to load."""
TWIN_CLASS = "textguide.logits_processors.vllm_plugin.combined_model:Twin"
_LOGITS: dict[str, dict[str, Tensor]] = {}


def resolve(model: str) -> str:
    """The folder of a bundled or small model or of a converted GGUF file, or ``model`` as it is.

    Raises:
        ModelUnavailableError: as for :func:`textguide.load`.
    """
    is_small = model in small.NAMES and not Path(model).is_dir()
    return str(small.folder(model) if is_small else locate(model))


def models_of(config: Any) -> dict[str, str]:
    """The further models that an engine was started with: the folder of each, by its name."""
    return dict(ours_of(config).get("models") or {})


def logits_of(config: Any) -> dict[str, Tensor]:
    """Where an engine's further models leave the logits (R, V) of a step's rows, by name.

    Args:
        config: vLLM's ``VllmConfig`` in the process that holds the models.
    """
    return _LOGITS.setdefault(str(config.instance_id), {})


def check_models(served: str, models: Mapping[str, str], longest: int | None) -> dict[str, Any]:
    """Refuse models that cannot stand beside the served one; the configuration of the latter.

    Args:
        served: folder or name of the served model.
        models: those of the further ones, by name.
        longest: ``max_model_len``, where it is given.

    Raises:
        ValueError: a model has another vocabulary, is no decoder, or has too few positions; the message names it.
    """
    from transformers import AutoConfig

    main = AutoConfig.from_pretrained(served)
    size = main.get_text_config(decoder=True).vocab_size
    longest = longest or main.get_text_config(decoder=True).max_position_embeddings
    for name, path in models.items():
        if not name or name == SELF or not name.isprintable():
            raise ValueError(f"models: {name!r} is no name for a model; give one such as amateur")
        config = AutoConfig.from_pretrained(path)
        text = config.get_text_config(decoder=True)
        if getattr(config, "is_encoder_decoder", False) or text is not config:
            raise ValueError(f"model {name}={path}: {config.model_type} is no model of text alone; name another")
        if text.vocab_size != size:
            raise ValueError(
                f"model {name}={path} has {text.vocab_size} tokens in its vocabulary and the served model {size}; "
                "their next-token distributions cannot be combined: use models that share a tokenizer"
            )
        positions = getattr(text, "max_position_embeddings", None)
        if positions is not None and longest is not None and longest > positions:
            raise ValueError(f"model {name}={path} has {positions} positions; set max_model_len to {positions} or less")
    return {"architectures": list(main.architectures or ())}


REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "enforce_eager": ((None, True), "graphs and compiled passes were not tested with them"),
    "enable_lora": ((None, False), "adapters were not tested with them"),
    "quantization": ((None,), "quantised weights were not tested with them"),
    "load_format": ((None, "auto", "safetensors", "hf"), "their weights are read as safetensors"),
    "hf_overrides": ((None, {}), "it is taken by them"),
    "tokenizer_mode": ((None, "auto", "hf"), "they were tested with tokenizers of transformers"),
}
"""Options of an engine that were not tested with further models: the values that were, and why."""


def engine_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an engine that holds further models, from those that were given.

    Raises:
        ValueError: one was not tested with them; the message names it.
    """
    for name, (tested, reason) in REFUSED.items():
        if options.get(name) not in tested:
            raise ValueError(f"{name}={options[name]!r} does not work with further models: {reason}; leave it out")
    return {**options, "enforce_eager": True, "hf_overrides": {"architectures": [TWIN]}}
