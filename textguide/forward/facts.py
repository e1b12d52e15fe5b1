"""What padding, chunks and later tokens do to the answers of an architecture: established once, and shipped.

``facts.json`` has an entry for each class of transformers and for each set of configuration switches that changes its
mechanism. ``scripts/conformance.py`` establishes it with tiny models, in float32 and evaluation mode. An entry only
holds for the class itself, as transformers builds it, in the version of transformers in which it was established. All
other models are probed (:mod:`.probes`).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from .probes import Padding

FILE = Path(__file__).with_name("facts.json")

_KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Implementations of attention that compute the same function, padding included."""
_BUILDERS = ("accelerate", "bitsandbytes", "torch", "torchao", "transformers")
"""Packages whose layers work on each token alone if they replace a layer of the class that they derive from."""
_SWITCHES = frozenset({"alibi", "bidirectional", "causal", "chunk", "indexer", "local", "position", "prefix", "window"})
"""Words in the names of fields that change how a token depends on other tokens, whatever other words are there."""
_NO_SWITCHES = frozenset(
    {
        # sizes, names, numbers of tokens
        "architectures", "class", "d", "dim", "dtype", "heads", "id", "ids", "label", "name", "path", "rank",
        "size", "token", "tokens", "version", "vocab",
        # what works on each token alone
        "act", "activation", "bias", "cap", "capping", "embed", "expert", "experts", "ff", "forward", "gate", "gated",
        "layernorm", "mlp", "moe", "norm", "parallel", "proj", "residual", "rms", "routed", "router", "scoring",
        "softcapping", "tie",
        # constants, and what only matters in training or for outputs
        "cache", "checkpointing", "coef", "drop", "dropout", "eps", "factor", "init", "initializer", "jitter",
        "layerdrop", "loss", "multiplier", "output", "problem", "return", "scale", "scaling", "std", "summary",
        "temperature", "theta", "torchscript", "tp", "upcast",
    }
)  # fmt: skip
"""Words in the names of fields that do not."""
_FIXED_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
"""Kinds of rotary embeddings that do not depend on the length of a text."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known about one architecture.

    Args:
        padding: what left padding does to its answers.
        reads_chunks: whether several tokens of a row may be read in one pass after a cache.
        is_causal: whether the logits of a token stay the same when more tokens follow it.
        stays_padded: why rows of different lengths cannot share a pass without padding; empty: they can.
    """

    padding: Padding
    reads_chunks: bool
    is_causal: bool
    stays_padded: str


def shipped(model: Any) -> Facts | None:
    """The shipped facts that hold for ``model``; None if it has to be probed.

    Args:
        model: a transformers model, unwrapped.
    """
    entries = _entries().get(type(model).__name__)
    if entries is None or getattr(model.config, "_attn_implementation", None) not in _KERNELS:
        return None
    found = switches(model.config)
    for entry in entries:
        if entry["switches"] == found and _is_as_built(model):
            return Facts(Padding[entry["padding"]], entry["reads_chunks"], entry["is_causal"], entry["stays_padded"])
    return None


@cache
def _entries() -> dict[str, Any]:
    """The shipped entries by class; none if another version of transformers is installed."""
    if not FILE.exists():
        return {}
    report = json.loads(FILE.read_text(encoding="utf-8"))
    classes: dict[str, Any] = report["classes"]
    return classes if report["transformers"] == transformers.__version__ else {}


def switches(config: Any) -> dict[str, Any]:
    """The switches of ``config`` that differ from those of its class's defaults, as plain values by name."""
    try:
        default = _switches(type(config)())
    except Exception:  # a configuration that cannot be made without arguments
        default = {}
    found = _switches(config)
    return {name: value for name, value in sorted(found.items()) if default.get(name, ...) != value}


def changes(config: Any, word: str) -> bool:
    """Whether ``config`` differs from its class's defaults in a switch that has ``word`` in its name."""
    return any(word in name.split("_") for name in switches(config))


def _switches(config: Any) -> dict[str, Any]:
    """Every switch of ``config`` and of the part that generates text."""
    parts = {"": config, "text_config.": config.get_text_config(decoder=True)}
    if parts["text_config."] is config:
        del parts["text_config."]
    found: dict[str, Any] = {}
    for prefix, part in parts.items():
        found[f"{prefix}model_type"] = part.model_type
        for name in _fields(part):
            value = _switch(name, _value(part, name))
            if value is not ...:
                found[prefix + name] = value
    return found


def _fields(config: Any) -> list[str]:
    """The fields that the class of ``config`` has in addition to those of all configurations."""
    names = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else vars(config)
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"is_encoder_decoder"}
    return [name for name in names if not name.startswith("_") and name not in common]


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return "one per layer"  # which transformers does not return as one value


def _switch(name: str, value: Any) -> Any:
    """The value of a field as far as it is a switch; ``...`` if it is none."""
    if name.startswith("rope_"):
        return _rope(value) if isinstance(value, Mapping) else ...
    words = set(name.split("_"))
    if isinstance(value, torch.dtype) or name == "text_config" or (words & _NO_SWITCHES and not words & _SWITCHES):
        return ...
    if isinstance(value, PreTrainedConfig):
        return value.model_type or _inside(value)
    return _reduced(value)


def _inside(config: Any) -> dict[str, Any]:
    """The switches of a configuration inside another one."""
    found = {name: _switch(name, _value(config, name)) for name in _fields(config)}
    return {name: value for name, value in found.items() if value is not ...}


def _reduced(value: Any) -> Any:
    """``value`` without the sizes of its numbers: only whether they are 0 matters."""
    if isinstance(value, Mapping):
        return {str(name): one for name, one in value.items() if isinstance(one, (bool, str))}
    if isinstance(value, (list, tuple)):
        return sorted({one if isinstance(one, str) else type(one).__name__ for one in value})
    if isinstance(value, (bool, str)) or value is None:
        return value
    return 0 if value == 0 else "some"


def _rope(rules: Mapping[str, Any]) -> list[str]:
    """The kinds of rotary embeddings, without those that only have other constants."""
    kinds = set()
    for rule in (rules, *(one for one in rules.values() if isinstance(one, Mapping))):
        kind = rule.get("rope_type", rule.get("type", "default"))
        kinds.add("fixed" if kind in _FIXED_ROPE else str(kind))
    return sorted(kinds)


def _is_as_built(model: Any) -> bool:
    """Whether ``model`` is what transformers builds from its configuration: no hook, no replaced part, no subclass."""
    kind = type(model)
    if getattr(transformers, kind.__name__, None) is not kind:
        return False
    if "prepare_inputs_for_generation" in vars(model) or not all(map(_is_plain, model.modules())):
        return False
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = kind(copy.deepcopy(model.config))
    except Exception:  # it cannot be built from its configuration alone
        return False
    parts = dict(model.named_modules())
    others = dict(expected.named_modules())
    return parts.keys() == others.keys() and all(_is_like(parts[name], others[name]) for name in parts)


def _is_plain(module: Any) -> bool:
    """Whether calling ``module`` runs the ``forward`` of its class, which is that of torch or transformers."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):  # accelerate moves weights
        return False
    return _package(type(module).forward) in _BUILDERS


def _is_like(module: Any, other: Any) -> bool:
    return type(module) is type(other) or (isinstance(module, type(other)) and _package(type(module)) in _BUILDERS)


def _package(thing: Any) -> str:
    return str(thing.__module__).split(".")[0]
