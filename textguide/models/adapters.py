"""Further models for one run: by name, or PEFT adapters of the main model, which share its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..forward.low_rank import is_adapter, with_adapter
from .loading import load

_PATH = (str, os.PathLike)


def adapters(model: Any, folders: Mapping[str, str | os.PathLike[str]]) -> dict[str, Any]:
    """Load a model for each adapter, for ``models=`` of :func:`textguide.generate`.

    Each is a copy of ``model`` with the same parameters, to which the adapter is added. Several adapters only need
    memory for their own weights, all of them can run in one step, and ``model`` does not change.

    Args:
        model: the base model, without an adapter.
        folders: folders that ``save_pretrained`` of a PEFT model wrote, by the names that guidance uses.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: a folder has no adapter that fits the model.
        ValueError: ``model`` already has adapters.

    Example:
        >>> experts = textguide.models.adapters(model, {"law": "lora-law", "code": "lora-code"})
        >>> guidance = ExpertEnsemble(("law", "code"), prior=(0, 1, 1))
        >>> textguide.generate(model, tokenizer, prompts, guidance, models=experts)
    """
    if hasattr(model, "peft_config"):
        raise ValueError("model already has adapters; load the base model without them and pass each adapter's folder")
    return {name: with_adapter(model, folder, name) for name, folder in folders.items()}


def load_further(model: Any, named: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Load the models of the extra branches, by the names that guidance uses.

    Args:
        model: the model that is decoded.
        named: by name: the folder of an adapter of ``model``, a name that :func:`textguide.load` accepts, or a model.
        **options: options of :func:`textguide.load`.
    """
    folders = {name: value for name, value in named.items() if isinstance(value, _PATH) and is_adapter(value)}
    models = adapters(model, folders) if folders else {}
    for name, value in named.items():
        if name not in folders:
            models[name] = load(value, **options)[0] if isinstance(value, str) else value
    return models
