"""Captioning: guidance toward specific captions (arXiv 2307.16686)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conditions import Captioning
    from .generation import caption
    from .images import read_image, read_images
    from .loading import bundled, load
    from .vocabulary_map import VocabularyMap

# Imported on first use: the decoding loop imports this room, and captions are made by the loop.
_HOMES = {
    "Captioning": "conditions",
    "VocabularyMap": "vocabulary_map",
    "bundled": "loading",
    "caption": "generation",
    "load": "loading",
    "read_image": "images",
    "read_images": "images",
}

__all__ = ["Captioning", "VocabularyMap", "bundled", "caption", "load", "read_image", "read_images"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
