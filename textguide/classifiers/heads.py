"""Converts the outputs of a head to log-probabilities, and reads the classes of a model from its configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

SOFTMAX, SIGMOID = "softmax", "sigmoid"


def log_probabilities(logits: Tensor, activation: str) -> Tensor:
    """Log-probabilities (…, C) from the logits (…, K) of a head.

    A single logit is that of the second of two classes, for both activations.
    """
    logits = logits.float()
    if logits.shape[-1] == 1:
        return F.logsigmoid(logits * logits.new_tensor([-1.0, 1.0]))
    return F.logsigmoid(logits) if activation == SIGMOID else logits.log_softmax(-1)


def activation_of(config: Any, activation: str | None) -> str:
    """Which activation a sequence-classification head was trained with.

    Args:
        config: the model's configuration.
        activation: ``"softmax"`` or ``"sigmoid"`` overrides the configuration.

    Raises:
        ValueError: ``activation`` is neither, or the model is a regression.
    """
    if activation is not None:
        if activation not in (SOFTMAX, SIGMOID):
            raise ValueError(f"activation={activation!r} must be 'softmax' or 'sigmoid', or None for the model's own")
        return activation
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        raise ValueError(
            "the model's configuration has problem_type='regression', which does not return probabilities; pass "
            "activation='sigmoid' if its output is a logit"
        )
    return SIGMOID if problem == "multi_label_classification" or config.num_labels == 1 else SOFTMAX


def labels_of(config: Any) -> tuple[str, ...]:
    """The class names in a configuration. A single output ``x`` has the classes ``("not x", "x")``."""
    names = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return names if len(names) > 1 else (f"not {names[0]}", names[0])


def columns(labels: Sequence[str], outputs: int) -> bool:
    """Whether a head with ``outputs`` outputs matches the classes ``labels``."""
    return outputs == len(labels) or (outputs == 1 and len(labels) == 2)


def digest(*tensors: Tensor) -> str:
    """Sixteen digits that differ when a value differs, for :meth:`Classifier.to_dict`."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
