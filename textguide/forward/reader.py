"""A model as a function from tokens to what it computes for them, for loops that generate rows of one length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import caches


def states_reader(model: Any) -> Callable[[Tensor, Any], tuple[Tensor, Tensor, Any]]:
    """A function that reads tokens and returns logits and hidden states.

    Returns:
        A function of new tokens (n, k) and the cache of earlier ones (None: there are none). It returns the logits
        (n, k, V), the last hidden states (n, k, D), and the cache with the new tokens.
    """
    name = caches.cache_argument(model)

    def read(tokens: Tensor, cache: Any) -> tuple[Tensor, Tensor, Any]:
        cache = caches.new_cache(model) if cache is None else cache
        out = model(tokens, use_cache=True, output_hidden_states=True, **{name: cache})
        return out.logits, out.hidden_states[-1], cache

    return read


def scores_reader(model: Any) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """A function that reads tokens and returns the logits after the last one, (n, V), and the cache.

    A prompt that all rows have in common is read once.
    """
    name = caches.cache_argument(model)
    options: dict[str, Any] = {"logits_to_keep": 1} if caches.accepts(model, "logits_to_keep") else {}

    def read(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        rows = len(tokens)
        one_prompt = cache is None and bool((tokens == tokens[:1]).all())
        cache = caches.new_cache(model) if cache is None else cache
        out = model(tokens[:1] if one_prompt else tokens, use_cache=True, **options, **{name: cache})
        if one_prompt:
            caches.select_rows(cache, torch.zeros(rows, dtype=torch.long, device=tokens.device))
        return out.logits[:, -1].expand(rows, -1), cache

    return read
