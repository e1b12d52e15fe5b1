"""Views of a model: modules that share its weights and run some of its layers, or all of them with a change inside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..forward import attention_heads, low_rank, prefill, steering_vectors
from ..forward.model_adapter import ModelAdapter, adapter
from ..forward.module_copies import shallow_copy
from ..guidance.base import SELF, Branch
from ..guidance.views import Adapted, MaskedHeads, Steered, View

ModelPart = tuple[str, View | None]
"""A model by its name, and what is run of it (None: all)."""


def model_parts(
    model: Any, models: Mapping[str, Any] | None, branches: Iterable[Branch], own: View | None = None
) -> dict[ModelPart, Any]:
    """The module of every branch, and that of the conditional pass under ``(SELF, own)``.

    Args:
        own: what the conditional pass runs of ``model``.

    Raises:
        ValueError: a branch names a model that was not passed, or a part that its model does not have.
    """
    named = {SELF: model, **(models or {})}
    parts: dict[ModelPart, Any] = {(SELF, own): model if own is None else part(model, own)}
    for branch in branches:
        if branch.model not in named:
            known = ", ".join(repr(name) for name in named if name) or "none"
            raise ValueError(f"branch model {branch.model!r} is not among models= (given: {known})")
        if branch.model_part not in parts:
            whole = named[branch.model]
            parts[branch.model_part] = whole if branch.view is None else part(whole, branch.view)
    return parts


# -- views that only look ------------------------------------------------------------------------------------------


@torch.no_grad()
def residual_streams(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """The output of every layer for ``rows``, token ids of one length: (layers, R, T, width) on the CPU."""
    outputs: dict[int, Tensor] = {}
    whole = part(model, _Recorded(outputs))
    ids = torch.tensor([list(row) for row in rows], device=adapter(model).device)
    prefill.read_padded(whole, ids, None)
    return torch.stack([outputs[layer] for layer in sorted(outputs)])


@torch.no_grad()
def copying_heads(model: Any) -> Tensor:
    """How much every attention head copies, (layers, heads) in [0, 1]: see :class:`.attention_heads.CopyTest`."""
    known = adapter(model)
    test = attention_heads.CopyTest(known.base.get_input_embeddings().weight.shape[0], known.max_positions)
    prefill.read_padded(part(model, _WithAttentionWeights(test.observe)), test.ids.to(known.device), None)
    return test.scores()


@dataclass(frozen=True, eq=False)
class _Recorded(View):
    """All layers; their outputs are stored in ``outputs`` by their numbers."""

    outputs: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class _WithAttentionWeights(View):
    """All layers; their attention weights are passed to ``observe``."""

    observe: Callable[[Tensor], None]


# -- building a view -----------------------------------------------------------------------------------------------


def part(model: Any, view: View) -> Any:
    """A module with the interface of ``model`` that runs what ``view`` describes; its parameters are the model's own.

    Raises:
        ValueError: the model has no list of layers, the view leaves none of them, or the model does not have what it
            changes.
    """
    known = adapter(model)
    model = known.base
    if isinstance(view, Adapted):
        return low_rank.adapted(model, view.folder, view.scale)
    # A recurrent model without some of its layers needs another kind of cache, and not all of its layers have heads.
    keeps_layers = isinstance(view, (Steered, _Recorded))
    if known.is_encoder_decoder or (known.has_recurrent_state and not keeps_layers):
        raise ValueError(
            f"{type(view).__name__} needs a decoder-only transformer, and {type(model).__name__} is not one; use a "
            "guidance whose branches run the whole model"
        )
    config = known.text_config
    path = _path_of_layers(model, config.num_hidden_layers)
    chosen = view.layers(config.num_hidden_layers)
    smaller, text = _config_with_layers(model.config, chosen)
    whole, parent = _copy_along(model, path, smaller, text)
    name = path[-1]
    layers = nn.ModuleList(_renumbered(parent._modules[name][old], new) for new, old in enumerate(chosen))
    parent._modules[name] = layers
    whole.textguide_movement = _change(known, view, layers, text)
    adapter(whole).adopt(known)
    return whole


def movement_of(module: Any) -> float:
    """How far a steered module, made by :func:`part`, has moved its hidden states so far; 0 for other modules."""
    movement = getattr(module, "textguide_movement", None)
    return 0.0 if movement is None else movement.mean


def _path_of_layers(model: Any, count: int) -> list[str]:
    """The names that lead from ``model`` to its list of ``count`` layers.

    Raises:
        ValueError: it has none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and _is_numbered(module[0]):
            return name.split(".")
    raise ValueError(f"{type(model).__name__} has no list of {count} layers that could be run in part")


def _config_with_layers(config: Any, chosen: Sequence[int]) -> tuple[Any, Any]:
    """A copy of a model's configuration for the layers ``chosen``, and the text configuration in it."""
    smaller = copy.deepcopy(config)
    text = smaller.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None)
    if types is not None and list(chosen) != list(range(text.num_hidden_layers)):
        text.layer_types = [types[layer] for layer in chosen]
    text.num_hidden_layers = len(chosen)
    return smaller, text


def _copy_along(model: Any, path: Sequence[str], config: Any, text: Any) -> tuple[Any, Any]:
    """Copies of the modules from ``model`` to the parent of its layers: the first and the last of them.

    Args:
        path: the names from the model to its list of layers.
        config: the configuration that the copies get.
        text: the one that they get if they had the model's text configuration.
    """
    own_text = model.config.get_text_config(decoder=True)
    whole = shallow_copy(model)
    whole.config = config
    parent = whole
    for name in path[:-1]:
        child = shallow_copy(parent._modules[name])
        if hasattr(child, "config"):
            child.config = text if child.config is own_text else config
        parent._modules[name] = child
        parent = child
    return whole, parent


def _change(known: ModelAdapter, view: View, layers: Any, config: Any) -> steering_vectors.Movement | None:
    """Put what ``view`` changes into ``layers``, copies of the layers of ``known`` with their own ``config``.

    Returns:
        Records how far hidden states are moved, if the view adds something to them.
    """
    if isinstance(view, Steered):
        movement = steering_vectors.Movement()
        numbers = view.places(len(layers))
        for number, direction in steering_vectors.directions_for(known.base, view.vector, numbers).items():
            layers[number] = steering_vectors.add_to_output(layers[number], view.strength * direction, movement)
        return movement
    if isinstance(view, _Recorded):
        for number, layer in enumerate(layers):
            layers[number] = steering_vectors.record_output(layer, view.outputs, number)
    elif isinstance(view, MaskedHeads):
        heads = view.heads
        if heads is None:
            heads = attention_heads.retrieval_heads(known.base, view.count, copying_heads)
        view.check(heads, len(layers), config.num_attention_heads)
        for number in {layer for layer, _ in heads}:
            attention, name = attention_heads.attention_of(layers[number])
            masked = [head for layer, head in heads if layer == number]
            projection = attention._modules[name]
            attention._modules[name] = attention_heads.mask_heads(projection, masked, config.num_attention_heads)
    elif isinstance(view, _WithAttentionWeights):
        # Other implementations do not compute the weights one by one.
        config._attn_implementation = "eager"
        for layer in layers:
            attention_heads.observe(attention_heads.attention_of(layer)[0], config, view.observe)
    return None


def _is_numbered(module: nn.Module) -> bool:
    """Whether it contains a module with a ``layer_idx``, its number in the cache."""
    return any(hasattr(inner, "layer_idx") for inner in module.modules())


def _renumbered(module: Any, number: int) -> Any:
    """A copy of a layer with another number in the cache."""
    if not _is_numbered(module):
        return module
    copied = shallow_copy(module)
    if hasattr(copied, "layer_idx"):
        copied.layer_idx = number
    for name, child in copied._modules.items():
        if child is not None:
            copied._modules[name] = _renumbered(child, number)
    return copied
