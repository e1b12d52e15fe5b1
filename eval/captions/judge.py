"""Captions judged by a CLIP-like dual encoder: CLIPScore, RefCLIPScore, and retrieval of the picture by its caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
WEIGHT = 2.5
"""The factor of CLIPScore in the paper, which spreads its values over [0, 1]."""
RANKS = (1, 5, 10)


class DualEncoder:
    """A model that maps pictures and texts into one space, such as CLIP or SigLIP.

    Args:
        model: a transformers model with ``get_image_features`` and ``get_text_features``.
        processor: its processor.
        batch_size: number of pictures or texts that are encoded together.

    Raises:
        ValueError: the model does not have these functions.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 64) -> None:
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ValueError(
                f"judge={type(model).__name__} is not a dual encoder of images and texts; use a CLIP-like model"
            )
        self.model = model
        self.processor = processor
        self.batch_size = batch_size

    def images(self, images: Sequence[Any]) -> Array:
        """Unit vectors of RGB pictures, (n, d)."""

        def preprocess(batch: Sequence[Any]) -> Any:
            return self.processor.image_processor(list(batch), return_tensors="pt")

        return self._encode(images, preprocess, self.model.get_image_features)

    def texts(self, texts: Sequence[str]) -> Array:
        """Unit vectors of texts, (n, d); texts that are too long are cut."""
        limit = self.model.config.text_config.max_position_embeddings

        def tokenize(batch: Sequence[str]) -> Any:
            return self.processor.tokenizer(
                list(batch), padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )

        return self._encode(texts, tokenize, self.model.get_text_features)

    @torch.no_grad()
    def _encode(
        self, items: Sequence[Any], preprocess: Callable[[Sequence[Any]], Any], features: Callable[..., Any]
    ) -> Array:
        rows = []
        for start in range(0, len(items), self.batch_size):
            inputs = preprocess(items[start : start + self.batch_size])
            names = [name for name in ("pixel_values", "input_ids", "attention_mask") if name in inputs]
            output = features(**{name: inputs[name].to(self.model.device) for name in names})
            vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
            rows.append(torch.nn.functional.normalize(vectors.float(), dim=-1).double().cpu().numpy())
        return np.concatenate(rows)


def clip_score(images: Array, captions: Array) -> Array:
    """``2.5 · max(cos, 0)`` (arXiv 2104.08718, section 3), one value per row of unit vectors (n, d)."""
    score: Array = WEIGHT * np.maximum((images * captions).sum(axis=1), 0.0)
    return score


def ref_clip_score(scores: Array, captions: Array, references: Sequence[Array]) -> Array:
    """Harmonic mean of CLIPScore and the largest cosine with a reference, which counts as 0 if it is negative."""
    cosines = []
    for caption, vectors in zip(captions, references, strict=True):
        cosines.append(max(float((vectors @ caption).max()), 0.0))
    nearest = np.array(cosines)
    total = scores + nearest
    score: Array = np.where(total > 0, 2 * scores * nearest / np.where(total > 0, total, 1.0), 0.0)
    return score


def ranks(images: Array, captions: Array) -> NDArray[np.int64]:
    """Rank of each caption's own picture among all pictures, by cosine, from 1; ties count against the picture."""
    cosines = captions @ images.T
    own = cosines.diagonal()[:, None]
    rank: NDArray[np.int64] = (cosines >= own).sum(axis=1)
    return rank
