"""Predictors that read a canvas of masks as tokens, and have a derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import column_of, label_names


class CanvasPredictor(ABC):
    """Anything that gives ``log p(class | canvas)`` from tokens, of which some are masks.

    Attributes:
        name: for errors and reports.
        labels: class names, in the order of the columns.
        batch_size: canvases that are read at once.
    """

    name: str
    labels: tuple[str, ...]
    batch_size: int = 256

    @abstractmethod
    def read(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """Log-probabilities (n, C) of n canvases.

        Args:
            tokens: a table, float (n, L, V): one-hot rows, or mixtures of tokens. The answer has to be differentiable
                in it where a guidance asks for a derivative.
            attention: bool (n, L), False on padding.
        """

    def index(self, label: str | int) -> int:
        """The column of a class, as :meth:`textguide.classifiers.Classifier.index`.

        Raises:
            ValueError: there is no such class; the message lists those there are.
        """
        return column_of(label, self.labels, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Its kind, name and classes, which is all that can be said of it."""
        return {"kind": "canvas", "name": self.name, "labels": list(self.labels)}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {', '.join(self.labels)}>"


class FunctionPredictor(CanvasPredictor):
    """A function or module of tables, as :meth:`CanvasPredictor.read` describes them.

    Raises:
        ValueError: ``fn`` cannot be called, or ``labels`` are not two names or more.
    """

    def __init__(
        self, fn: Callable[[Tensor, Tensor], Tensor], labels: Sequence[str], *, name: str | None = None,
        batch_size: int = 256,
    ) -> None:  # fmt: skip
        if not callable(fn):
            raise ValueError(f"fn={fn!r} must be a function from tables of tokens to log-probabilities")
        self.fn, self.labels, self.batch_size = fn, label_names(labels), batch_size
        self.name = name or str(getattr(fn, "__qualname__", type(fn).__name__))

    def read(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """What the function returns."""
        return self.fn(tokens, attention)


class EncoderPredictor(CanvasPredictor):
    """A head on a transformers encoder, such as the denoiser's own: linear in the mean of its last hidden states.

    Args:
        model: the encoder, or a masked language model, of which the encoder inside is run.
        head: from (n, hidden) to scores (n, C), of which the softmax is taken.
        labels: class names.
        name: for errors and reports.

    Raises:
        ValueError: ``labels`` are not two names or more, or the model has no table of input embeddings.
    """

    def __init__(
        self, model: Any, head: Callable[[Tensor], Tensor], labels: Sequence[str], *, name: str = "encoder",
        batch_size: int = 256,
    ) -> None:  # fmt: skip
        self.body = getattr(model, "base_model", model)
        self.head, self.labels, self.name, self.batch_size = head, label_names(labels), name, batch_size
        embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        if embeddings is None:
            raise ValueError(
                f"model {type(model).__name__} has no table of input embeddings, which a canvas is read by"
            )
        self._table: Tensor = embeddings.weight

    def pooled(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """The mean of the last hidden states, (n, hidden)."""
        out = self.body(inputs_embeds=tokens.to(self._table) @ self._table, attention_mask=attention.long())
        kept = attention[..., None].to(out.last_hidden_state)
        return (out.last_hidden_state * kept).sum(1) / kept.sum(1)

    def read(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """Log-softmax of the head's scores."""
        return torch.log_softmax(self.head(self.pooled(tokens, attention)).float(), -1)
