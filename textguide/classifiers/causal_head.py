"""A linear head on the language model's own hidden states: a causal classifier of a few kilobytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import heads, storage
from .base import batches
from .causal import CausalSequenceClassifier


class Head:
    """``hidden @ weights + bias`` in float32.

    Args:
        weights: (H, K).
        bias: (K,).
    """

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        self.weights = weights.float()
        self.bias = bias.float()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (…, K) from hidden states (…, H)."""
        if self.weights.device != hidden.device:
            self.weights = self.weights.to(hidden.device)
            self.bias = self.bias.to(hidden.device)
        return hidden.float() @ self.weights + self.bias


class HeadClassifier(CausalSequenceClassifier):
    """A linear head on a frozen language model's hidden state of the newest token.

    Args:
        model: the language model whose hidden states are used.
        tokenizer: its tokenizer.
        head: the linear head.
        labels: class names.
        model_name: the name of the model for :func:`textguide.load`.
        **options: as for :class:`CausalSequenceClassifier`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, head: Head, labels: Sequence[str], *, model_name: str, **options: Any
    ) -> None:
        options.setdefault("name", "causal")
        options.setdefault("source", {"model": model_name, "weights": heads.digest(head.weights, head.bias)})
        super().__init__(model.base_model, head, tokenizer, labels, **options)
        self.model_name = model_name

    def save(self, folder: str | os.PathLike[str], report: dict[str, Any] | None = None) -> Path:
        """Write the head and the model's name into a folder; :func:`load_causal` reads it."""
        return write_head(folder, "causal", self, {}, report)


def write_head(
    folder: str | os.PathLike[str], kind: str, reader: Any, settings: dict[str, Any], report: dict[str, Any] | None
) -> Path:
    """Write the head of ``reader``, the name of its model and more ``settings`` into a folder."""
    head: Head = reader.head
    settings = {"model": reader.model_name, "backbone": identity(reader.backbone), **settings}
    tensors = {"weights": head.weights.cpu(), "bias": head.bias.cpu()}
    return storage.write(folder, kind, reader.labels, tensors, settings, report)


def read_head(
    path: str | os.PathLike[str], kind: str, settings: Sequence[str], outputs: int | None, model: Any, tokenizer: Any
) -> tuple[dict[str, Any], Head, Any, Any]:
    """Read what :func:`write_head` wrote.

    Args:
        path: the folder.
        kind: the kind of scorer that it must contain.
        settings: names that the description must have in addition to those of the model.
        outputs: number of outputs of the head; None: any number.
        model: see :func:`fitting_model`.
        tokenizer: see :func:`fitting_model`.

    Returns:
        The description, the head, and the model that the head was trained on with its tokenizer.

    Raises:
        ValueError: the files are damaged, or the head was trained on other weights; the message names the file.
    """
    description, tensors = storage.read(path)
    storage.expect(description, kind, path, ["model", "backbone", *settings])
    weights = storage.tensor(tensors, "weights", (None, outputs), path)
    bias = storage.tensor(tensors, "bias", (weights.shape[1],), path)
    model, tokenizer = fitting_model(path, description["settings"], weights, model, tokenizer)
    return description, Head(weights, bias), model, tokenizer


def identity(backbone: Any) -> str:
    """Sixteen digits that identify the weights of a model; the same for float32 and bfloat16."""
    embeddings = backbone.get_input_embeddings().weight[:256].detach().to("cpu", torch.bfloat16)
    last = [p for p in backbone.parameters() if p.dim() == 2][-1][:16].detach().to("cpu", torch.bfloat16)
    digest = hashlib.sha256(backbone.config.model_type.encode())
    for part in (embeddings, last):
        digest.update(part.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_causal(
    path: str | os.PathLike[str], model: Any = None, tokenizer: Any = None, name: str | None = None
) -> HeadClassifier:
    """Load a classifier that :meth:`HeadClassifier.save` wrote.

    Args:
        path: its folder.
        model: the guided language model. If the head was trained on it, no second model is loaded.
        tokenizer: its tokenizer.
        name: for errors and reports.

    Raises:
        ValueError: the files are damaged, or the head was trained on other weights; the message names the file.
    """
    description, head, model, tokenizer = read_head(path, "causal", (), None, model, tokenizer)
    return HeadClassifier(
        model,
        tokenizer,
        head,
        description["labels"],
        model_name=description["settings"]["model"],
        name=name or Path(path).name,
        source={"sha256": description["sha256"]},
    )


def fitting_model(path: Any, settings: dict[str, Any], weights: Tensor, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model that a head was trained on, with its tokenizer: ``model`` if it fits, else the one in the settings.

    Args:
        path: the folder of the head, for errors.
        settings: ``model`` and ``backbone`` of the head's description.
        weights: the weights of the head, (H, K).
        model: the guided language model, or None.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the model in the settings has other weights.
    """
    from ..models.loading import load

    if model is not None and tokenizer is not None and _fits(model, weights, settings["backbone"]):
        return model, tokenizer
    model, tokenizer = load(settings["model"])
    if not _fits(model, weights, settings["backbone"]):
        raise ValueError(f"{path}: the head was trained on other weights than those of model {settings['model']!r}")
    return model, tokenizer


def _fits(model: Any, weights: Tensor, backbone: str) -> bool:
    base = getattr(model, "base_model", None)
    return base is not None and base.config.hidden_size == weights.shape[0] and identity(base) == backbone


@torch.inference_mode()
def last_states(
    model: Any, tokenizer: Any, texts: Sequence[str], progress: Callable[[int], None] | None = None, size: int = 32
) -> Tensor:
    """Hidden states (N, H) of the newest token of each text, as a :class:`HeadClassifier` computes them."""
    reader = CausalSequenceClassifier(
        model.base_model, lambda hidden: hidden[..., :1], tokenizer, ("a", "b"), name="reader"
    )
    rows = [reader.truncated(tokenizer(text).input_ids) for text in texts]
    values = torch.empty(len(texts), model.base_model.config.hidden_size)
    for indices in batches([len(row) for row in rows], size):
        values[torch.tensor(indices)] = reader.hidden([rows[i] for i in indices])
        if progress is not None:
            progress(len(indices))
    return values
