"""Views of a model: modules that share its weights and run some of its layers, or all of them with a change inside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.base import SELF, Branch
from ..guidance.views import Adapted, MaskedHeads, Steered, View
from . import attention_heads, low_rank, prefill, steering_vectors
from .model_adapter import adapter
from .module_copies import twin_of

ModelPart = tuple[str, View | None]
"""A model by its name, and what is run of it (None: all)."""


def model_parts(
    model: Any, models: Mapping[str, Any] | None, branches: Iterable[Branch], own: View | None = None
) -> dict[ModelPart, Any]:
    """The module of every branch's part, and that of the conditional pass under ``(SELF, own)``.

    Args:
        own: what the conditional pass runs of ``model``.

    Raises:
        ValueError: a branch names a model that is not given, or a part that its model has not.
    """
    named = {SELF: model, **(models or {})}
    found: dict[ModelPart, Any] = {(SELF, own): model if own is None else part(model, own)}
    for branch in branches:
        if branch.model not in named:
            known = ", ".join(repr(name) for name in named if name) or "none"
            raise ValueError(f"branch model {branch.model!r} is not among models= (given: {known})")
        if branch.model_part not in found:
            whole = named[branch.model]
            found[branch.model_part] = whole if branch.view is None else part(whole, branch.view)
    return found


@torch.no_grad()
def residual_streams(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """What every layer hands on while ``rows``, token ids of one length, are read: (layers, R, T, width) on the CPU."""
    recorded: dict[int, Tensor] = {}
    whole = part(model, _Recorded(recorded))
    ids = torch.tensor([list(row) for row in rows], device=adapter(model).device)
    prefill.read_padded(whole, ids, None)
    return torch.stack([recorded[layer] for layer in sorted(recorded)])


@torch.no_grad()
def copying_heads(model: Any) -> Tensor:
    """How much every attention head copies, (layers, heads) in [0, 1]: see :class:`.attention_heads.CopyTest`."""
    known = adapter(model)
    test = attention_heads.CopyTest(known.base.get_input_embeddings().weight.shape[0], known.max_positions)
    prefill.read_padded(part(model, _Watched(test.see)), test.ids.to(known.device), None)
    return test.scores()


@dataclass(frozen=True, eq=False)
class _Recorded(View):
    into: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class _Watched(View):
    see: Callable[[Tensor], None]


def part(model: Any, view: View) -> Any:
    """A module with the interface of ``model`` that runs what ``view`` says; its parameters are the model's own.

    Raises:
        ValueError: the layers of the model cannot be told apart, the view leaves none, or what it changes is not there.
    """
    refusal = f"{type(view).__name__} needs a decoder-only transformer, and {type(model).__name__} is none"
    found = adapter(model)
    model = found.base
    if isinstance(view, Adapted):
        return low_rank.adapted(model, view.folder, view.scale)
    # A recurrent model without some of its layers keeps another kind of cache, and not all of its layers have heads.
    keeps_layers = isinstance(view, (Steered, _Recorded))
    if found.is_encoder_decoder or (found.has_recurrent_state and not keeps_layers):
        raise ValueError(f"{refusal}; use a guidance whose branches run the whole model")
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    path = next(
        (
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count and _is_numbered(module[0])
        ),
        None,
    )
    if path is None:
        raise ValueError(f"{type(model).__name__} has no list of {count} layers that could be run in part")
    chosen = view.layers(count)
    smaller = copy.deepcopy(model.config)
    text = smaller.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None)
    if types is not None and chosen != list(range(count)):
        text.layer_types = [types[layer] for layer in chosen]
    text.num_hidden_layers = len(chosen)
    whole = twin_of(model)
    whole.config = smaller
    parent = whole
    *way, last = path.split(".")
    for name in way:
        child = twin_of(parent._modules[name])
        if hasattr(child, "config"):
            child.config = text if child.config is config else smaller
        parent._modules[name] = child
        parent = child
    layers = parent._modules[last]
    parent._modules[last] = nn.ModuleList(_renumbered(layers[old], new) for new, old in enumerate(chosen))
    _change(found.base, view, parent._modules[last], text)
    adapter(whole).adopt(found)
    return whole


def _change(model: Any, view: View, layers: Any, config: Any) -> None:
    """Put what ``view`` changes into ``layers``, twins of those of ``model`` with a ``config`` of their own."""
    if isinstance(view, Steered):
        places = view.places(len(layers))
        for place, direction in steering_vectors.directions_for(model, view.vector, places).items():
            layers[place] = steering_vectors.steered(layers[place], view.strength * direction)
    elif isinstance(view, _Recorded):
        for place, layer in enumerate(layers):
            layers[place] = steering_vectors.recorded(layer, view.into, place)
    elif isinstance(view, MaskedHeads):
        heads = view.heads
        if heads is None:
            heads = attention_heads.retrieval_heads(model, view.count, copying_heads)
        view.check(heads, len(layers), config.num_attention_heads)
        for place in {layer for layer, _ in heads}:
            attention, name = attention_heads.attention_of(layers[place])
            silent = [head for layer, head in heads if layer == place]
            attention._modules[name] = attention_heads.silenced(
                attention._modules[name], silent, config.num_attention_heads
            )
    elif isinstance(view, _Watched):
        config._attn_implementation = "eager"
        for layer in layers:
            attention_heads.watch(attention_heads.attention_of(layer)[0], config, view.see)


def _is_numbered(module: nn.Module) -> bool:
    return any(hasattr(inner, "layer_idx") for inner in module.modules())


def _renumbered(module: Any, number: int) -> Any:
    """The layer, with another place in the cache."""
    if not _is_numbered(module):
        return module
    twin = twin_of(module)
    if hasattr(twin, "layer_idx"):
        twin.layer_idx = number
    for name, child in twin._modules.items():
        if child is not None:
            twin._modules[name] = _renumbered(child, number)
    return twin
