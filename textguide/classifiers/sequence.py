"""A transformers sequence-classification model, with its own tokenizer, as a classifier."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.hub import offline_if_unreachable
from ..support.checks import is_whole_number
from ..support.errors import ModelUnavailableError
from . import heads
from .base import Classifier, batches, beginning, checked, label_names


class SequenceReader:
    """A transformers model with a head on whole texts, and the tokenizer that it was trained with.

    The beginning of a text that is too long is cut off, so that its newest words are always read; special tokens are
    kept. The outputs for a text do not depend on the other texts of its batch.

    Args:
        model: a transformers model that returns ``logits`` (N, K).
        tokenizer: its tokenizer.
        who: its name in errors.
        max_length: the largest number of tokens in a text; default: as many as tokenizer and model allow.
        batch_size: number of texts per pass; 1 is used if model or tokenizer do not have a padding token.

    Raises:
        ValueError: ``max_length`` is not a positive number.
    """

    def __init__(self, model: Any, tokenizer: Any, who: str, max_length: int | None, batch_size: int) -> None:
        self.model = model.eval()
        self.who = who
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "left"
        self.tokenizer.padding_side = "right"
        pads = self.tokenizer.pad_token_id is not None and getattr(model.config, "pad_token_id", None) is not None
        self.batch_size = batch_size if pads else 1
        self.max_length = max_length if max_length is not None else _longest(model.config, tokenizer)
        if max_length is not None and not (is_whole_number(max_length) and max_length > 0):
            raise ValueError(f"max_length={max_length!r} must be a positive number of tokens")

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Logits (N, K) of ``texts`` in float32 on the CPU, in batches of similar lengths."""
        values = torch.empty(len(texts), self.model.config.num_labels)
        encoded = self._encode(texts) if texts else []
        for indices in batches([len(ids) for ids in encoded], self.batch_size):
            batch = self.tokenizer.pad({"input_ids": [encoded[i] for i in indices]}, return_tensors="pt")
            values[torch.tensor(indices)] = self.model(**batch.to(self.model.device)).logits.float().cpu()
        return values

    def to_dict(self) -> dict[str, Any]:
        """The model's name and digests of its configuration and its last weights."""
        config = self.model.config.to_json_string(use_diff=False)
        return {
            "model": str(getattr(self.model, "name_or_path", "")),
            "config": hashlib.sha256(config.encode()).hexdigest()[:16],
            "weights": heads.digest(*list(self.model.parameters())[-2:]),
        }

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        options = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        encoded: list[list[int]] = self.tokenizer(list(texts), **options)["input_ids"]
        for text, ids in zip(texts, encoded, strict=True):
            if not ids:
                raise ValueError(f"{self.who} cannot read a text without tokens ({beginning(text)})")
        return encoded


class SequenceClassifier(Classifier):
    """A transformers model with a classification head.

    The beginning of a text that is too long is cut off, so that its newest words are always read; special tokens are
    kept.

    Args:
        model: a transformers model that returns ``logits`` (N, K).
        tokenizer: its tokenizer.
        labels: class names; default: those of the model's configuration. A model with one output has two classes,
            and the output is the logit of the second.
        activation: ``"softmax"`` (exclusive classes) or ``"sigmoid"`` (independent classes); default: the one that the
            model was trained with.
        max_length: the largest number of tokens in a text; default: as many as tokenizer and model allow.
        batch_size: number of texts per pass.
        name: for errors and reports.

    Raises:
        ValueError: labels, activation or length do not match the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        labels: Sequence[str] | None = None,
        activation: str | None = None,
        max_length: int | None = None,
        batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        self.name = name or str(getattr(model, "name_or_path", "") or type(model).__name__)
        self.labels = label_names(labels if labels is not None else heads.labels_of(model.config))
        if not heads.columns(self.labels, model.config.num_labels):
            raise ValueError(
                f"labels={list(self.labels)} do not fit the {model.config.num_labels} outputs of {self.name}"
            )
        self.activation = heads.activation_of(model.config, activation)
        self.is_normalized = self.activation == heads.SOFTMAX or model.config.num_labels == 1
        self.batch_size = batch_size
        self.read = SequenceReader(model, tokenizer, f"classifier {self.name}", max_length, batch_size)

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``, in batches of similar lengths."""
        return checked(self, heads.log_probabilities(self.read(texts), self.activation), len(texts), texts)

    def to_dict(self) -> dict[str, Any]:
        """The kind, the model's name and digests of its configuration and its last weights."""
        return {"kind": "hf", **self.read.to_dict(), "labels": list(self.labels), "activation": self.activation}


def load_sequence(source: str, **options: Any) -> SequenceClassifier:
    """Load a sequence-classification model from a folder or from a model hub.

    Args:
        source: the folder, or the name on the hub.
        **options: as for :class:`SequenceClassifier`.

    Raises:
        ModelUnavailableError: the model cannot be loaded, or its head is not trained.
    """
    return SequenceClassifier(*load_with_head(source, "classifier"), name=f"hf:{source}", **options)


def load_with_head(source: str, what: str) -> tuple[Any, Any]:
    """Load a sequence-classification model and its tokenizer.

    Args:
        source: a folder, or a name on a model hub.
        what: the noun for it in errors, such as ``classifier``.

    Raises:
        ModelUnavailableError: the model cannot be loaded, or its head is not trained.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        with offline_if_unreachable(source):
            model, info = AutoModelForSequenceClassification.from_pretrained(source, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        reason = " ".join(str(error).split())[:300]
        raise ModelUnavailableError(f"{what} hf:{source} could not be loaded: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelUnavailableError(
            f"{what} hf:{source} has no trained weights for {', '.join(missing[:3])}; it is not a sequence classifier"
        )
    return model, tokenizer


def _longest(config: Any, tokenizer: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions and getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"):
        positions -= (config.pad_token_id or 0) + 1  # their positions start after the padding token
    known = [length for length in (positions, tokenizer.model_max_length) if length and length < 1_000_000]
    return min(known) if known else None
