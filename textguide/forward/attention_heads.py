"""Attention heads by layer and number: which of them copy, and layers in which some are masked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .model_adapter import adapter
from .module_copies import copy_with_own_hooks, separate_hooks

PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
"""The names that models give to the projection after the heads of a layer."""
NEEDLE = 24
"""Number of tokens that are copied in a test."""
HAY = 40
"""Number of tokens around them."""
TRIALS = 8
"""Number of texts."""

_scores: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()


def attention_of(layer: Any) -> tuple[Any, str]:
    """The attention of a decoder layer, and the name of its output projection.

    Raises:
        ValueError: no module of it has an output projection with a known name.
    """
    for module in layer.modules():
        named = [name for name in PROJECTIONS if name in module._modules]
        if hasattr(module, "layer_idx") and named:
            return module, named[0]
    raise ValueError(
        f"{type(layer).__name__} has no attention with separate heads (an output projection named "
        f"{', '.join(PROJECTIONS)}); use a guidance that does not mask heads"
    )


def mask_heads(projection: Any, heads: Sequence[int], count: int) -> Any:
    """A copy of an output ``projection`` that reads 0 from ``heads``, of ``count`` heads."""
    copied = copy_with_own_hooks(projection)

    def mask(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = args[0].unflatten(-1, (count, -1)).clone()
        inputs[..., list(heads), :] = 0
        return (inputs.flatten(-2), *args[1:])

    copied.register_forward_pre_hook(mask)
    return copied


def observe(attention: Any, config: Any, observer: Callable[[Tensor], None]) -> None:
    """Let a copied ``attention`` compute its weights one by one, as ``config`` specifies, and pass them on.

    Args:
        observer: called with the weights, (R, H, T, T), of every pass.
    """
    if hasattr(attention, "config"):
        attention.config = config

    def hook(_: Any, __: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else ()
        weights = [part for part in parts if isinstance(part, Tensor) and part.dim() == 4]
        if not weights:
            raise ValueError(
                f"{type(attention).__name__} does not return its attention weights, so its retrieval heads cannot be "
                "found; name them by heads="
            )
        observer(weights[-1])

    separate_hooks(attention).register_forward_hook(hook)


def retrieval_heads(model: Any, count: int, score: Callable[[Any], Tensor]) -> tuple[tuple[int, int], ...]:
    """The heads that copy most, as pairs of layer and number.

    Args:
        count: how many; fewer are returned if fewer copy at all.
        score: returns the scores of a model, (layers, heads); it is called once per model.

    Raises:
        ValueError: no head copies.
    """
    base = adapter(model).base
    if base not in _scores:
        _scores[base] = score(base)
    scores = _scores[base]
    flat = scores.flatten()
    order = flat.sort(descending=True, stable=True).indices[:count].tolist()
    heads = tuple(divmod(number, scores.shape[1]) for number in order if flat[number] > 0)
    if not heads:
        raise ValueError(
            f"no attention head of {type(base).__name__} copies from the text, so there are no retrieval heads to "
            "mask; name some by heads="
        )
    return heads


class CopyTest:
    """A pass over texts in which some tokens occur twice, and how often each head finds their first occurrence.

    The retrieval score of arXiv 2404.15574 (section 2): of the tokens that a text copies from itself, the share for
    which a head attends most to the first occurrence while the copy is generated. In the paper the model copies a
    sentence of a long text to answer a question. Here :data:`NEEDLE` random tokens occur among others and again at the
    end, so that no tokenizer is needed and the score does not depend on what the model would generate.

    Args:
        vocabulary: number of tokens.
        limit: the number of tokens that the model has positions for; None: any number.
    """

    def __init__(self, vocabulary: int, limit: int | None) -> None:
        random = torch.Generator().manual_seed(0)
        share = 1.0 if limit is None else min(1.0, limit / (2 * NEEDLE + HAY))
        needle = max(2, int(NEEDLE * share))
        hay = int(HAY * share)
        starts = torch.arange(TRIALS) * hay // TRIALS
        rows = []
        for start in starts.tolist():
            tokens = torch.randint(vocabulary, (needle + hay,), generator=random)
            copied = tokens[:needle]
            around = tokens[needle:]
            rows.append(torch.cat([around[:start], copied, around[start:], copied]))
        self.ids = torch.stack(rows)
        self.needle = needle
        # After a query comes the token whose first occurrence is the target.
        self._queries = torch.arange(needle + hay, 2 * needle + hay - 1)
        self._targets = starts[:, None] + torch.arange(1, needle)
        self._shares: list[Tensor] = []

    def observe(self, weights: Tensor) -> None:
        """Record the attention weights of one layer, (R, H, T, T); called for each layer in order."""
        most = weights.detach()[:, :, self._queries.to(weights.device)].argmax(-1).cpu()
        self._shares.append((most == self._targets[:, None]).double().mean((0, 2)))

    def scores(self) -> Tensor:
        """The share of each head, (layers, heads)."""
        return torch.stack(self._shares)
