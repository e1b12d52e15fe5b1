"""Steering vectors: a direction for every layer of one model, as a value and as a file, and what adds them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support import files
from .model_adapter import adapter
from .module_copies import hooked_twin

FILE = "steering.safetensors"
FORMAT = "textguide steering vector"
VERSION = "1"
BUNDLED = {"smollm2-positive": Path(__file__).parent / "vectors" / "smollm2-positive"}
"""Vectors that come with textguide, by name: towards good moods in the bundled model (docs/methods/steering.md)."""
SAMPLED = 256
"""Rows of the embedding that tell one model from another."""


def model_fingerprint(model: Any) -> str:
    """Sixteen hexadecimal digits of a model's width, depth and embeddings; the same in float32 and bfloat16."""
    known = adapter(model)
    config = known.text_config
    weight = known.base.get_input_embeddings().weight
    rows = torch.linspace(0, weight.shape[0] - 1, min(SAMPLED, weight.shape[0])).long()
    sample = weight.detach()[rows.to(weight.device)].to(torch.bfloat16).to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(f"{config.hidden_size} {config.num_hidden_layers} {tuple(weight.shape)} ".encode())
    digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in the residual stream behind every layer of one model; equal where its content is.

    Args:
        directions: (layers, width), float32.
        model: :func:`model_fingerprint` of the model that it belongs to.
        model_name: what that model is called, for errors.
        folder: where it is on disk; None: nowhere yet.
    """

    directions: Tensor = field(repr=False)
    model: str
    model_name: str = ""
    folder: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the directions and their model."""
        data = self.directions.to("cpu", torch.float32).contiguous().numpy().tobytes()
        return hashlib.sha256(self.model.encode() + data).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SteeringVector) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """What names it in JSON."""
        return {"folder": self.folder, "fingerprint": self.fingerprint}

    def save(self, folder: str | os.PathLike[str]) -> SteeringVector:
        """Write it into ``folder``, which is made where it is missing; the vector with that folder.

        Raises:
            ValueError: there is a file of that name.
        """
        from safetensors.torch import save

        target = files.folder(folder)
        target.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "version": VERSION, "model": self.model, "model_name": self.model_name}
        files.write_bytes(target / FILE, save({"directions": self.directions.to("cpu").contiguous()}, metadata))
        return replace(self, folder=str(target))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SteeringVector:
        """The vector in ``folder``, or the one of :data:`BUNDLED` by that name where there is no such folder.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        named = None if Path(folder).exists() else BUNDLED.get(str(folder))
        path = (named or Path(folder)) / FILE
        if not path.is_file():
            raise ValueError(f"vector={str(folder)!r} holds no {FILE}; train one with 'textguide steering train'")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                directions = file.get_tensor("directions").to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"vector={str(folder)!r} is damaged ({error}); train it again") from error
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION or directions.dim() != 2:
            raise ValueError(f"vector={str(folder)!r} is no steering vector of this version; train it again")
        if not bool(directions.isfinite().all()):
            raise ValueError(f"vector={str(folder)!r} holds values that are not finite; train it again")
        return cls(directions, metadata.get("model", ""), metadata.get("model_name", ""), str(folder))


def directions_for(model: Any, vector: Any, layers: Sequence[int]) -> dict[int, Tensor]:
    """What is added behind each of ``layers``, (width,) float32.

    Args:
        vector: as in :class:`textguide.guidance.views.Steered`.

    Raises:
        ValueError: the vector cannot be read, has changed, or belongs to another model.
    """
    name, width = type(adapter(model).base).__name__, adapter(model).text_config.hidden_size
    if isinstance(vector, tuple):
        if len(vector) != width:
            raise ValueError(f"vector has {len(vector)} numbers and {name} is {width} wide; give as many")
        return dict.fromkeys(layers, torch.tensor(vector, dtype=torch.float32))
    wanted = getattr(vector, "fingerprint", None)
    if not hasattr(vector, "directions"):
        vector = SteeringVector.load(vector.folder)
        if wanted is not None and vector.fingerprint != wanted:
            raise ValueError(
                f"vector={vector.folder!r} is {vector.fingerprint}, and {wanted} was asked for; it has been trained "
                "again since: name the folder alone to use what is there"
            )
    if vector.model != model_fingerprint(model):
        count = adapter(model).text_config.num_hidden_layers
        deep, wide = vector.directions.shape
        raise ValueError(
            f"vector={vector.folder or vector.fingerprint!r} belongs to {vector.model_name or 'another model'} ({deep} "
            f"layers, width {wide}), and this is another {name} ({count} layers, width {width}); train one for it"
        )
    return {layer: vector.directions[layer] for layer in layers}


def steered(layer: Any, addition: Tensor) -> Any:
    """A twin of a ``layer`` that adds to what it hands on, (width,) at every position."""
    placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(hidden: Tensor) -> Tensor:
        key = (hidden.device, hidden.dtype)
        if key not in placed:
            placed[key] = addition.to(*key)
        return hidden + placed[key]

    return _handing_on(layer, add)


def recorded(layer: Any, into: dict[int, Tensor], number: int) -> Any:
    """A twin of a ``layer`` that keeps what it hands on, (R, T, width), under its ``number``."""

    def keep(hidden: Tensor) -> Tensor:
        into[number] = hidden.detach().to("cpu", torch.float32)
        return hidden

    return _handing_on(layer, keep)


def _handing_on(layer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    twin = hooked_twin(layer)

    def hook(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    twin.register_forward_hook(hook)
    return twin
