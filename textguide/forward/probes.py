"""Probes: short passes that show what padding, merged caches, turns and chunks do to a model's answer.

A model's signature does not state whether rows of different lengths may share a pass, or whether all of its state is in
the cache. Each probe reads a few tokens in two ways and compares the logits. The answers are per model class and
configuration: :func:`padding`, :func:`reads_chunks` and :func:`is_causal`.

``model`` is a :class:`.model_adapter.ModelAdapter` throughout; its type is not imported because that file imports this
one.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import caches

# What models raise when they are called in a way that they were not written for.
_CALL_ERRORS = (RuntimeError, IndexError, TypeError, AttributeError, AssertionError, ValueError)


class Padding(enum.Enum):
    """What left padding does to a model's answer."""

    EXACT = "rows of different lengths may be read in one pass, padded on the left"
    IN_CACHE = "prompts are read at their own lengths, and their caches may be merged with padding"
    CHANGES = "rows of different lengths need caches and passes of their own"


# -- the probes ----------------------------------------------------------------------------------------------------


def padding(model: Any) -> Padding:
    """What left padding does to the answer of ``model``, from two short rows of different lengths.

    Raises:
        ValueError: the model keeps state outside its cache, so that rows of two branches cannot take turns, or it
            cannot continue a cache at all.
    """
    if _cannot_be_probed(model):
        return Padding.EXACT
    if "reference_sliding_attention" in (getattr(model.text_config, "layer_types", None) or ()):
        raise ValueError(
            f"{model.name} slides a window over the generated text and not over its prompt, so that a text that is "
            "read again gets another answer; guidance is not available for this architecture"
        )
    with torch.no_grad():
        try:
            result = _padding_of_sources(model) if model.is_encoder_decoder else _padding_of_prompts(model)
        except _CALL_ERRORS as error:
            if str(error).startswith(model.name):  # a refusal that names the model already
                raise
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{model.name} cannot continue a cache ({reason}); guidance is not available for it"
            ) from error
    if model.selects_tokens is not None:
        # Such a model could select padding. The probe is too short to show it.
        return Padding.CHANGES
    return result


def reads_chunks(model: Any) -> bool:
    """Whether several new tokens of a row may be read in one pass after a cache."""
    if model.has_recurrent_state:
        return False  # not every model continues a state with a chunk
    if _cannot_be_probed(model):
        return True
    long, short, _ = _probe_tokens(model)
    prompt = long[:1] if model.is_encoder_decoder else long
    with torch.no_grad():
        whole = _Reading(model, [prompt])
        parts = _Reading(model, [prompt])
        try:
            chunk_logits = whole.step([short], keep=len(short))
        except _CALL_ERRORS:
            return False
        for number, token in enumerate(short):
            if not _same_logits(model, chunk_logits[:, number], parts.step([[token]])):
                return False
        return True


def is_causal(model: Any) -> bool:
    """Whether the logits of a prompt's token stay the same when more tokens follow it.

    Prefix language models look at the whole prompt from each of its tokens.
    """
    if model.has_recurrent_state or model.is_encoder_decoder or _cannot_be_probed(model):
        return True
    prompt, more, _ = _probe_tokens(model)
    with torch.no_grad():
        longer = torch.tensor([[*prompt, *more]], device=model.device)
        positions = torch.arange(longer.shape[1], device=model.device)[None]
        cache = caches.new_cache(model.base)
        keep = len(more) + 1
        try:
            logits = model.read(longer, cache, mask=None, positions=positions, keep=keep, first=True)
        except _CALL_ERRORS:
            return False
        return _same_logits(model, logits[:, 0].float(), _Reading(model, [prompt]).logits)


# -- how they are made ---------------------------------------------------------------------------------------------


def _cannot_be_probed(model: Any) -> bool:
    """Dropout differs from call to call, and a model that only reads images or sound has no answer to tokens."""
    return model.base.training or getattr(model.base, "main_input_name", "input_ids") != "input_ids"


def _probe_tokens(model: Any) -> tuple[list[int], list[int], list[list[int]]]:
    """Two prompts of different lengths, and for each the token that continues it; none of them is a special token."""
    size = model.vocab_size or 32
    special = set()
    for name, value in vars(model.base.config).items():
        if name.endswith(("token_id", "token_index")) and isinstance(value, int):
            special.add(value)
    ordinary = [token for token in range(size // 4, size) if token not in special] or list(range(size))
    picked = [ordinary[(i * 7919) % len(ordinary)] for i in range(12)]
    return picked[:7], picked[7:10], [[picked[10]], [picked[11]]]


def _padding_of_prompts(model: Any) -> Padding:
    """The probe for decoders, whose prompts are padded on the left.

    Raises:
        ValueError: rows cannot take turns.
    """
    long, short, after = _probe_tokens(model)
    first_logits = []
    second_logits = []
    for prompt, token in ((long, after[0]), (short, after[1])):
        reading = _Reading(model, [prompt])
        first_logits.append(reading.logits)
        second_logits.append(reading.step([token]))

    turns = [_Reading(model, [long]), _Reading(model, [short])]
    for reading, token, expected in zip(turns, after, second_logits, strict=True):
        if not _same_logits(model, reading.step([token]), expected):
            raise ValueError(
                f"{model.name} keeps state outside its cache: what one row has read is lost when another row is read, "
                "so that branches cannot take turns; guidance is not available for this architecture"
            )
    expected_first = torch.cat(first_logits)
    expected_second = torch.cat(second_logits)

    # Branches are read at their own lengths and their caches are merged, whether or not a prompt may be padded.
    parts = [_Reading(model, [prompt]) for prompt in (long, short)]
    try:
        merged = caches.merge([part.cache for part in parts])
    except ValueError:  # layers of an unknown kind
        return Padding.CHANGES
    together = _Reading(model, [long, short], merged)
    if caches.has_no_time_axis(merged):
        together.mask = None
    if not _same_logits(model, together.step(after), expected_second):
        return Padding.CHANGES
    if model.has_recurrent_state:
        return Padding.IN_CACHE

    padded = _Reading(model, [long, short])
    exact = _same_logits(model, padded.logits, expected_first)
    exact = exact and _same_logits(model, padded.step(after), expected_second)
    return Padding.EXACT if exact else Padding.IN_CACHE


def _padding_of_sources(model: Any) -> Padding:
    """The probe for encoders, whose sources are padded on the right."""
    long, short, after = _probe_tokens(model)

    def read(sources: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, sources))
        ids = torch.tensor([[*source, *([0] * (width - len(source)))] for source in sources], device=model.device)
        mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sources], device=model.device)
        inputs = {"encoder_outputs": model.encode(ids, mask), "attention_mask": mask}
        decoder_ids = torch.tensor([after[0]] * len(sources), device=model.device)
        cache = caches.new_cache(model.base)
        logits = model.read(decoder_ids, cache, mask=None, positions=None, first=True, inputs=inputs)
        return logits[:, -1].float()

    expected = torch.cat([read([long]), read([short])])
    return Padding.EXACT if _same_logits(model, read([long, short]), expected) else Padding.CHANGES


def _same_logits(model: Any, logits: Tensor, expected: Tensor) -> bool:
    """Whether two readings of the same rows, (R, V), only differ by rounding."""
    # Half precision rounds by a percent or two after many layers; padding that enters the answer changes far more.
    allowed = 1e-3 if model.base.dtype in (torch.float32, torch.float64) else 0.08
    # Softmax ignores a constant, so the mean is taken off before the comparison.
    expected = expected - expected.mean(-1, keepdim=True)
    difference = (logits - logits.mean(-1, keepdim=True) - expected).norm(dim=-1)
    return bool((difference <= allowed * expected.norm(dim=-1) + 1e-5).all())


class _Reading:
    """A minimal row batch for probes: it pads and counts positions itself, so that it depends on nothing it tests.

    Args:
        model: the adapter of the model.
        rows: token ids of each row; for an encoder-decoder those of its decoder.
        cache: a cache in which these rows were read already; None: they are read now.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], cache: Any = None) -> None:
        self.model = model
        length = max(map(len, rows))
        self.mask: Tensor | None = None
        if any(len(row) < length for row in rows):
            self.mask = self._tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        self.next = self._tensor([[len(row)] for row in rows])
        self.cache = caches.new_cache(model.base) if cache is None else cache
        self.inputs: dict[str, Any] = {}
        if model.is_encoder_decoder:
            source = self._tensor([_probe_tokens(model)[0]] * len(rows))
            mask = torch.ones_like(source)
            self.inputs = {"encoder_outputs": model.encode(source, mask), "attention_mask": mask}
        self.logits = torch.empty(0)
        if cache is None:
            ids = self._tensor([[0] * (length - len(row)) + list(row) for row in rows])
            real = self.mask if self.mask is not None else torch.ones_like(ids)
            positions = (real.cumsum(-1) - 1).masked_fill(real == 0, 0)
            self.logits = self._read(ids, positions, first=True)[:, -1]

    def step(self, tokens: Sequence[Sequence[int]], keep: int = 1) -> Tensor:
        """Read ``tokens`` and return the last logits, (R, V), or with ``keep`` > 1 the last ``keep``, (R, keep, V)."""
        ids = self._tensor(tokens)
        new = ids.shape[1]
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, new), value=1)
        positions = self.next + torch.arange(new, device=ids.device)
        self.next = self.next + new
        logits = self._read(ids, positions, first=False, keep=keep)
        return logits if keep > 1 else logits[:, -1]

    def _read(self, ids: Tensor, positions: Tensor, first: bool, keep: int = 1) -> Tensor:
        logits = self.model.read(
            ids,
            self.cache,
            mask=self.mask,
            positions=positions,
            keep=keep,
            first=first,
            inputs=self.inputs,
        )
        return logits.float()

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.model.device)
