"""Further models beside one: by name, or adapters of it (PEFT), which share its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..forward.low_rank import is_adapter, with_adapter
from .loading import load


def adapters(model: Any, folders: Mapping[str, str | os.PathLike[str]]) -> dict[str, Any]:
    """A model for each adapter, for ``models=`` of :func:`textguide.generate`.

    Each is a copy of the structure of ``model`` around the same parameters, with the adapter put into the copy: several
    adapters cost their own weights alone, all of them can be read in one step, and ``model`` stays as it is.

    Args:
        model: the base model, without an adapter of its own.
        folders: what ``save_pretrained`` of a PEFT model wrote, by the name that a guidance gives it.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: a folder holds no adapter that fits the model.
        ValueError: ``model`` has adapters itself.

    Example:
        >>> experts = textguide.models.adapters(model, {"law": "lora-law", "code": "lora-code"})
        >>> guidance = ExpertEnsemble(("law", "code"), prior=(0, 1, 1))
        >>> textguide.generate(model, tokenizer, prompts, guidance, models=experts)
    """
    if hasattr(model, "peft_config"):
        raise ValueError("model has adapters itself; load the base model without them and name each by its folder")
    return {name: with_adapter(model, folder, name) for name, folder in folders.items()}


def load_further(model: Any, named: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The models that are named, by the name that a guidance gives each.

    Args:
        model: the model that is decoded; a folder of an adapter is one of its adapters.
        named: folders and what :func:`textguide.load` takes; models stay as they are.
        **options: of :func:`textguide.load`.
    """
    own = {name: one for name, one in named.items() if isinstance(one, (str, os.PathLike)) and is_adapter(one)}
    found = {} if not own else adapters(model, own)
    for name, one in named.items():
        if name not in own:
            found[name] = load(one, **options)[0] if isinstance(one, str) else one
    return found
