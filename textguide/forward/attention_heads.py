"""Attention heads by layer and number: which of them copy, and layers in which some are silent."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .model_adapter import adapter
from .module_copies import hooked_twin, own_hooks

PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
"""What models call the projection behind the heads of a layer."""
NEEDLE, HAY, TRIALS = 24, 40, 8
"""Tokens that are to be copied, tokens around them, and how often."""

_known: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()


def attention_of(layer: Any) -> tuple[Any, str]:
    """The attention of a decoder layer, and the name of its output projection.

    Raises:
        ValueError: it has none that is known.
    """
    for module in layer.modules():
        named = [name for name in PROJECTIONS if name in module._modules]
        if hasattr(module, "layer_idx") and named:
            return module, named[0]
    raise ValueError(
        f"{type(layer).__name__} has no attention whose heads can be told apart (an output projection called "
        f"{', '.join(PROJECTIONS)}); use a guidance that masks none"
    )


def silenced(projection: Any, heads: Sequence[int], count: int) -> Any:
    """A twin of an output ``projection`` that reads 0 from ``heads`` among ``count``."""
    twin = hooked_twin(projection)

    def silence(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        read = args[0].unflatten(-1, (count, -1)).clone()
        read[..., list(heads), :] = 0
        return (read.flatten(-2), *args[1:])

    twin.register_forward_pre_hook(silence)
    return twin


def watch(attention: Any, config: Any, see: Callable[[Tensor], None]) -> None:
    """Let ``attention``, a twin, compute its weights (R, H, T, T) one by one as ``config`` says, and show them."""
    if hasattr(attention, "config"):
        attention.config = config

    def look(_: Any, __: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else ()
        weights = [part for part in parts if isinstance(part, Tensor) and part.dim() == 4]
        if not weights:
            raise ValueError(
                f"{type(attention).__name__} does not hand out its weights, so that it cannot be seen which heads "
                "retrieve; name them by heads="
            )
        see(weights[-1])

    own_hooks(attention).register_forward_hook(look)


def retrieval_heads(model: Any, count: int, scored: Callable[[Any], Tensor]) -> tuple[tuple[int, int], ...]:
    """The ``count`` heads that copy most (fewer where no more copy at all), as pairs of layer and number.

    Args:
        scored: gives the scores (layers, heads) of a model; it is called once for each.

    Raises:
        ValueError: no head copies.
    """
    base = adapter(model).base
    if base not in _known:
        _known[base] = scored(base)
    scores = _known[base]
    order = scores.flatten().sort(descending=True, stable=True).indices[:count].tolist()
    found = tuple(divmod(place, scores.shape[1]) for place in order if scores.flatten()[place] > 0)
    if not found:
        raise ValueError(
            f"no attention head of {type(base).__name__} copies what it is shown, so that none can be masked for it; "
            "name some by heads="
        )
    return found


class CopyTest:
    """A pass over texts in which some tokens stand twice, and how often each head finds the first of them.

    The retrieval score of arXiv 2404.15574 (section 2): of the tokens that a text copies from itself, the share at
    whose first occurrence a head looks most while the copy is written. There the model copies a sentence out of a long
    text, as an answer to a question; here :data:`NEEDLE` random tokens stand among others and again at the end, so that
    no tokenizer is needed and what the model would write makes no difference.

    Args:
        vocabulary: number of tokens.
        limit: the most tokens that the model has positions for; None: any number.
    """

    def __init__(self, vocabulary: int, limit: int | None) -> None:
        random = torch.Generator().manual_seed(0)
        share = 1.0 if limit is None else min(1.0, limit / (2 * NEEDLE + HAY))
        needle, hay = max(2, int(NEEDLE * share)), int(HAY * share)
        starts = torch.arange(TRIALS) * hay // TRIALS
        rows = []
        for start in starts.tolist():
            tokens = torch.randint(vocabulary, (needle + hay,), generator=random)
            rows.append(torch.cat([tokens[needle:][:start], tokens[:needle], tokens[needle:][start:], tokens[:needle]]))
        self.ids, self.needle = torch.stack(rows), needle
        # The token at a query is followed by the one whose first occurrence is the target.
        self._queries = torch.arange(needle + hay, 2 * needle + hay - 1)
        self._targets = starts[:, None] + torch.arange(1, needle)
        self._found: list[Tensor] = []

    def see(self, weights: Tensor) -> None:
        """What one layer attends to, (R, H, T, T); layers come in their order."""
        most = weights.detach()[:, :, self._queries.to(weights.device)].argmax(-1).cpu()
        self._found.append((most == self._targets[:, None]).double().mean((0, 2)))

    def scores(self) -> Tensor:
        """The share of each head, (layers, heads)."""
        return torch.stack(self._found)
