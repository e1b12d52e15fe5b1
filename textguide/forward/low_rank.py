"""Adapters of PEFT on a model: put into a copy that shares its weights, or into the weights."""

from __future__ import annotations

import copy
import json
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..support.errors import MissingExtraError, ModelUnavailableError
from .model_adapter import adapter
from .steering_vectors import model_fingerprint

CONFIG = "adapter_config.json"
"""The file by which a folder of an adapter is known."""
CARD = "distillation.json"
"""What ``textguide distill`` writes beside an adapter."""
_KEPT: weakref.WeakKeyDictionary[Any, dict[tuple[str, int, float], Any]] = weakref.WeakKeyDictionary()
"""Models with adapters by card, when it was written, and γ, as long as the model lives."""


def is_adapter(folder: Any) -> bool:
    """Whether ``folder`` holds an adapter."""
    return (Path(folder).expanduser() / CONFIG).is_file()


def peft(what: str = "loading an adapter") -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "adapters", what) from error
    return peft


@contextmanager
def parameters_as_they_were(model: Any) -> Iterator[None]:
    """Undo what PEFT does to the parameters that it puts an adapter around: it freezes them."""
    trained = [parameter.requires_grad for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(flag)


def sharing(model: Any) -> Any:
    """A copy of the structure of ``model`` around the same parameters and buffers."""
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def with_adapter(model: Any, folder: Any, name: str | None = None) -> Any:
    """The ``PeftModel`` of the adapter in ``folder`` around a copy that shares the weights of ``model``.

    Args:
        name: what the user calls the adapter, for errors.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: the folder holds no adapter that fits the model.
    """
    called = f"adapter {name!r} of {folder}" if name else f"the adapter {str(folder)!r}"
    with _fitting(model, folder, called) as load:
        return load(sharing(model))


@contextmanager
def _fitting(model: Any, folder: Any, called: str) -> Iterator[Callable[[Any], Any]]:
    """What puts the adapter in ``folder`` into a model; its errors, and those of the block, are told of ``called``."""
    library = peft()
    path = Path(folder).expanduser()
    if not is_adapter(path):
        raise ModelUnavailableError(f"{called} has no {CONFIG}; name a folder that PEFT wrote")
    with parameters_as_they_were(model), warnings.catch_warnings():
        # PEFT asks transformers for an attribute by its older name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        try:
            yield lambda into: library.PeftModel.from_pretrained(into, str(path)).eval()
        except Exception as error:  # a file that is damaged, or layers that the model does not have
            reason = " ".join(str(error).split())[:300]
            raise ModelUnavailableError(f"{called} does not fit the model: {reason}") from error


def set_strength(module: Any, strength: float, name: str = "default") -> None:
    """Multiply what the adapter adds by ``strength``, of what it was trained with."""
    for layer in module.modules():
        if hasattr(layer, "set_scale") and name in getattr(layer, "scaling", {}):
            layer.set_scale(name, strength)


def card(model: Any, folder: Any) -> dict[str, Any]:
    """What ``textguide distill`` wrote of the adapter in ``folder``.

    Raises:
        ValueError: it wrote nothing there, or the adapter belongs to another model than ``model``.
    """
    path = Path(folder).expanduser() / CARD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        strength_of(found, 1.0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"distilled={str(folder)!r} holds no {CARD}; train an adapter with 'textguide distill'"
        ) from error
    if found["model_fingerprint"] != model_fingerprint(model):
        raise ValueError(
            f"distilled={str(folder)!r} was trained for {found['model']}, and this is another "
            f"{type(adapter(model).base).__name__}; train one for it"
        )
    return dict(found)


def strength_of(card: Mapping[str, Any], scale: float) -> float:
    """How strong the adapter is at γ: 0 at 1, and 1 at the scale that it was trained for."""
    return (scale - 1.0) / (float(card["scale"]) - 1.0)


def adapted(model: Any, folder: str, scale: float) -> Any:
    """``model`` with the adapter in ``folder`` at γ = ``scale``; one for as long as the model lives and the file stays.

    Raises:
        ValueError: ``textguide distill`` did not write it, or wrote it for another model.
    """
    path = Path(folder).expanduser().resolve() / CARD
    kept = _KEPT.setdefault(model, {})
    key = (str(path), path.stat().st_mtime_ns if path.is_file() else 0, scale)
    if key not in kept:
        strength = strength_of(card(model, folder), scale)
        module = with_adapter(model, folder).get_base_model()
        adapter(module).adopt(adapter(model))
        set_strength(module, strength)
        kept[key] = module
    return kept[key]


def merged(model: Any, folder: Any, scale: float | None = None) -> Any:
    """``model`` with the adapter in ``folder`` added to its weights, so that it costs nothing.

    Args:
        scale: γ, for an adapter that ``textguide distill`` wrote; None: what it was trained for.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: the folder holds no adapter that fits the model.
        ValueError: ``scale`` is given for another kind of adapter, or the adapter belongs to another model.
    """
    strength = 1.0
    if scale is not None or (Path(folder).expanduser() / CARD).is_file():
        found = card(model, folder)
        strength = 1.0 if scale is None else strength_of(found, scale)
    with _fitting(model, folder, f"adapter={str(folder)!r}") as load:
        wrapped = load(model)
        set_strength(wrapped, strength)
        return wrapped.merge_and_unload()
