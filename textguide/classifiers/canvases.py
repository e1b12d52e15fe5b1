"""Differentiable classifiers of a canvas, whose masks they read as tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import column_of, label_names


class CanvasPredictor(ABC):
    """Base class of everything that returns ``log p(class | canvas)`` from tokens, some of which are masks.

    Attributes:
        name: for errors and reports.
        labels: class names, in the order of the columns.
        batch_size: number of canvases per pass.
    """

    name: str
    labels: tuple[str, ...]
    batch_size: int = 256

    @abstractmethod
    def read(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """Log-probabilities (n, C) of n canvases.

        Args:
            tokens: float (n, L, V): one-hot vectors, or mixtures of tokens. The result must be differentiable with
                respect to it if a guidance needs the derivative.
            attention: bool (n, L), False on padding.
        """

    def index(self, label: str | int) -> int:
        """The column of a class, as :meth:`textguide.classifiers.Classifier.index`.

        Raises:
            ValueError: there is no such class; the message lists the classes.
        """
        return column_of(label, self.labels, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Its kind, name and classes. A function has no other identity."""
        return {"kind": "canvas", "name": self.name, "labels": list(self.labels)}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {', '.join(self.labels)}>"


class FunctionPredictor(CanvasPredictor):
    """A function or module with the signature of :meth:`CanvasPredictor.read`.

    Raises:
        ValueError: ``fn`` is not callable, or there are fewer than two ``labels``.
    """

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        labels: Sequence[str],
        *,
        name: str | None = None,
        batch_size: int = 256,
    ) -> None:
        if not callable(fn):
            raise ValueError(f"fn={fn!r} must be a function from tables of tokens to log-probabilities")
        self.fn = fn
        self.labels = label_names(labels)
        self.batch_size = batch_size
        self.name = name or str(getattr(fn, "__qualname__", type(fn).__name__))

    def read(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """What the function returns."""
        return self.fn(tokens, attention)


class EncoderPredictor(CanvasPredictor):
    """A head on a transformers encoder, such as the denoiser's own: linear in the mean of its last hidden states.

    Args:
        model: the encoder, or a masked language model that contains it.
        head: from (n, hidden) to logits (n, C) of a softmax.
        labels: class names.
        name: for errors and reports.

    Raises:
        ValueError: there are fewer than two ``labels``, or the model has no table of input embeddings.
    """

    def __init__(
        self,
        model: Any,
        head: Callable[[Tensor], Tensor],
        labels: Sequence[str],
        *,
        name: str = "encoder",
        batch_size: int = 256,
    ) -> None:
        self.body = getattr(model, "base_model", model)
        self.head = head
        self.labels = label_names(labels)
        self.name = name
        self.batch_size = batch_size
        embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        if embeddings is None:
            raise ValueError(
                f"model {type(model).__name__} has no table of input embeddings, and canvases are read through it"
            )
        self._table: Tensor = embeddings.weight

    def pooled(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """The mean of the last hidden states, (n, hidden)."""
        out = self.body(inputs_embeds=tokens.to(self._table) @ self._table, attention_mask=attention.long())
        mask = attention[..., None].to(out.last_hidden_state)
        return (out.last_hidden_state * mask).sum(1) / mask.sum(1)

    def read(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """Log-softmax of the head's logits."""
        return torch.log_softmax(self.head(self.pooled(tokens, attention)).float(), -1)
