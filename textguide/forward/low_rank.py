"""PEFT adapters of a model: added to a copy that shares its weights, or merged into the weights."""

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
"""The file that every folder of an adapter has."""
CARD = "distillation.json"
"""The file that ``textguide distill`` writes next to an adapter."""
_adapted_models: weakref.WeakKeyDictionary[Any, dict[tuple[str, int, float], Any]] = weakref.WeakKeyDictionary()
"""For each model its copies with adapters, by the path of the card, the time it was written, and γ."""


def is_adapter(folder: Any) -> bool:
    """Whether ``folder`` is the folder of an adapter."""
    return (Path(folder).expanduser() / CONFIG).is_file()


def peft(what: str = "loading an adapter", extra: str = "adapters") -> Any:
    """The package ``peft``.

    Args:
        what: what it is needed for, for the error message.
        extra: the extra that the message names.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", extra, what) from error
    return peft


@contextmanager
def parameters_as_they_were(model: Any) -> Iterator[None]:
    """Restore ``requires_grad`` of all parameters at the end, because PEFT freezes those of the base model."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def copy_sharing_weights(model: Any) -> Any:
    """A copy of ``model`` with the same parameters and buffers."""
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def with_adapter(model: Any, folder: Any, name: str | None = None) -> Any:
    """The ``PeftModel`` of the adapter in ``folder`` around a copy that shares the weights of ``model``.

    Args:
        name: the user's name of the adapter, for error messages.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: the folder has no adapter that fits the model.
    """
    label = f"adapter {name!r} of {folder}" if name else f"the adapter {str(folder)!r}"
    with _loader(model, folder, label) as load:
        return load(copy_sharing_weights(model))


@contextmanager
def _loader(model: Any, folder: Any, label: str) -> Iterator[Callable[[Any], Any]]:
    """A function that adds the adapter in ``folder`` to a model.

    Args:
        label: names the adapter in error messages, also in those for errors of the ``with`` block.
    """
    library = peft()
    path = Path(folder).expanduser()
    if not is_adapter(path):
        raise ModelUnavailableError(f"{label} has no {CONFIG}; name a folder that PEFT wrote")
    with parameters_as_they_were(model), warnings.catch_warnings():
        # PEFT uses the older name of an attribute of transformers.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        try:
            yield lambda into: library.PeftModel.from_pretrained(into, str(path)).eval()
        except Exception as error:  # a file that is damaged, or layers that the model does not have
            reason = " ".join(str(error).split())[:300]
            raise ModelUnavailableError(f"{label} does not fit the model: {reason}") from error


def set_strength(module: Any, strength: float, name: str = "default") -> None:
    """Set the strength of an adapter, relative to the strength that it was trained with."""
    for layer in module.modules():
        if hasattr(layer, "set_scale") and name in getattr(layer, "scaling", {}):
            layer.set_scale(name, strength)


def card(model: Any, folder: Any) -> dict[str, Any]:
    """The card that ``textguide distill`` wrote for the adapter in ``folder``.

    Raises:
        ValueError: there is none, or the adapter belongs to another model than ``model``.
    """
    path = Path(folder).expanduser() / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        strength_of(content, 1.0)  # fails if the card has no scale
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"distilled={str(folder)!r} has no {CARD}; train an adapter with 'textguide distill'"
        ) from error
    if content["model_fingerprint"] != model_fingerprint(model):
        raise ValueError(
            f"distilled={str(folder)!r} was trained for {content['model']}, and this is another "
            f"{adapter(model).name}; train one for it"
        )
    return dict(content)


def strength_of(card: Mapping[str, Any], scale: float) -> float:
    """The strength of an adapter at γ = ``scale``: 0 at γ = 1, and 1 at the scale that it was trained for."""
    return (scale - 1.0) / (float(card["scale"]) - 1.0)


def adapted(model: Any, folder: str, scale: float) -> Any:
    """``model`` with the adapter in ``folder`` at γ = ``scale``. It is loaded once, until the file changes.

    Raises:
        ValueError: ``textguide distill`` did not write it, or wrote it for another model.
    """
    path = Path(folder).expanduser().resolve() / CARD
    written = path.stat().st_mtime_ns if path.is_file() else 0
    copies = _adapted_models.setdefault(model, {})
    key = (str(path), written, scale)
    if key not in copies:
        strength = strength_of(card(model, folder), scale)
        module = with_adapter(model, folder).get_base_model()
        adapter(module).adopt(adapter(model))
        set_strength(module, strength)
        copies[key] = module
    return copies[key]


def merged(model: Any, folder: Any, scale: float | None = None) -> Any:
    """Merge the adapter in ``folder`` into the weights of ``model``, so that it costs nothing at inference.

    Args:
        scale: γ, for an adapter that ``textguide distill`` wrote; None: the γ that it was trained for.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: the folder has no adapter that fits the model.
        ValueError: ``scale`` was passed for another kind of adapter, or the adapter belongs to another model.
    """
    strength = 1.0
    if scale is not None or (Path(folder).expanduser() / CARD).is_file():
        content = card(model, folder)  # also if scale is None: it refuses adapters of other models
        strength = 1.0 if scale is None else strength_of(content, scale)
    with _loader(model, folder, f"adapter={str(folder)!r}") as load:
        wrapped = load(model)
        set_strength(wrapped, strength)
        return wrapped.merge_and_unload()
