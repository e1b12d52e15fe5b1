"""A classifier that reads the language model's tokens from left to right, so that candidates share a prefix's cache.

All candidates of a row are read as one chunk after the cached prefix, at the same position, with a mask that lets each
of them see the prefix and itself. A step therefore costs one forward pass with one token per candidate.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..forward import caches, prefill
from . import heads
from .base import CausalClassifier, CausalScorer, CausalState, batches, checked, label_names


class CausalReader(CausalScorer):
    """A decoder with a linear head on the hidden state of the newest token. Subclasses interpret the head's outputs.

    Args:
        backbone: a transformers decoder without its language-model head; it returns ``last_hidden_state``.
        head: from hidden states (…, H) to outputs (…, K).
        tokenizer: the tokenizer of the backbone. The guided language model must use the same one.
        labels: a name for each number.
        batch_size: number of texts per pass in :meth:`values`.
        name: for errors and reports.
        source: JSON values that identify the weights, for :meth:`to_dict`.
        share: whether a row's candidates are read after one shared cache. None: if the architecture supports it, which
            is tried once. False: the cache is copied for each candidate.

    Raises:
        ValueError: the architecture keeps a recurrent state.
    """

    def __init__(
        self,
        backbone: Any,
        head: Any,
        tokenizer: Any,
        labels: Sequence[str],
        *,
        batch_size: int = 32,
        name: str | None = None,
        source: dict[str, Any] | None = None,
        share: bool | None = None,
    ) -> None:
        self.name = name or type(backbone).__name__
        self.labels = tuple(labels)
        if backbone.config.is_encoder_decoder or caches.has_recurrent_state(backbone):
            raise ValueError(
                f"{self.what} {self.name}: {type(backbone).__name__} is not a decoder with only attention layers, so "
                "candidates cannot share a cache; use SequenceClassifier, which reads whole texts"
            )
        self.backbone = backbone.eval()
        self.head = head
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.source = source or {
            "model": str(getattr(backbone, "name_or_path", "")),
            "weights": heads.digest(*getattr(head, "parameters", tuple)()),
        }
        self.is_sliding = not _crops(caches.new_cache(backbone))
        # All candidates have the same position, which has to be passed, and are removed from the cache afterwards.
        self.share = False if self.is_sliding or not caches.accepts(backbone, "position_ids") else share
        self.limit = getattr(backbone.config, "max_position_embeddings", None) or 1 << 30

    @abstractmethod
    def outputs(self, hidden: Tensor) -> Tensor:
        """Numbers (…, C) from hidden states (…, H)."""

    @abstractmethod
    def checked(self, values: Tensor, n: int) -> Tensor:
        """Numbers (n, C) of ``n`` texts as float32 on the CPU.

        Raises:
            ValueError: they are invalid, such as NaN.
        """

    def values(self, texts: Sequence[str]) -> Tensor:
        """Numbers (N, C) of ``texts``, each tokenised and read whole."""
        return self.values_ids([self.tokenizer(text).input_ids for text in texts])

    @torch.inference_mode()
    def values_ids(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Numbers (N, C) of texts as token ids."""
        values = torch.empty(len(ids), len(self.labels))
        rows = [self.truncated(row) for row in ids]
        for indices in batches([len(row) for row in rows], self.batch_size):
            values[torch.tensor(indices)] = self.outputs(self.hidden([rows[i] for i in indices])).cpu()
        return self.checked(values, len(ids))

    def start(self, ids: Sequence[Sequence[int]]) -> CausalRows:
        """A state for texts as token ids. An empty text is read as the tokenizer's first token."""
        return CausalRows(self, [list(row) for row in ids])

    def truncated(self, ids: Sequence[int], room: int = 0) -> list[int]:
        """As many of the newest tokens as the model has positions for, minus ``room``.

        Raises:
            ValueError: there are no tokens, and the tokenizer has no special token that a text could start with.
        """
        if not ids:
            for special in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
                if special is not None:
                    return [special]
            raise ValueError(f"{self.what} {self.name} cannot read an empty text: its tokenizer has no first token")
        return list(ids[-max(1, self.limit - room) :])

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states (R, H) of the newest token of each row, without a cache."""
        return self.states(rows)[:, -1]

    def states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states (R, L, H) of every token; rows are padded on the left."""
        padded, mask = prefill.pad_left(rows, self.backbone.device)
        mask = torch.ones_like(padded) if mask is None else mask
        return self.forward(padded, mask, prefill.position_ids(mask), None)

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Hidden states (R, L, H) of the new tokens ``ids`` (R, L) after those in ``cache``."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
        if caches.accepts(self.backbone, "position_ids"):
            arguments["position_ids"] = positions
        if cache is not None:
            arguments[caches.cache_argument(self.backbone)] = cache
        hidden: Tensor = self.backbone(**arguments, return_dict=True).last_hidden_state
        return hidden


class CausalSequenceClassifier(CausalReader, CausalClassifier):
    """A decoder with a linear head on the hidden state of the newest token, which returns the classes' logits.

    Args:
        backbone: as for :class:`CausalReader`.
        head: as for :class:`CausalReader`.
        tokenizer: as for :class:`CausalReader`.
        labels: class names.
        activation: ``"softmax"`` or ``"sigmoid"``.
        **options: as for :class:`CausalReader`.

    Raises:
        ValueError: the architecture keeps a recurrent state, or the head does not belong to ``labels``.
    """

    def __init__(
        self,
        backbone: Any,
        head: Any,
        tokenizer: Any,
        labels: Sequence[str],
        *,
        activation: str = heads.SOFTMAX,
        **options: Any,
    ) -> None:
        super().__init__(backbone, head, tokenizer, label_names(labels), **options)
        self.activation = activation
        outputs = self.head(torch.zeros(1, backbone.config.hidden_size, device=backbone.device, dtype=backbone.dtype))
        if not heads.columns(self.labels, outputs.shape[-1]):
            raise ValueError(
                f"classifier {self.name}: {outputs.shape[-1]} outputs do not fit labels={list(self.labels)}"
            )
        self.is_normalized = activation == heads.SOFTMAX or outputs.shape[-1] == 1

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, labels: Sequence[str] | None = None, **options: Any
    ) -> CausalSequenceClassifier:
        """Create the classifier from a model such as ``LlamaForSequenceClassification``, whose head is named ``score``.

        Raises:
            ValueError: the model has no such head, or its architecture cannot be used.
        """
        head = getattr(model, "score", None)
        if head is None or model.base_model is model:
            raise ValueError(f"{type(model).__name__} has no head named 'score'; pass backbone and head separately")
        options.setdefault("name", str(getattr(model, "name_or_path", "") or type(model).__name__))
        activation = heads.activation_of(model.config, options.pop("activation", None))
        names = labels if labels is not None else heads.labels_of(model.config)
        return cls(model.base_model, head, tokenizer, names, activation=activation, **options)

    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``, each tokenised and read whole."""
        return self.values(texts)

    def log_prob_ids(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities (N, C) of texts as token ids."""
        return self.values_ids(ids)

    def to_dict(self) -> dict[str, Any]:
        """The kind and what identifies the weights."""
        return {"kind": "causal", "labels": list(self.labels), "activation": self.activation, **self.source}

    def outputs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (…, C) from hidden states (…, H)."""
        return heads.log_probabilities(self.head(hidden), self.activation)

    def checked(self, values: Tensor, n: int) -> Tensor:
        """Log-probabilities (n, C); see :func:`textguide.classifiers.checked`."""
        return checked(self, values, n)


class CausalRows(CausalState):
    """The rows of a run: their tokens, and one cache of those that were read.

    Args:
        classifier: the model that reads them.
        ids: the tokens of each row so far.
    """

    def __init__(self, classifier: CausalReader, ids: list[list[int]]) -> None:
        self.classifier = classifier
        self.ids = ids
        self._read: list[int] = []
        self._cache: Any = None
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._next = torch.empty(0, 1, dtype=torch.long)
        self._last = torch.empty(0, 0)  # hidden states of the newest token of each row, (R, H)

    @torch.inference_mode()
    def log_prob(self, rows: Sequence[int], candidates: Tensor) -> Tensor:
        """As :meth:`CausalState.log_prob`.

        Raises:
            ValueError: ``rows`` and ``candidates`` do not belong together, or a row does not exist.
        """
        classes = len(self.classifier.labels)
        if candidates.dim() != 2 or candidates.shape[0] != len(rows):
            raise ValueError(
                f"candidates has shape {tuple(candidates.shape)} for {len(rows)} rows; it must be (rows, k)"
            )
        self._check(rows)
        r, k = candidates.shape
        if not r or not k:
            return torch.empty(r, k, classes)
        self._catch_up(rows)
        device = self.classifier.backbone.device
        index = torch.tensor(list(rows), device=device)
        candidates = candidates.to(device)
        if self.classifier.share is None:
            self.classifier.share = self._sharing_works(index, candidates)
        values = self._shared(index, candidates) if self.classifier.share else self._expanded(index, candidates)
        return self.classifier.checked(values.reshape(r * k, classes), r * k).view(r, k, classes)

    @torch.inference_mode()
    def current(self, rows: Sequence[int]) -> Tensor:
        """As :meth:`CausalState.current`."""
        self._check(rows)
        if not len(rows):
            return torch.empty(0, len(self.classifier.labels))
        self._catch_up(rows)
        values = self.classifier.outputs(self._last[torch.tensor(list(rows), device=self._last.device)])
        return self.classifier.checked(values, len(rows))

    def append(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """As :meth:`CausalState.append`; the tokens are read when they are needed."""
        self._check(rows)
        for row, token in zip(rows, tokens, strict=True):
            self.ids[row].append(int(token))

    def select(self, index: Sequence[int]) -> None:
        """As :meth:`CausalState.select`."""
        self._check(index)
        self.ids = [list(self.ids[row]) for row in index]
        if self._cache is not None and list(index) != list(range(len(self._read))):
            picked = torch.tensor(list(index), device=self._mask.device, dtype=torch.long)
            caches.select_rows(self._cache, picked)
            self._mask = self._mask[picked]
            self._next = self._next[picked]
            self._last = self._last[picked]
            self._read = [self._read[row] for row in index]

    def _check(self, rows: Sequence[int]) -> None:
        for row in rows:
            if not 0 <= row < len(self.ids):
                raise ValueError(f"row {row} does not exist; the state has {len(self.ids)} rows")

    def _catch_up(self, rows: Sequence[int]) -> None:
        """Read the tokens that were appended since the last pass, if one of ``rows`` has any."""
        unread = [len(ids) - read for ids, read in zip(self.ids, self._read, strict=False)]
        if self._cache is not None and not any(unread[row] for row in rows):
            return
        if self._must_prefill(unread):
            # If a text is too long, some room is left, so that its beginning is not cut off again at every step.
            limit = self.classifier.limit
            room = max(1, limit // 4)
            self._prefill([self.classifier.truncated(ids, room if len(ids) >= limit else 0) for ids in self.ids])
        else:
            self._read_chunk(unread)

    def _must_prefill(self, unread: Sequence[int]) -> bool:
        """Whether the cache is missing, or cannot take ``unread`` more tokens of each row."""
        if self._cache is None:
            return True
        # Sliding windows count columns of the cache, so that no column may be empty between two tokens.
        if self.classifier.is_sliding and len(set(unread)) > 1:
            return True
        return int(self._next.max()) + max(unread, default=0) >= self.classifier.limit

    def _read_chunk(self, unread: Sequence[int]) -> None:
        """Read the last ``unread`` tokens of each row after the cache, padded on the left."""
        device = self._mask.device
        longest = max(unread)
        chunks = []
        masks = []
        for row, count in zip(self.ids, unread, strict=True):
            padding = [0] * (longest - count)
            chunks.append(padding + row[len(row) - count :])
            masks.append(padding + [1] * count)
        ids = torch.tensor(chunks, device=device)
        new = torch.tensor(masks, device=device)
        positions = (self._next + new.cumsum(1) - 1).clamp(min=0)
        self._mask = torch.cat([self._mask, new], dim=1)
        hidden = self.classifier.forward(ids, self._mask, positions, self._cache)
        # A row without new tokens keeps its hidden state.
        self._last = torch.where(new[:, -1:].bool(), hidden[:, -1], self._last)
        self._next = self._next + new.sum(1, keepdim=True)
        self._read = [len(row) for row in self.ids]

    def _prefill(self, rows: list[list[int]]) -> None:
        classifier = self.classifier
        ids, mask = prefill.pad_left(rows, classifier.backbone.device)
        self._mask = torch.ones_like(ids) if mask is None else mask
        self._cache = caches.new_cache(classifier.backbone)
        self._last = classifier.forward(ids, self._mask, prefill.position_ids(self._mask), self._cache)[:, -1]
        self._next = self._mask.sum(1, keepdim=True)
        self._read = [len(ids) for ids in self.ids]

    def _shared(self, index: Tensor, candidates: Tensor) -> Tensor:
        """Numbers of candidates (r, k) that are read as one chunk, each of which sees the prefix and itself."""
        whole = index.tolist() == list(range(len(self.ids)))
        cache = self._cache if whole else caches.copy_rows(self._cache, index)
        mask = self._mask[index]
        k = candidates.shape[1]
        dtype = self.classifier.backbone.dtype
        own = torch.eye(k, dtype=torch.bool, device=mask.device).expand(len(index), k, k)
        seen = torch.cat([mask[:, None].bool().expand(-1, k, -1), own], dim=2)[:, None]
        bias = torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)
        positions = self._next[index].expand(-1, k)
        try:
            hidden = self.classifier.forward(candidates, bias, positions, cache)
        finally:
            # The run's own cache must not keep the candidates, also if the pass failed halfway.
            extra = cache.get_seq_length() - mask.shape[1]
            if whole and extra:
                caches.crop(cache, extra)
        return self.classifier.outputs(hidden)

    def _expanded(self, index: Tensor, candidates: Tensor) -> Tensor:
        """Numbers of candidates (r, k) that are read after copies of their rows' caches, ``batch_size`` per pass."""
        k = candidates.shape[1]
        row_of = index.repeat_interleave(k)
        flat = candidates.reshape(-1, 1)
        size = self.classifier.batch_size
        parts = []
        for start in range(0, len(flat), size):
            rows = row_of[start : start + size]
            ids = flat[start : start + size]
            cache = caches.copy_rows(self._cache, rows)
            mask = F.pad(self._mask[rows], (0, 1), value=1)
            hidden = self.classifier.forward(ids, mask, self._next[rows], cache)
            parts.append(self.classifier.outputs(hidden[:, -1]))
        return torch.cat(parts).view(len(index), k, -1)

    def _sharing_works(self, index: Tensor, candidates: Tensor) -> bool:
        """Whether the architecture supports a mask of four dimensions: both ways must agree on a few candidates."""
        few = candidates[:, :3]
        try:
            shared = self._shared(index, few)
        except (ValueError, RuntimeError, TypeError, IndexError):
            self._cache = None
            self._catch_up(index.tolist())
            return False
        tolerance = 1e-3 if self.classifier.backbone.dtype == torch.float32 else 0.1
        return bool((shared - self._expanded(index, few)).abs().max() < tolerance)


def _crops(cache: Any) -> bool:
    return all(caches.is_full_attention(layer) for layer in cache.layers)
