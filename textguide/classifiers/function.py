"""Any Python function as a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from textguide.support.importing import named_object

from .base import Classifier, checked, label_names


class FunctionClassifier(Classifier):
    """A function from texts to log-probabilities.

    Args:
        fn: called with a list of N texts, returns log-probabilities (N, C): a tensor, an array or lists of numbers.
        labels: class names, in the order of the columns.
        name: for errors and reports; default: the function's name.
        is_normalized: whether the probabilities of the classes sum to 1.
        probabilities: whether ``fn`` returns probabilities instead of their logarithms.
        batch_size: the largest number of texts per call.

    Raises:
        ValueError: ``fn`` is not callable, or there are fewer than two ``labels``. In a call: ``fn`` returned invalid
            log-probabilities.
    """

    def __init__(
        self,
        fn: Callable[[list[str]], Any],
        labels: Sequence[str],
        *,
        name: str | None = None,
        is_normalized: bool = True,
        probabilities: bool = False,
        batch_size: int = 1024,
    ) -> None:
        if not callable(fn):
            raise ValueError(f"fn={fn!r} must be a function from texts to log-probabilities")
        self.fn = fn
        self.labels = label_names(labels)
        self.name = name or str(getattr(fn, "__qualname__", type(fn).__name__))
        self.is_normalized = is_normalized
        self.probabilities = probabilities
        self.batch_size = batch_size

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) that the function returns for ``texts``, checked."""
        values = self.fn(list(texts)) if texts else torch.empty(0, len(self.labels))
        if self.probabilities:
            values = _logarithm(self, values)
        return checked(self, values, len(texts), texts)

    def to_dict(self) -> dict[str, Any]:
        """The module and name of the function. It has no other identity."""
        module = getattr(self.fn, "__module__", None)
        name = getattr(self.fn, "__qualname__", type(self.fn).__name__)
        return {"kind": "python", "function": f"{module}:{name}", "labels": list(self.labels)}


def _logarithm(classifier: Classifier, values: Any) -> Any:
    try:
        table = torch.as_tensor(values).to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return values  # `checked` reports what is wrong
    if table.numel() and not ((table >= 0) | table.isnan()).all():
        raise ValueError(f"classifier {classifier.name} returned a probability below 0 ({table.min().item():.4g})")
    return table.log()


def from_python(path: str) -> Classifier:
    """The classifier ``module:name``, or the one that the function of this name returns.

    Raises:
        ValueError: it does not exist or is not a classifier; the message names the missing part.
    """
    value = named_object(path, "classifier")
    if not isinstance(value, Classifier) and callable(value):
        value = value()
    if not isinstance(value, Classifier):
        raise ValueError(
            f"classifier 'python:{path}' is {type(value).__name__}; it must be a textguide.classifiers.Classifier, "
            "or a function without arguments that returns one (FunctionClassifier wraps a function of texts)"
        )
    return value
