"""Steering vectors: a direction for every layer of a model, as a value and as a file, and layers that add them."""

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
from .module_copies import copy_with_own_hooks

FILE = "steering.safetensors"
FORMAT = "textguide steering vector"
VERSION = "1"
BUNDLED = {"smollm2-positive": Path(__file__).parent / "vectors" / "smollm2-positive"}
"""Vectors that come with textguide, by name: towards good moods in the bundled model (docs/methods/steering.md)."""
SAMPLED = 256
"""Number of rows of the embeddings that are part of a model's fingerprint."""


def model_fingerprint(model: Any) -> str:
    """Sixteen hexadecimal digits of a model's width, depth and embeddings; the same in float32 and bfloat16."""
    known = adapter(model)
    config = known.text_config
    # The embeddings of a large model have gigabytes, and rows far apart are enough to distinguish two models.
    weight = known.base.get_input_embeddings().weight
    rows = torch.linspace(0, weight.shape[0] - 1, min(SAMPLED, weight.shape[0])).long()
    sample = weight.detach()[rows.to(weight.device)].to(torch.bfloat16).to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(f"{config.hidden_size} {config.num_hidden_layers} {tuple(weight.shape)} ".encode())
    digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in the residual stream after every layer of a model. Two vectors with equal content are equal.

    Args:
        directions: (layers, width), float32.
        model: :func:`model_fingerprint` of the model that it belongs to.
        model_name: the name of that model, for error messages.
        folder: its folder on disk; None if it was not saved yet.
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
        """Folder and fingerprint, which identify it in JSON."""
        return {"folder": self.folder, "fingerprint": self.fingerprint}

    def save(self, folder: str | os.PathLike[str]) -> SteeringVector:
        """Write it into ``folder``, which is created if it is missing, and return the vector with that folder.

        Raises:
            ValueError: ``folder`` is a file.
        """
        from safetensors.torch import save

        target = files.folder(folder)
        target.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "version": VERSION, "model": self.model, "model_name": self.model_name}
        files.write_bytes(target / FILE, save({"directions": self.directions.to("cpu").contiguous()}, metadata))
        return replace(self, folder=str(target))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SteeringVector:
        """Load the vector in ``folder``, or the one of :data:`BUNDLED` with that name if there is no such folder.

        Raises:
            ValueError: there is no vector, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        named = None if Path(folder).exists() else BUNDLED.get(str(folder))
        path = (named or Path(folder)) / FILE
        if not path.is_file():
            raise ValueError(f"vector={str(folder)!r} has no {FILE}; train one with 'textguide steering train'")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                directions = file.get_tensor("directions").to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"vector={str(folder)!r} is damaged ({error}); train it again") from error
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION or directions.dim() != 2:
            raise ValueError(f"vector={str(folder)!r} is not a steering vector of this version; train it again")
        if not bool(directions.isfinite().all()):
            raise ValueError(f"vector={str(folder)!r} has values that are not finite; train it again")
        return cls(directions, metadata.get("model", ""), metadata.get("model_name", ""), str(folder))


def directions_for(model: Any, vector: Any, layers: Sequence[int]) -> dict[int, Tensor]:
    """What is added to the output of each of ``layers``, (width,) float32.

    Args:
        vector: as in :class:`textguide.guidance.views.Steered`.

    Raises:
        ValueError: the vector cannot be read, has changed, or belongs to another model.
    """
    known = adapter(model)
    width = known.text_config.hidden_size
    if isinstance(vector, tuple):
        if len(vector) != width:
            raise ValueError(
                f"vector has {len(vector)} numbers, and {known.name} has a width of {width}; pass {width} numbers"
            )
        return dict.fromkeys(layers, torch.tensor(vector, dtype=torch.float32))
    if not hasattr(vector, "directions"):
        vector = _load(vector)
    if vector.model != model_fingerprint(model):
        count = known.text_config.num_hidden_layers
        vector_layers, vector_width = vector.directions.shape
        raise ValueError(
            f"vector={vector.folder or vector.fingerprint!r} belongs to {vector.model_name or 'another model'} "
            f"({vector_layers} layers, width {vector_width}), and this is another {known.name} ({count} layers, width "
            f"{width}); train one for it"
        )
    return {layer: vector.directions[layer] for layer in layers}


def _load(file: Any) -> SteeringVector:
    """The vector of a :class:`textguide.guidance.views.VectorFile`.

    Raises:
        ValueError: it cannot be read, or its fingerprint differs.
    """
    vector = SteeringVector.load(file.folder)
    if file.fingerprint is not None and vector.fingerprint != file.fingerprint:
        raise ValueError(
            f"vector={vector.folder!r} has the fingerprint {vector.fingerprint} instead of {file.fingerprint}; it has "
            "been trained again since: pass only the folder to use what is there"
        )
    return vector


class Movement:
    """How far additions moved hidden states at the newest position of every row, over layers and passes."""

    def __init__(self) -> None:
        self._sums: dict[torch.device, Tensor | float] = {}  # the layers of one model may be on several devices
        self._count = 0

    def add(self, hidden: Tensor, addition: Tensor) -> None:
        """Record ``addition`` (width,) to ``hidden`` (R, T, width)."""
        lengths = hidden[:, -1].float().norm(dim=-1).clamp(min=1e-12)
        ratios = addition.float().norm() / lengths
        self._sums[ratios.device] = self._sums.get(ratios.device, 0.0) + ratios.sum()
        self._count += len(hidden)

    @property
    def mean(self) -> float:
        """Mean of the length of what was added, relative to that of the hidden state; 0 if there was none."""
        return sum(map(float, self._sums.values())) / max(self._count, 1)


def add_to_output(layer: Any, addition: Tensor, movement: Movement | None = None) -> Any:
    """A copy of a ``layer`` that adds ``addition``, (width,), to its output at every position.

    Args:
        movement: records how far this moves hidden states.
    """
    # By device and dtype, because the layers of one model may be on several devices.
    converted: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(hidden: Tensor) -> Tensor:
        key = (hidden.device, hidden.dtype)
        if key not in converted:
            converted[key] = addition.to(*key)
        if movement is not None:
            movement.add(hidden, converted[key])
        return hidden + converted[key]

    return _with_output_hook(layer, add)


def record_output(layer: Any, outputs: dict[int, Tensor], number: int) -> Any:
    """A copy of a ``layer`` that stores its output, (R, T, width), in ``outputs`` under ``number``."""

    def record(hidden: Tensor) -> Tensor:
        outputs[number] = hidden.detach().to("cpu", torch.float32)
        return hidden

    return _with_output_hook(layer, record)


def _with_output_hook(layer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    copied = copy_with_own_hooks(layer)

    def hook(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    copied.register_forward_hook(hook)
    return copied
