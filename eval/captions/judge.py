"""Captions judged by a CLIP-like dual encoder: CLIPScore, RefCLIPScore, and finding the picture by its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
WEIGHT = 2.5
RANKS = (1, 5, 10)


class DualEncoder:
    """A model that puts pictures and texts into one space, such as CLIP or SigLIP.

    Args:
        model: a transformers model with ``get_image_features`` and ``get_text_features``.
        processor: its processor.
        batch_size: pictures or texts encoded at once.

    Raises:
        ValueError: the model has no such functions.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 64) -> None:
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ValueError(
                f"judge={type(model).__name__} is no dual encoder of images and texts; use a CLIP-like model"
            )
        self.model, self.processor, self.batch_size = model, processor, batch_size

    def images(self, images: Sequence[Any]) -> Array:
        """Unit vectors of RGB pictures, (n, d)."""
        return self._encode(
            images, lambda part: self.processor.image_processor(list(part), return_tensors="pt"), "get_image_features"
        )

    def texts(self, texts: Sequence[str]) -> Array:
        """Unit vectors of texts, (n, d); texts that are too long are cut."""
        limit = self.model.config.text_config.max_position_embeddings

        def read(part: Sequence[str]) -> Any:
            return self.processor.tokenizer(
                list(part), padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )

        return self._encode(texts, read, "get_text_features")

    @torch.no_grad()
    def _encode(self, items: Sequence[Any], read: Any, function: str) -> Array:
        rows = []
        for start in range(0, len(items), self.batch_size):
            inputs = read(items[start : start + self.batch_size])
            given = {
                k: v.to(self.model.device)
                for k, v in inputs.items()
                if k in ("pixel_values", "input_ids", "attention_mask")
            }
            found = getattr(self.model, function)(**given)
            vectors: Tensor = found if isinstance(found, Tensor) else found.pooler_output
            rows.append(torch.nn.functional.normalize(vectors.float(), dim=-1).double().cpu().numpy())
        return np.concatenate(rows)


def clip_score(images: Array, captions: Array) -> Array:
    """``2.5 · max(cos, 0)`` (arXiv 2104.08718, section 3), one a row of unit vectors (n, d)."""
    score: Array = WEIGHT * np.maximum((images * captions).sum(axis=1), 0.0)
    return score


def ref_clip_score(scores: Array, captions: Array, references: Sequence[Array]) -> Array:
    """Harmonic mean of CLIPScore and the largest cosine with a reference, or 0 where it is negative."""
    nearest = np.array(
        [max(float((row @ caption).max()), 0.0) for caption, row in zip(captions, references, strict=True)]
    )
    total = scores + nearest
    score: Array = np.where(total > 0, 2 * scores * nearest / np.where(total > 0, total, 1.0), 0.0)
    return score


def ranks(images: Array, captions: Array) -> NDArray[np.int64]:
    """Rank of each caption's own picture among all, by cosine; 1 is the first. Ties count against it."""
    cosines = captions @ images.T
    own = cosines.diagonal()[:, None]
    found: NDArray[np.int64] = (cosines >= own).sum(axis=1)
    return found
