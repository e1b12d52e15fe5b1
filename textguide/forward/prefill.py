"""Reading prompts: from token ids to rows and the logits behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import StaticCache

from . import caches
from .model_adapter import ModelAdapter, Padding, adapter
from .row_batch import RowBatch, Rows, SharedRows, merge

_LOOKED_AT, _SAVED = 32, 256
"""Prompts with this many tokens in common at their beginning read it once, where that saves so many tokens."""
_EVERY_STEP = ("encoder_hidden_states", "encoder_attention_mask")
"""What decoders with cross-attention read with every pass; other inputs go with the first."""


def read_prepared(
    model: Any,
    ids: Tensor,
    model_kwargs: Mapping[str, Any],
    *,
    copies: int = 1,
    fresh: bool = False,
    fast: bool = False,
) -> tuple[Rows, Tensor]:
    """Read what transformers' ``generate`` prepared; the rows and the next-token logits (B, V).

    Args:
        ids: (B, L), padded on the left.
        model_kwargs: attention mask, positions, cache, encoder outputs, pixels…
        copies: every so many rows that follow each other have one prompt, which is then read once.
        fresh: the rows will stand beside those of other branches: leave a static cache, which has rows for these alone.
        fast: need not reproduce the bits of plain decoding.

    Raises:
        ValueError: the rows are padded, the model would read that into a state, and images come with them.
    """
    kwargs = {name: value for name, value in model_kwargs.items() if name not in ("use_cache", "logits_to_keep")}
    given = [kwargs.pop(name, None) for name in caches.ARGUMENTS]
    cache = next((c for c in given if c is not None and not (fresh and isinstance(c, StaticCache))), None)
    mask, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
    known = adapter(model)
    rows: Rows
    if known.is_encoder_decoder:
        outputs, decoder_mask = kwargs["encoder_outputs"], kwargs.get("decoder_attention_mask")
        rows, logits = read_encoded(known.base, ids, outputs, mask, decoder_mask=decoder_mask, cache=cache)
        return rows, logits[:, -1].to(ids.device)
    with_images = any(_says_something(name, value) for name, value in kwargs.items())
    padded = mask is not None and not bool(mask.all())
    if padded and with_images and known.has_recurrent_state:
        raise ValueError(
            f"{known.name} would read padding into its state, and images come with these prompts: give prompts of one "
            "length, or one prompt at a time"
        )
    # Prompts with images are padded as the model's own processor pads them; what comes with a row, such as an image,
    # may differ where its ids do not.
    if mask is not None and not with_images:
        apart = padded and (known.padding is not Padding.EXACT or known.reads_apart(mask.sum(-1).tolist()))
        # The rows come into a cache of their own, so that what generate gave may stay empty; a static one may not.
        usual = (fresh or fast) and mask.shape == ids.shape and _are_usual(positions, mask)
        if apart or known.has_recurrent_state or (usual and _may_be_left(cache)):
            prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
            rows, logits = read_prompts(known.base, prompts, ids.device, fast=fast, sharing=copies > 1)
            return rows, logits[:, -1].to(ids.device)
    step = 1 if with_images else copies
    if positions is not None and len(positions) == len(ids):
        positions = positions[::step]
    rows, logits = read_padded(
        known.base, ids[::step], mask if mask is None else mask[::step], positions=positions, cache=cache, extra=kwargs,
        fast=fast,
    )  # fmt: skip
    if step > 1:
        row_of = torch.arange(len(ids), device=rows.device) // step
        rows, logits = SharedRows(rows, row_of), logits[row_of.to(logits.device)]
    return rows, logits[:, -1].to(ids.device)


def _may_be_left(cache: Any) -> bool:
    """Whether nothing is lost where the rows are read into another cache: there is none, or an empty one that grows."""
    return cache is None or (not isinstance(cache, StaticCache) and cache.get_seq_length() == 0)


def _are_usual(positions: Tensor | None, mask: Tensor) -> bool:
    """Whether positions count the unmasked tokens, as they do where nobody gave others."""
    if positions is None:
        return True
    return positions.shape == mask.shape and bool(((positions == position_ids(mask)) | (mask == 0)).all())


def _says_something(name: str, value: Any) -> bool:
    """Whether an input comes with the rows beside their ids, such as an image; models make empty ones for text."""
    if name.endswith("token_type_ids") and isinstance(value, Tensor):
        return bool((value != value.flatten()[0]).any())
    return bool(value) if isinstance(value, Mapping) else isinstance(value, Tensor)


def read_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    device: Any,
    keep: int = 1,
    fast: bool = False,
    sharing: bool = False,
) -> tuple[Rows, Tensor]:
    """Read decoder-only ``prompts`` and return their rows and the last ``keep`` logits.

    Equal prompts are read once; with ``sharing`` they stay one row until they go on differently. A long beginning that
    prompts have in common, such as instructions or worked examples, is read once, too. Rows of unlike length are padded
    on the left where the model allows it, and read one length at a time where not.

    Returns:
        ``len(prompts)`` rows in order, and logits (R, keep, V).
    """
    known = adapter(model)
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    lengths = [len(prompt) for prompt in unique]
    unlike = len(set(lengths)) > 1
    # Asked for guided rows of one length too, since it refuses models that branches cannot share.
    apart = (fast or unlike) and known.reads_apart(lengths)
    if not unlike or not (apart or known.padding is not Padding.EXACT):
        groups = [unique]
    else:
        groups = [[prompt for prompt in unique if len(prompt) == length] for length in sorted(set(lengths))]
    parts: list[Rows] = []
    logits, order = [], []
    for shared, group in chain.from_iterable(_by_beginning(known, group, keep) for group in groups):
        rows: Rows
        if shared:
            rows, last = _behind(known, group, shared, device, keep, fast)
        else:
            ids, mask = pad_left(group, device)
            rows, last = read_padded(known.base, ids, mask, keep=min(keep, ids.shape[1]), fast=fast)
        parts.append(rows)
        logits.append(F.pad(last, (0, 0, keep - last.shape[1], 0)))
        order += group
    place = {prompt: row for row, prompt in enumerate(order)}
    index = [place[tuple(prompt)] for prompt in prompts]
    together, last = merge(parts), torch.cat(logits)
    picked = torch.tensor(index, device=device)
    if sharing:
        return SharedRows(together, picked.to(together.device)), last[picked]
    together.select(picked)
    return together, last[picked]


def _by_beginning(
    known: ModelAdapter, prompts: list[tuple[int, ...]], keep: int
) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """The prompts in groups, and for each the number of tokens that it begins with alike and reads once; 0 for none.

    A group with such a beginning is in ascending order of length.
    """
    alike: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt in prompts:
        alike.setdefault(prompt[:_LOOKED_AT], []).append(prompt)
    rest: list[tuple[int, ...]] = []
    for group in alike.values():
        group.sort(key=len)
        longest = len(group[-1])
        shared = min(_alike(group), longest - keep)
        # Shorter prompts read the end of the beginning again, so that all have equally many tokens left to read.
        own = [shared - (longest - len(prompt)) for prompt in group]
        if own[0] > 0 and sum(own) - shared >= _SAVED and known.goes_on_behind(shared, longest):
            yield shared, group
        else:
            rest += group
    if rest:
        yield 0, rest


def _alike(prompts: list[tuple[int, ...]]) -> int:
    """How many tokens all of them begin with."""
    first, last = min(prompts), max(prompts)
    return next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))


def _behind(
    known: ModelAdapter, prompts: list[tuple[int, ...]], shared: int, device: Any, keep: int, fast: bool
) -> tuple[Rows, Tensor]:
    """Rows of prompts in ascending order of length that begin with the same ``shared`` tokens, which are read once."""
    longest, cache = len(prompts[-1]), caches.new_cache(known.base)
    cuts = [longest - len(prompt) for prompt in prompts]
    if cuts[0]:
        caches.record_past(cache)  # windows forget what shorter prompts still need
    ids = torch.tensor([prompts[0][:shared]], device=device)
    beginning, _ = read_padded(known.base, ids, None, cache=cache, fast=fast)
    parts: list[Rows] = []
    for cut, several in groupby(cuts):
        part = beginning.split(torch.zeros(len(list(several)), dtype=torch.long, device=beginning.device))
        if cuts[0]:
            part.crop(cut)
        parts.append(part)
    rows = merge(parts)
    ends = torch.tensor([prompt[shared - longest :] for prompt in prompts], device=device)
    return rows, rows.forward(ends, keep)


def read_padded(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    *,
    keep: int = 1,
    positions: Tensor | None = None,
    cache: Any = None,
    extra: dict[str, Any] | None = None,
    fast: bool = False,
) -> tuple[RowBatch, Tensor]:
    """Read left-padded ids (R, L) in one pass.

    Args:
        mask: (R, L) with 0 on padding; None: no padding.
        positions: (R, L); default: counted from the mask.
        cache: the cache to fill; default: a new one that grows.
        extra: further inputs of the model's first pass, such as pixel values.
        fast: see :class:`RowBatch`.
    """
    known, extra = adapter(model), extra or {}
    if positions is None:
        positions = (
            position_ids(mask) if mask is not None else torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        )
    if positions.dim() == 3:  # time, height and width of image patches: text goes on behind the largest
        next_position = positions[-3:].amax(dim=(0, 2))[:, None] + 1
    else:
        next_position = (positions[:, -1:] + 1).expand(ids.shape[0], 1)
    cache = cache if cache is not None else caches.new_cache(known.base)
    if extra.get("encoder_hidden_states") is not None:
        cache = caches.with_cross_attention(cache, known.base)
    logits = known.read(
        ids, cache, mask=mask, positions=positions, keep=keep, first=True, inputs=extra, fast=fast
    )  # fmt: skip
    inputs = {name: extra[name] for name in _EVERY_STEP if extra.get(name) is not None}
    return RowBatch(known, cache, ids.shape[1], mask, next_position, inputs, fast=fast), logits


def repeat(rows: Rows, logits: Tensor, index: Sequence[int]) -> tuple[Rows, Tensor]:
    """The rows ``index`` of ``rows``, which must not be used afterwards; the logits likewise."""
    picked = torch.tensor(list(index), device=rows.device)
    rows.select(picked)
    return rows, logits[picked.to(logits.device)]


def read_encoded(
    model: Any,
    decoder_ids: Tensor,
    encoder_outputs: Any,
    encoder_mask: Tensor | None,
    *,
    decoder_mask: Tensor | None = None,
    keep: int = 1,
    cache: Any = None,
) -> tuple[RowBatch, Tensor]:
    """Read decoder ids (R, L) against encoded sources.

    Raises:
        ValueError: the sources are padded, and the model's answer changes with padding.
    """
    known = adapter(model)
    padded = encoder_mask is not None and encoder_mask.dim() == 2 and not bool(encoder_mask.all())
    if padded and known.padding is Padding.CHANGES:
        raise ValueError(
            f"{known.name} reads padding behind a source as if it were text, so that sources of unlike length cannot "
            "be read together; give prompts of one length, or one prompt at a time (batch_size=1)"
        )
    inputs = {"encoder_outputs": encoder_outputs, "attention_mask": encoder_mask}
    position = torch.full((decoder_ids.shape[0], 1), decoder_ids.shape[1], device=decoder_ids.device)
    cache = cache if cache is not None else caches.new_cache(known.base)
    logits = known.read(
        decoder_ids, cache, mask=decoder_mask, positions=None, keep=keep, first=True, inputs=inputs
    )  # fmt: skip
    return RowBatch(known, cache, decoder_ids.shape[1], decoder_mask, position, inputs), logits


def encode(model: Any, sources: Sequence[Sequence[int]], device: Any) -> tuple[Any, Tensor]:
    """Run the encoder on ``sources``, padded on the right: its outputs and their attention mask (R, S)."""
    length = max(len(source) for source in sources)
    ids = torch.tensor([[*source, *([0] * (length - len(source)))] for source in sources], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sources], device=device)
    return adapter(model).encode(ids, mask), mask


def pad_left(prompts: Sequence[Sequence[int]], device: Any, pad: int = 0) -> tuple[Tensor, Tensor | None]:
    """Prompts as ids (R, L) with padding on the left, and their mask (None where nothing was padded)."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    if all(len(p) == length for p in prompts):
        return ids, None
    return ids, torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)


def position_ids(mask: Tensor) -> Tensor:
    """Positions (R, L) that count the unmasked tokens; 0 on padding."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
