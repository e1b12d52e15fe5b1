"""Probes: short passes that show what padding, merged caches, turns and chunks do to a model's answer.

A model's signature does not state whether rows of different lengths may share a pass, or whether all of its state is in
the cache. Each probe reads a few tokens in two ways and compares the logits, in evaluation mode and in float32. The
answers are per model class and configuration: :func:`padding`, :func:`reads_chunks`, :func:`stays_padded` and
:func:`is_causal`.

``model`` is a :class:`.model_adapter.ModelAdapter` throughout; its type is not imported because that file imports this
one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import caches
from .exact_passes import evaluation_mode, in_float32
from .own_lengths import OwnLengthsCache, OwnLengthsError

T = TypeVar("T")

# What models raise when they are called in a way that they were not written for.
_CALL_ERRORS = (RuntimeError, IndexError, TypeError, AttributeError, AssertionError, ValueError)
_SHORTEST = 7
"""Tokens of the longest prompt of a probe if nothing in the configuration asks for more…"""
_LONGEST = 1 << 27
"""… and the largest number of them times the size of the vocabulary, which bounds the memory for logits."""
_WORK = 2e10
"""Tokens times weights of a pass on a CPU: about a second."""
_NEVER = -100.0
"""A token with a log-probability below this is never drawn."""


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
    if cannot_be_probed(model):
        return Padding.EXACT
    if "reference_sliding_attention" in (getattr(model.text_config, "layer_types", None) or ()):
        raise ValueError(
            f"{model.name} slides a window over the generated text and not over its prompt, so that a text that is "
            "read again gets another answer; guidance is not available for this architecture"
        )
    try:
        result = _probed(model, _padding_of_sources if model.is_encoder_decoder else _padding_of_prompts)
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
    if cannot_be_probed(model):
        return True
    return _probed(model, _chunks)


def stays_padded(model: Any) -> str:
    """Why rows of different lengths cannot share a pass without padding, each reading its own keys; empty: they can."""
    if model.is_encoder_decoder:
        return "encoder-decoder"
    if cannot_be_probed(model):
        return "has no answer to tokens"
    return _probed(model, _own_lengths)


def is_causal(model: Any) -> bool:
    """Whether the logits of a prompt's token stay the same when more tokens follow it.

    Prefix language models look at the whole prompt from each of its tokens.
    """
    if model.has_recurrent_state or model.is_encoder_decoder or cannot_be_probed(model):
        return True
    return _probed(model, _causality)


def reads_static(model: Any) -> bool:
    """Whether a cache of fixed shape gives the logits of one that grows."""
    if model.is_encoder_decoder or cannot_be_probed(model):
        return True
    return _probed(model, _static)


def cannot_be_probed(model: Any) -> bool:
    """Whether a model only reads images or sound, and has no answer to tokens."""
    return getattr(model.base, "main_input_name", "input_ids") != "input_ids"


# -- how they are made ---------------------------------------------------------------------------------------------


def _probed(model: Any, probe: Callable[[Any], T]) -> T:
    """The result of ``probe`` on ``model``, in evaluation mode and in float32."""
    with torch.no_grad(), evaluation_mode(model.base):
        try:
            with in_float32(model.base):
                return probe(model)
        except _CALL_ERRORS as error:
            if str(error).startswith(model.name):
                raise
        # A kernel that only computes in half precision. Rounding then differs from pass to pass, so that rows are read
        # at their own lengths and token by token.
        return probe(model)


def _chunks(model: Any) -> bool:
    long, short, _ = _probe_tokens(model)
    short = short[-3:]
    prompt = long[:1] if model.is_encoder_decoder else long
    whole = _Reading(model, [prompt])
    parts = _Reading(model, [prompt])
    try:
        chunk_logits = whole.step([short], keep=len(short))
    except _CALL_ERRORS:
        return False
    return all(_same_logits(chunk_logits[:, number], parts.step([[token]])) for number, token in enumerate(short))


def _own_lengths(model: Any) -> str:
    long, short, after = _probe_tokens(model)
    expected = []
    parts = []
    for prompt, token in ((short, after[1]), (long, after[0])):
        alone = _Reading(model, [prompt])
        expected.append(torch.cat([alone.step([token]), alone.step([token])]))
        parts.append(_Reading(model, [prompt]))
    try:
        cache = OwnLengthsCache([part.cache for part in parts], [None, None], [len(short), len(long)])
    except ValueError as error:  # layers of another kind
        return str(error)
    together = _Reading(model, [short, long], cache)
    together.mask = None
    tokens = [after[1], after[0]]
    try:
        steps = torch.stack([together.step(tokens), together.step(tokens)])
    except OwnLengthsError as error:
        return str(error)
    except _CALL_ERRORS:
        return "does not attend through transformers' attention functions"
    if steps.isnan().any():
        return "computes with keys outside of its attention function"
    if all(_same_logits(steps[:, row], own) for row, own in enumerate(expected)):
        return ""
    return "returns other logits for rows of different lengths"


def _static(model: Any) -> bool:
    prompt, _, after = _probe_tokens(model)
    growing = _Reading(model, [prompt])
    fixed = _Reading(model, [prompt])
    fixed.cache = caches.to_static(fixed.cache, model.base, len(prompt) + 4)
    try:
        return _same_logits(fixed.step([after[0]]), growing.step([after[0]]))
    except _CALL_ERRORS:
        return False


def _causality(model: Any) -> bool:
    prompt, more, _ = _probe_tokens(model)
    more = more[-3:]
    longer = torch.tensor([[*prompt, *more]], device=model.device)
    positions = torch.arange(longer.shape[1], device=model.device)[None]
    cache = caches.new_cache(model.base)
    keep = len(more) + 1
    try:
        logits = model.read(longer, cache, mask=None, positions=positions, keep=keep, first=True)
    except _CALL_ERRORS:
        return False
    return _same_logits(logits[:, 0].float(), _Reading(model, [prompt]).logits)


def reach(model: Any) -> int:
    """The longest window, chunk or block in the configuration, and the length at which rotary embeddings change.

    A pass of more tokens shows what they do to an answer. 0 if there are none.
    """
    longest = model.rotary_switch or 0
    for config in {id(one): one for one in (model.base.config, model.text_config)}.values():
        for name, value in vars(config).items():
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if re.search("window|chunk|local|block", name):
                longest = max([longest, *(number for number in numbers if type(number) is int)])
    return longest


def probe_length(model: Any) -> int:
    """The number of tokens of the longest prompt of a probe.

    It exceeds :func:`reach` if the pass takes no more than a few seconds and the model has positions for it.
    """
    work = _WORK if model.device.type == "cpu" else 50 * _WORK
    affordable = int(work / sum(weight.numel() for weight in model.base.parameters()))
    longest = min(affordable, _LONGEST // (model.vocab_size or 1), (model.max_positions or _LONGEST) - 8)
    return max(_SHORTEST, min(reach(model) + _SHORTEST, longest))


def _probe_tokens(model: Any) -> tuple[list[int], list[int], list[list[int]]]:
    """Two prompts of different lengths, and for each the token that continues it; none of them is a special token."""
    size = model.vocab_size or 32
    special = set()
    for name, value in vars(model.base.config).items():
        if name.endswith(("token_id", "token_index")) and isinstance(value, int):
            special.add(value)
    ordinary = [token for token in range(size // 4, size) if token not in special] or list(range(size))
    length = probe_length(model)
    switch = model.rotary_switch or 0
    # Rows on different sides of a switch never share a pass, whatever padding does.
    shorter = switch + 3 if switch + 3 < length else 3
    picked = [ordinary[(i * 7919) % len(ordinary)] for i in range(length + shorter + 2)]
    return picked[:length], picked[length:-2], [picked[-2:-1], picked[-1:]]


def _check_numbers(model: Any, logits: Tensor) -> None:
    """Refuse a model whose ``logits`` (R, V) for a prompt of ordinary tokens are not numbers."""
    if logits.isnan().any():
        raise ValueError(
            f"{model.name} returns logits that are NaN for a prompt of ordinary tokens; load its weights again, or in "
            "float32 if they are in half precision"
        )


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
    _check_numbers(model, torch.cat(first_logits))

    turns = [_Reading(model, [long]), _Reading(model, [short])]
    for reading, token, expected in zip(turns, after, second_logits, strict=True):
        if not _same_logits(reading.step([token]), expected):
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
    if not _same_logits(together.step(after), expected_second):
        return Padding.CHANGES
    if model.has_recurrent_state:
        return Padding.IN_CACHE

    padded = _Reading(model, [long, short])
    exact = _same_logits(padded.logits, expected_first)
    exact = exact and _same_logits(padded.step(after), expected_second)
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
    _check_numbers(model, expected)
    return Padding.EXACT if _same_logits(read([long, short]), expected) else Padding.CHANGES


def _same_logits(logits: Tensor, expected: Tensor) -> bool:
    """Whether two readings of the same rows, (R, V), only differ by rounding.

    Tokens that neither of them would ever draw do not count: they may be forbidden by any large negative number.
    """
    log_probs = torch.log_softmax(logits, -1).clamp(min=_NEVER)
    right = torch.log_softmax(expected, -1).clamp(min=_NEVER)
    counts = (log_probs > _NEVER) | (right > _NEVER)
    mean = (right * counts).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True)
    size = ((right - mean) * counts).norm(dim=-1)
    difference = ((log_probs - right) * counts).norm(dim=-1)
    return bool((difference <= 1e-3 * size + 1e-5).all())


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
