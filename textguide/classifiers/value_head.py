"""A value head: the expected reward of a prefix, computed from the language model's own hidden states."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..support.checks import one_of
from . import heads
from .base import CausalScorer, Scorer, table
from .causal import CausalReader
from .causal_head import Head, read_head, write_head
from .rewards import LARGEST

LINEAR, PROBABILITY = "linear", "probability"
KINDS = (LINEAR, PROBABILITY)


class ValueHead(CausalReader):
    """The value of a prefix: the mean of a reward over the model's continuations of it.

    Args:
        model: the language model whose hidden states are used.
        tokenizer: its tokenizer.
        head: a linear head with one output.
        kind: ``linear``: the output is the expected reward. ``probability``: the logistic function of the output is the
            probability of an attribute, and the value is its logarithm.
        model_name: the name of the model for :func:`textguide.load`.
        **options: as for :class:`CausalReader`.
    """

    what = "value head"

    def __init__(
        self, model: Any, tokenizer: Any, head: Head, kind: str = LINEAR, *, model_name: str, **options: Any
    ) -> None:
        one_of("kind", kind, KINDS)
        options.setdefault("name", "value")
        weights = heads.digest(head.weights, head.bias)
        options.setdefault("source", {"model": model_name, "weights": weights, "activation": kind})
        super().__init__(model.base_model, head, tokenizer, ("value",), **options)
        self.kind = kind
        self.model_name = model_name

    def outputs(self, hidden: Tensor) -> Tensor:
        """Values (…, 1) from hidden states (…, H)."""
        values: Tensor = self.head(hidden).float()
        return values if self.kind == LINEAR else F.logsigmoid(values)

    def checked(self, values: Tensor, n: int) -> Tensor:
        """Values (n, 1), which must not be NaN, limited to the range of rewards."""
        return table(self, values, n).clamp(-LARGEST, LARGEST)

    def to_dict(self) -> dict[str, Any]:
        """The kind and the identity of the weights."""
        return {"kind": "value", **self.source}

    def save(self, folder: str | os.PathLike[str], report: dict[str, Any] | None = None) -> Path:
        """Write the head and the model's name into a folder; :func:`load_value` reads it."""
        return write_head(folder, "value", self, {"activation": self.kind}, report)


def load_value(
    path: str | os.PathLike[str], model: Any = None, tokenizer: Any = None, name: str | None = None
) -> ValueHead:
    """Load a head that :meth:`ValueHead.save` wrote.

    Args:
        path: its folder.
        model: the guided language model. If the head was trained on it, no second model is loaded.
        tokenizer: its tokenizer.
        name: for errors and reports.

    Raises:
        ValueError: the files are damaged, or the head was trained on other weights; the message names the file.
    """
    description, head, model, tokenizer = read_head(path, "value", ["activation"], 1, model, tokenizer)
    settings = description["settings"]
    return ValueHead(
        model,
        tokenizer,
        head,
        settings["activation"],
        model_name=settings["model"],
        name=name or Path(path).name,
        source={"sha256": description["sha256"]},
    )


def resolve_value(value: Any, model: Any = None, tokenizer: Any = None) -> Scorer:
    """Return ``value`` if it is a scorer that reads from left to right, and load it from its folder otherwise.

    Raises:
        ValueError: ``value`` is neither.
    """
    if isinstance(value, CausalScorer):
        return value
    if isinstance(value, (str, os.PathLike)):
        return load_value(Path(value).expanduser(), model, tokenizer)
    raise ValueError(f"value={value!r} must be a ValueHead, or a folder that 'textguide value train' wrote")
