"""Reading prompts: from token ids to rows and the logits after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import StaticCache

from . import caches
from .chunking import ONE_PASS, Chunking
from .model_adapter import ModelAdapter, Padding, adapter
from .row_batch import RowBatch, Rows, SharedRows, merge

COMPARED = 32
"""Prompts that start with the same tokens, this many of them, are considered for reading their prefix once."""
LEAST_SAVED = 256
"""The number of tokens that a further pass has to save, by reading a prefix once or by padding less."""
_EVERY_STEP = ("encoder_hidden_states", "encoder_attention_mask")
"""What decoders with cross-attention read in every pass; other inputs are only read in the first."""

TokenIds = tuple[int, ...]


# -- what transformers prepared ------------------------------------------------------------------------------------


@dataclass
class _PreparedInputs:
    """What transformers' ``generate`` prepares besides token ids.

    Args:
        cache: an empty cache; None: there is none.
        mask: attention mask.
        positions: of the tokens.
        others: encoder outputs, pixel values…
    """

    cache: Any
    mask: Tensor | None
    positions: Tensor | None
    others: dict[str, Any]

    @classmethod
    def of(cls, model_kwargs: Mapping[str, Any], fresh: bool) -> _PreparedInputs:
        others = {name: value for name, value in model_kwargs.items() if name not in ("use_cache", "logits_to_keep")}
        cache = None
        for name in caches.ARGUMENTS:
            value = others.pop(name, None)
            # A static cache only has room for the rows it was made for.
            if cache is None and not (fresh and isinstance(value, StaticCache)):
                cache = value
        return cls(cache, others.pop("attention_mask", None), others.pop("position_ids", None), others)

    @cached_property
    def is_padded(self) -> bool:
        return self.mask is not None and not bool(self.mask.all())

    @cached_property
    def has_images(self) -> bool:
        """Whether inputs other than token ids say something about the rows."""
        return any(_is_informative(name, value) for name, value in self.others.items())

    @property
    def cache_may_stay_empty(self) -> bool:
        """Whether rows may be read into another cache: there is none, or an empty one that grows."""
        if self.cache is None:
            return True
        return not isinstance(self.cache, StaticCache) and self.cache.get_seq_length() == 0

    def mask_of(self, ids: Tensor) -> Tensor:
        """The attention mask; transformers leaves it out if nothing is padded."""
        return torch.ones_like(ids) if self.mask is None else self.mask

    def positions_count_tokens(self, mask: Tensor) -> bool:
        """Whether positions count the unmasked tokens, as they do unless the caller passed others."""
        if self.positions is None:
            return True
        if self.positions.shape != mask.shape:
            return False
        return bool(((self.positions == position_ids(mask)) | (mask == 0)).all())


def _is_informative(name: str, value: Any) -> bool:
    """Whether an input adds information to the token ids, as an image does; models add empty inputs to plain text."""
    if name.endswith("token_type_ids") and isinstance(value, Tensor):
        return bool((value != value.flatten()[0]).any())
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, Tensor)


def read_prepared(
    model: Any,
    ids: Tensor,
    model_kwargs: Mapping[str, Any],
    *,
    copies: int = 1,
    fresh: bool = False,
    fast: bool = False,
    chunking: Chunking = ONE_PASS,
) -> tuple[Rows, Tensor]:
    """Read what transformers' ``generate`` prepared, and return the rows and the next-token logits (B, V).

    Args:
        ids: token ids, (B, L), padded on the left.
        model_kwargs: attention mask, positions, cache, encoder outputs, pixel values…
        copies: every ``copies`` consecutive rows have the same prompt, which is read once.
        fresh: the rows will be merged with those of other branches, so do not use a static cache, which only has room
            for these rows.
        fast: use this machine's faster matrix products, which do not reproduce the bits of plain decoding.
        chunking: how long prompts are cut; those with images are not.

    Raises:
        ValueError: the rows are padded and have images, and the model would read the padding into its state.
    """
    known = adapter(model)
    prepared = _PreparedInputs.of(model_kwargs, fresh)
    rows: Rows
    if known.is_encoder_decoder:
        rows, logits = read_encoded(
            known.base,
            ids,
            prepared.others["encoder_outputs"],
            prepared.mask,
            decoder_mask=prepared.others.get("decoder_attention_mask"),
            cache=prepared.cache,
        )
    elif _reads_unpadded(known, ids, prepared, fresh or fast):
        prompts = _unpadded(ids, prepared.mask_of(ids))
        rows, logits = read_prompts(known.base, prompts, ids.device, fast=fast, sharing=copies > 1, chunking=chunking)
    else:
        # The rows of one prompt may have different images.
        if prepared.has_images:
            copies = 1
            chunking = ONE_PASS
        rows, logits = _read_as_prepared(known, ids, prepared, copies, fast, chunking)
    return rows, logits[:, -1].to(ids.device)


def as_token_ids(model: Any, ids: Tensor, model_kwargs: Mapping[str, Any]) -> list[list[int]] | None:
    """The prompts of :func:`read_prepared` without padding, which may be read together with those of other branches.

    None if there is more to read than token ids, or if transformers prepared positions or a cache that are to be used.
    """
    known = adapter(model)
    prepared = _PreparedInputs.of(model_kwargs, fresh=True)
    if known.is_encoder_decoder or not _reads_unpadded(known, ids, prepared, new_cache=True):
        return None
    return _unpadded(ids, prepared.mask_of(ids))


def _reads_unpadded(known: ModelAdapter, ids: Tensor, prepared: _PreparedInputs, new_cache: bool) -> bool:
    """Whether to remove the padding of prompts and to read them into another cache.

    Args:
        new_cache: do so whenever it is possible, not only if it is necessary.

    Raises:
        ValueError: the padding cannot be removed, and the model would read it.
    """
    if prepared.has_images:
        # The model's own processor has padded these, and an input such as an image cannot be cut to a row's length.
        if prepared.is_padded and known.has_recurrent_state:
            raise ValueError(
                f"{known.name} would read padding into its state, and these prompts have images: pass prompts of one "
                "length, or one prompt at a time"
            )
        return False
    mask = prepared.mask_of(ids)
    if prepared.is_padded and known.padding is not Padding.EXACT:
        return True
    if prepared.is_padded and known.needs_separate_passes(mask.sum(-1).tolist()):
        return True
    if known.has_recurrent_state:
        return prepared.mask is not None
    # The cache that generate passed stays empty then, which nobody notices unless it is a static one. Keys in it would
    # stay in memory during the whole run, even if the branches are merged into another cache.
    may_move = mask.shape == ids.shape and prepared.positions_count_tokens(mask) and prepared.cache_may_stay_empty
    return new_cache and may_move


def _unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


def _read_as_prepared(
    known: ModelAdapter, ids: Tensor, prepared: _PreparedInputs, copies: int, fast: bool, chunking: Chunking
) -> tuple[Rows, Tensor]:
    """Rows and last logits of prompts, read with their padding; of ``copies`` consecutive ones the first is read."""
    positions = prepared.positions
    if positions is not None and len(positions) == len(ids):  # (3, R, L) for models with image positions
        positions = positions[::copies]
    rows, logits = read_padded(
        known.base,
        ids[::copies],
        None if prepared.mask is None else prepared.mask[::copies],
        positions=positions,
        cache=prepared.cache,
        extra=prepared.others,
        fast=fast,
        chunking=chunking,
    )
    if copies == 1:
        return rows, logits
    row_of = torch.arange(len(ids), device=rows.device) // copies
    return SharedRows(rows, row_of), logits[row_of.to(logits.device)]


# -- prompts as token ids ------------------------------------------------------------------------------------------


def read_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    device: Any,
    keep: int = 1,
    fast: bool = False,
    sharing: bool = False,
    chunking: Chunking = ONE_PASS,
) -> tuple[Rows, Tensor]:
    """Read the prompts of a decoder, and return their rows and last logits.

    Equal prompts are read once. A long prefix that several prompts have in common, such as instructions or worked
    examples, is read once, too. Prompts of similar length are padded on the left and read in one pass if the model
    allows it; prompts of very different lengths, and all lengths of other models, have a pass of their own.

    Args:
        prompts: token ids of each prompt.
        device: the device of the token ids.
        keep: number of positions whose logits are returned.
        fast: use this machine's faster matrix products, which do not reproduce the bits of plain decoding.
        sharing: equal prompts share one row until different tokens follow them.
        chunking: how long prompts are cut.

    Returns:
        ``len(prompts)`` rows in order, and logits (R, keep, V).
    """
    return read_branches(model, [prompts], device, keep, fast, sharing, chunking)


def read_branches(
    model: Any,
    branches: Sequence[Sequence[Sequence[int]]],
    device: Any,
    keep: int = 1,
    fast: bool = False,
    sharing: bool = False,
    chunking: Chunking = ONE_PASS,
) -> tuple[Rows, Tensor]:
    """Read the prompts of several branches of one model as :func:`read_prompts` does.

    Branches read equal prompts and long common prefixes, such as a system prompt, once for all of them. What is left
    has a pass per branch, because branches often have prompts of very different lengths.

    Args:
        branches: token ids of each prompt of each branch.

    Returns:
        The rows of all branches, ordered by branch and then as their prompts, and logits (R, keep, V).
    """
    known = adapter(model)
    prompts: list[TokenIds] = []
    branch_of: dict[TokenIds, int] = {}
    for number, rows in enumerate(branches):
        for prompt in map(tuple, rows):
            prompts.append(prompt)
            branch_of.setdefault(prompt, number)
    if fast or len(prompts) > 1:
        known.check_state()
    reader = _PromptReader(known, branch_of, device, keep, fast, chunking)
    reader.read(prefix_tree(known, list(branch_of), keep))
    row_of = {prompt: row for row, prompt in enumerate(reader.order)}
    index = torch.tensor([row_of[prompt] for prompt in prompts], device=device)
    merged = merge(reader.parts)
    last = torch.cat(reader.logits)
    if sharing:
        return SharedRows(merged, index.to(merged.device)), last[index]
    merged.select(index)
    return merged, last[index]


@dataclass
class PrefixNode:
    """Prompts that start with the same tokens, which are read once.

    Args:
        length: the number of these tokens; 0: none.
        prompts: the prompts that are read after them.
        longer: nodes with a longer prefix, which starts with the same tokens.
    """

    length: int
    prompts: list[TokenIds] = field(default_factory=list)
    longer: list[PrefixNode] = field(default_factory=list)


def prefix_tree(known: ModelAdapter, prompts: Sequence[TokenIds], keep: int) -> PrefixNode:
    """The prefixes that are worth a pass of their own, from those of no tokens on.

    Args:
        prompts: different prompts.
        keep: the last tokens of each prompt that are not read with its prefix, because their logits are needed.
    """
    with_prefix = sorted(prompt for prompt in prompts if len(prompt) > keep)
    common = [_common_prefix(*pair) for pair in pairwise(with_prefix)]
    root = PrefixNode(0)
    if any(number >= COMPARED for number in common):
        _add_prefixes(root, known, with_prefix, common, keep)
    inside = set(_prompts_of(root.longer))
    root.prompts = [prompt for prompt in prompts if prompt not in inside]  # in their own order
    return root


def _add_prefixes(node: PrefixNode, known: ModelAdapter, prompts: list[TokenIds], common: list[int], keep: int) -> None:
    """Add ``prompts`` to ``node``: to its own, or to those of longer prefixes.

    Args:
        prompts: in lexicographic order, so that prompts with the same prefix are neighbours.
        common: for each prompt but the last, the number of tokens that it and the next one start with.
    """
    if not common:
        node.prompts += prompts
        return
    shared = min(common)
    longest = max(map(len, prompts))
    length = min(shared, longest - keep)
    saved = node.length - length
    for prompt in prompts:
        saved += max(len(prompt) - node.length, keep) - max(len(prompt) - length, keep)
    is_worth_it = length - node.length >= COMPARED and saved >= LEAST_SAVED
    if is_worth_it and known.can_share_prefix(length, longest):
        node.longer.append(PrefixNode(length))
        node = node.longer[-1]
    start = 0
    for end in range(1, len(prompts) + 1):
        if end == len(prompts) or common[end - 1] == shared:
            _add_prefixes(node, known, prompts[start:end], common[start : end - 1], keep)
            start = end


def _prompts_of(nodes: Sequence[PrefixNode]) -> Iterator[TokenIds]:
    for node in nodes:
        yield from node.prompts
        yield from _prompts_of(node.longer)


def _common_prefix(one: TokenIds, other: TokenIds) -> int:
    """The number of tokens that both start with."""
    for number, (token, another) in enumerate(zip(one, other, strict=False)):
        if token != another:
            return number
    return min(len(one), len(other))


class _PromptReader:
    """Reads prompts, and collects their rows and logits in the order in which they were read.

    Args:
        known: the adapter of the model.
        branch_of: the branch of each prompt.
        device: the device of the token ids.
        keep: number of positions whose logits are returned.
        fast: see :class:`RowBatch`.
        chunking: how long prompts are cut.
    """

    def __init__(
        self,
        known: ModelAdapter,
        branch_of: Mapping[TokenIds, int],
        device: Any,
        keep: int,
        fast: bool,
        chunking: Chunking,
    ) -> None:
        self.known = known
        self.branch_of = branch_of
        self.device = device
        self.keep = keep
        self.fast = fast
        self.chunking = chunking
        self.order: list[TokenIds] = []
        self.parts: list[Rows] = []
        self.logits: list[Tensor] = []

    def read(self, node: PrefixNode, prefix: Rows | None = None) -> None:
        """Read all prompts of ``node``.

        Args:
            prefix: a row that has read the tokens which all of them start with; None: there are none.
        """
        for group in self._groups(node):
            rows, last = self._read_whole(group) if prefix is None else self._read_after(prefix, node.length, group)
            self.order += group
            self.parts.append(rows)
            self.logits.append(F.pad(last, (0, 0, self.keep - last.shape[1], 0)))
        for longer in node.longer:
            prompt = next(_prompts_of([longer]))
            self.read(longer, self._read_prefix(prefix, prompt[node.length : longer.length]))

    def _groups(self, node: PrefixNode) -> Iterator[list[TokenIds]]:
        """The prompts of a node, in groups that are read in one pass."""
        by_branch: dict[int, list[TokenIds]] = {}
        for prompt in node.prompts:
            by_branch.setdefault(self.branch_of[prompt], []).append(prompt)
        for prompts in by_branch.values():
            for group in _groups_by_length(self.known, prompts):
                yield from _groups_of_similar_length(group, node.length)

    def _read_whole(self, prompts: list[TokenIds]) -> tuple[Rows, Tensor]:
        """Rows and last logits of prompts, which are padded on the left."""
        ids, mask = pad_left(prompts, self.device)
        keep = min(self.keep, ids.shape[1])
        return read_padded(self.known.base, ids, mask, keep=keep, fast=self.fast, chunking=self.chunking)

    def _read_prefix(self, earlier: Rows | None, tokens: TokenIds) -> Rows:
        """A row that has read ``tokens`` after what ``earlier`` has read."""
        ids = torch.tensor([tokens], device=self.device)
        if earlier is not None:
            prefix = earlier.split(torch.tensor([0], device=earlier.device))
            self._continue(prefix, ids)
            return prefix
        cache = caches.new_cache(self.known.base)
        caches.record_past(cache)  # the window of a layer may have left tokens that shorter prompts still need
        return read_padded(self.known.base, ids, None, cache=cache, fast=self.fast, chunking=self.chunking)[0]

    def _read_after(self, prefix: Rows, length: int, prompts: list[TokenIds]) -> tuple[Rows, Tensor]:
        """Rows and last logits of prompts that start with the ``length`` tokens of ``prefix``.

        Shorter prompts read the end of the prefix again, so that all have the same number of tokens left to read.
        """
        prompts.sort(key=len)
        left = max(len(prompts[-1]) - length, self.keep)
        parts: list[Rows] = []
        for size, group in groupby(prompts, key=len):
            part = prefix.split(torch.zeros(len(list(group)), dtype=torch.long, device=prefix.device))
            part.crop(length - (size - left))
            for batch in part.batches():
                caches.record_past(batch.cache, False)
            parts.append(part)
        rows = merge(parts)
        ends = torch.tensor([prompt[-left:] for prompt in prompts], device=self.device)
        return rows, self._continue(rows, ends)

    def _continue(self, rows: Rows, ids: Tensor) -> Tensor:
        """Let ``rows`` read ``ids`` (R, k), in chunks if necessary; return the logits of the last ones."""
        read = max(batch.length for batch in rows.batches())
        size = self.chunking.length(self.known, len(ids), ids.shape[1], read)
        keep = min(self.keep, ids.shape[1])
        return _in_chunks(
            ids.shape[1], size, keep, self.chunking, lambda start, end, last: rows.forward(ids[:, start:end], last)
        )


def _groups_by_length(known: ModelAdapter, prompts: list[TokenIds]) -> list[list[TokenIds]]:
    """The prompts in groups that may be padded to one length, or in a group per length if none may be padded."""
    lengths = [len(prompt) for prompt in prompts]
    distinct = sorted(set(lengths))
    if len(distinct) < 2 or (not known.needs_separate_passes(lengths) and known.padding is Padding.EXACT):
        return [prompts]
    return [[prompt for prompt in prompts if len(prompt) == length] for length in distinct]


def _groups_of_similar_length(prompts: list[TokenIds], prefix: int) -> Iterator[list[TokenIds]]:
    """Groups of similar length, each of which is read at the length of its longest prompt.

    Args:
        prefix: number of tokens that were read already, which shorter prompts read again instead of padding.
    """
    longest = max(map(len, prompts))
    shortest = min(map(len, prompts))
    fits = longest - shortest < prefix if prefix else True
    if fits and sum(longest - len(prompt) for prompt in prompts) <= LEAST_SAVED:
        yield prompts
        return
    group: list[TokenIds] = []
    padding = 0
    for prompt in sorted(prompts, key=len, reverse=True):
        more = len(group[0]) - len(prompt) if group else 0
        if padding + more > LEAST_SAVED or (prefix and more >= prefix):
            yield group
            group = []
            padding = 0
            more = 0
        group.append(prompt)
        padding += more
    yield group


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
    chunking: Chunking = ONE_PASS,
) -> tuple[RowBatch, Tensor]:
    """Read left-padded ids, and return the rows and the last logits (R, keep, V).

    Args:
        ids: (R, L).
        mask: (R, L) with 0 for padding; None: no padding.
        keep: number of positions whose logits are returned.
        positions: (R, L); default: counted from the mask.
        cache: the cache to fill; default: a new one that grows.
        extra: other inputs of the model's first pass, such as pixel values.
        fast: see :class:`RowBatch`.
        chunking: how long prompts are cut; by default they are read in one pass.
    """
    known = adapter(model)
    extra = extra or {}
    if positions is None and mask is not None:
        positions = position_ids(mask)
    elif positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    if positions.dim() == 3:  # time, height and width of image patches; text continues after the largest
        next_position = positions[-3:].amax(dim=(0, 2))[:, None] + 1
    else:
        next_position = (positions[:, -1:] + 1).expand(ids.shape[0], 1)
    cache = caches.grow_in_place(cache) if cache is not None else caches.new_cache(known.base)
    if extra.get("encoder_hidden_states") is not None:
        cache = caches.with_cross_attention(cache, known.base)
    columns = positions

    def read(start: int, end: int, last: int) -> Tensor:
        # Embeddings instead of tokens have columns in the mask, and no tokens: they are read in one pass.
        in_one_pass = start == 0 and end == ids.shape[1]
        return known.read(
            ids[:, start:end],
            cache,
            mask=mask if mask is None or in_one_pass else mask[:, :end],
            positions=columns if in_one_pass else columns[..., start:end],
            keep=last,
            first=start == 0,
            inputs=_inputs_up_to(extra, end),
            fast=fast,
        )

    size = chunking.length(known, len(ids), ids.shape[1], padded=mask is not None)
    logits = _in_chunks(ids.shape[1], size, keep, chunking, read)
    inputs = {name: extra[name] for name in _EVERY_STEP if extra.get(name) is not None}
    return RowBatch(known, cache, ids.shape[1], mask, next_position, inputs, fast=fast), logits


def _inputs_up_to(extra: Mapping[str, Any], end: int) -> dict[str, Any]:
    """The other inputs of a pass that ends at column ``end``; the types of tokens are one per column."""
    inputs = dict(extra)
    for name, value in extra.items():
        if name.endswith("token_type_ids") and isinstance(value, Tensor):
            inputs[name] = value[..., :end]
    return inputs


def _in_chunks(
    tokens: int, size: int, keep: int, chunking: Chunking, read: Callable[[int, int, int], Tensor]
) -> Tensor:
    """Read ``tokens`` columns, ``size`` at a time, and return the last ``keep`` logits (R, keep, V).

    Args:
        read: reads the columns from a first to an end, and returns the logits of the last ones; their number is its
            third argument.
    """
    if size >= tokens:
        return read(0, tokens, keep)
    chunking.report(0, tokens)
    kept = []
    for start in range(0, tokens, size):
        end = min(start + size, tokens)
        wanted = min(end - start, end - (tokens - keep))
        logits = read(start, end, max(wanted, 1))
        if wanted > 0:
            kept.append(logits)
        chunking.report(end, tokens)
    return torch.cat(kept, dim=1)


def repeat(rows: Rows, logits: Tensor, index: Sequence[int]) -> tuple[Rows, Tensor]:
    """The rows ``index`` of ``rows``, and their logits. ``rows`` must not be used afterwards."""
    selected = torch.tensor(list(index), device=rows.device)
    rows.select(selected)
    return rows, logits[selected.to(logits.device)]


# -- encoder-decoders ----------------------------------------------------------------------------------------------


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
    """Read decoder ids (R, L) with encoded sources, and return the rows and the last logits (R, keep, V).

    Raises:
        ValueError: the sources are padded, and the model's answer changes with padding.
    """
    known = adapter(model)
    padded = encoder_mask is not None and encoder_mask.dim() == 2 and not bool(encoder_mask.all())
    if padded and known.padding is Padding.CHANGES:
        raise ValueError(
            f"{known.name} reads the padding after a source as if it were text, so that sources of different lengths "
            "cannot be read together; pass prompts of one length, or one prompt at a time (batch_size=1)"
        )
    inputs = {"encoder_outputs": encoder_outputs, "attention_mask": encoder_mask}
    position = torch.full((decoder_ids.shape[0], 1), decoder_ids.shape[1], device=decoder_ids.device)
    cache = caches.grow_in_place(cache) if cache is not None else caches.new_cache(known.base)
    logits = known.read(decoder_ids, cache, mask=decoder_mask, positions=None, keep=keep, first=True, inputs=inputs)
    return RowBatch(known, cache, decoder_ids.shape[1], decoder_mask, position, inputs), logits


def encode(model: Any, sources: Sequence[Sequence[int]], device: Any) -> tuple[Any, Tensor]:
    """Run the encoder on ``sources``, padded on the right: its outputs and their attention mask (R, S)."""
    length = max(len(source) for source in sources)
    ids = torch.tensor([[*source, *([0] * (length - len(source)))] for source in sources], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sources], device=device)
    return adapter(model).encode(ids, mask), mask


# -- padding -------------------------------------------------------------------------------------------------------


def pad_left(prompts: Sequence[Sequence[int]], device: Any, pad: int = 0) -> tuple[Tensor, Tensor | None]:
    """Prompts as ids (R, L) with padding on the left, and their mask; None if nothing was padded."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    if all(len(p) == length for p in prompts):
        return ids, None
    return ids, torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)


def position_ids(mask: Tensor) -> Tensor:
    """Positions (R, L) that count the unmasked tokens; 0 for padding."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
