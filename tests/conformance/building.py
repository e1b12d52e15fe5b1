"""Tiny random models of any class of transformers."""

from __future__ import annotations

from typing import Any

import torch

from .classes import ModelClass
from .shrinking import shrink
from .overrides import OVERRIDES

LARGEST = 6_000_000


class BuildError(Exception):
    """A tiny model cannot be made; the message says why."""


def configuration(entry: ModelClass) -> Any:
    kind = entry.load()
    default = kind.config_class()
    own = OVERRIDES.get(entry.name, OVERRIDES.get(entry.family, {}))
    exact = {}
    if entry.mapping == "causal" and hasattr(default, "is_decoder"):
        exact["is_decoder"] = True
    return shrink(default, own, exact)


def count_parameters(entry: ModelClass, config: Any) -> int:
    with torch.device("meta"):
        model = entry.load()(config)
    return sum(p.numel() for p in model.parameters())
