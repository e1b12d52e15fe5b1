"""The forward passes of one decoding run: the rows of every branch, read side by side.

Rows of the conditional branch are read at every step, those of the extra branches beside them in the same pass. A
step may leave the extra branches out; when they come back, they read in one chunk what was written meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from ..forward import caches, prefill, row_batch
from ..forward.model_adapter import Padding, adapter
from ..forward.model_views import ModelPart, model_parts
from ..forward.row_batch import RowBatch, Rows
from ..guidance.base import SELF, Branch

COND = 0
WHOLE: ModelPart = (SELF, None)
Member = tuple[int, int]
"""A row of a pass: the number of its branch (0: the conditional one) and of its sample."""


@dataclass
class StepLogits:
    """Next-token logits of one step for the samples that are in the batch, in their order.

    Args:
        cond: the conditional branch, (B, V).
        extra: the extra branches, (n, B, V); None where the step left them out.
    """

    cond: Tensor
    extra: Tensor | None


class _Group:
    """Rows of one model part, whose ``members`` they are; ``read`` counts the generated tokens that they have read."""

    def __init__(self, rows: Rows, members: list[Member], read: int = 0) -> None:
        self.rows, self.members, self.read = rows, members, read
        self.samples = torch.tensor([sample for _, sample in members], device=rows.device)

    def forward(self, ids: Tensor, new: int, keep_all: bool = False) -> Tensor:
        """Read the tokens that are new to these rows; the last logits, or all of them (R, k, V)."""
        missed = new - self.read
        out = self.rows.forward(ids[self.samples.to(ids.device), -missed:], keep=missed if keep_all else 1)
        self.read = new
        return out.to(ids.device)

    def forget(self, tokens: int) -> None:
        """Go back by the last ``tokens`` tokens."""
        if not self.rows.crop(tokens):
            raise RuntimeError("this cache cannot forget tokens")
        self.read -= tokens

    def pick(self, places: list[int]) -> _Group:
        """The rows at these places alone, in this order; the group must not be used afterwards."""
        if places == list(range(len(self.members))):
            return self
        self.rows.select(torch.tensor(places, dtype=torch.long, device=self.samples.device))
        return _Group(self.rows, [self.members[r] for r in places], self.read)

    def copy(self, places: list[int]) -> _Group:
        """The rows at these places in a group of their own; this one stays as it is."""
        rows = self.rows.split(torch.tensor(places, device=self.samples.device))
        return _Group(rows, [self.members[r] for r in places], self.read)

    def only(self, samples: set[int]) -> _Group:
        """The rows of ``samples``; the group must not be used afterwards."""
        return self.pick([r for r, (_, sample) in enumerate(self.members) if sample in samples])

    def moved(self, sources: Mapping[int, int]) -> _Group:
        """Rows for the samples that ``sources`` names, each from the sample that it goes on from."""
        place = {member: row for row, member in enumerate(self.members)}
        branches = sorted({branch for branch, _ in self.members})
        members = [(b, sample) for b in branches for sample in sorted(sources) if (b, sources[sample]) in place]
        picked = self.pick([place[b, sources[sample]] for b, sample in members])
        return _Group(picked.rows, members, self.read)


class Source(Protocol):
    """What a branch reads where token ids alone do not say it, such as an image."""

    shares: bool
    """Whether its rows can ride in the pass of the model that is decoded."""

    def prefill(self, model: Any, size: int) -> tuple[Rows, Tensor]:
        """Read it for ``size`` rows with the branch's model; the rows and the next-token logits (size, V)."""


class BranchPasses:
    """Runs the branches of one batch of samples.

    Args:
        model: the model that is decoded.
        models: further models by the name that branches use.
        branches: the extra branches.
        prompts: for each extra branch, the token ids of every row, or a :class:`Source`.
        copies: every so many rows that follow each other have one prompt, which is then read once; rows stay one for
            as long as they read the same.
        fast: rows of runs without branches need not reproduce the bits of plain decoding either.
    """

    def __init__(
        self,
        model: Any,
        branches: Sequence[Branch],
        prompts: Sequence[Sequence[Sequence[int]] | Source],
        models: Mapping[str, Any] | None = None,
        copies: int = 1,
        fast: bool = False,
    ) -> None:
        self.copies = copies
        self.fast = fast or bool(branches) or copies > 1
        self.parts = model_parts(model, models, branches)
        self.branches = branches
        self.prompts = prompts
        self.running: dict[ModelPart, _Group] = {}
        self.resting: dict[ModelPart, _Group] = {}
        self.alive: list[int] = []
        self._order: tuple[Tensor, Tensor] | None = None

    # -- prefill ---------------------------------------------------------------------------------------------------

    def prefill(self, ids: Tensor, model_kwargs: dict[str, Any], new_tokens: int = 1) -> StepLogits:
        """Read every branch's prompt, each at its own length, and return the first next-token logits.

        Args:
            ids: the conditional prompt as transformers' ``generate`` hands it over, (B, L), padded on the left.
            model_kwargs: what goes with it: attention mask, positions, cache, encoder outputs.
            new_tokens: the most tokens that will be written.

        Raises:
            ValueError: a model cannot be read by several branches, has another vocabulary, or cannot go on that far.
        """
        model, device = self.parts[WHOLE], ids.device
        self.alive = list(range(ids.shape[0]))
        guided = bool(self.branches)
        if guided:
            mask = model_kwargs.get("attention_mask")
            lengths = [ids.shape[1]] if mask is None or mask.shape[-1] != ids.shape[1] else mask.sum(-1).tolist()
            adapter(model).check_lengths(lengths, new_tokens)
        cond, logits = prefill_prepared(model, ids, model_kwargs, copies=self.copies, fresh=guided, fast=self.fast)
        found: dict[ModelPart, list[tuple[Rows, int]]] = {WHOLE: [(cond, COND)]}
        outputs = [logits]
        for number, (branch, prompts) in enumerate(zip(self.branches, self.prompts, strict=True), start=1):
            part, name = self.parts[branch.model_part], branch.model_part
            if not isinstance(prompts, Sequence):
                rows, last = prompts.prefill(part, len(self.alive))
                name = name if prompts.shares else (f"{branch.model} {number}", branch.view)
            elif adapter(part).is_encoder_decoder:
                encoded, encoder_mask = prefill.encode(part, prompts, device)
                rows, every = prefill.read_encoded(part, ids, encoded, encoder_mask)
                last = every[:, -1]
            else:
                adapter(part).check_lengths([len(prompt) for prompt in prompts], new_tokens)
                where = adapter(part).device
                rows, every = prefill.read_prompts(part, prompts, where, fast=True, sharing=self.copies > 1)
                last = every[:, -1]
            self._check_vocabulary(branch, last.shape[-1], logits.shape[-1])
            found.setdefault(name, []).append((rows, number))
            outputs.append(last.to(device))
        for name, several in found.items():
            members = [(number, sample) for _, number in several for sample in self.alive]
            merged = row_batch.merge([rows for rows, _ in several])
            for batch in merged.batches():
                batch.fast = self.fast
            self.running[name] = _Group(merged, members)
        return StepLogits(logits, torch.stack(outputs[1:]) if guided else None)

    def _check_vocabulary(self, branch: Branch, size: int, expected: int) -> None:
        if size != expected:
            raise ValueError(
                f"model {branch.model or 'of the branch'!r} has {size} tokens in its vocabulary and the decoded model "
                f"{expected}; their next-token distributions cannot be combined: use models that share a tokenizer"
            )

    def make_static(self, new_tokens: int) -> None:
        """Give the decoded model's rows a cache of fixed shape with room for ``new_tokens`` more positions.

        Raises:
            ValueError: the rows cannot share one.
        """
        batches = list(self.running[WHOLE].rows.batches())
        if len(batches) > 1:
            raise ValueError(
                f"cache_implementation='static' keeps all rows in one cache, and {batches[0].model.name} needs one for "
                "every length; leave cache_implementation out"
            )
        batches[0].make_static(new_tokens)

    def replace_call(self, call: Any) -> None:
        """Use ``call`` in place of the decoded model's own from the next step on (None: its own)."""
        for batch in self.running[WHOLE].rows.batches():
            batch.call = call

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self, ids: Tensor, new: int) -> StepLogits:
        """Read the newest token of every row that is not left out.

        Args:
            ids: all ids so far, (rows at the start, T); the last ``new`` columns were generated.
            new: number of generated tokens.
        """
        return self._ordered([group.forward(ids, new)[:, -1] for group in self.running.values()], ids.device)

    def rest(self) -> None:
        """Leave the extra branches out from the next step on."""
        for name, group in list(self.running.items()):
            extra = [r for r, (branch, _) in enumerate(group.members) if branch != COND]
            if len(extra) == len(group.members):
                self.resting[name] = self.running.pop(name)
            elif extra:
                self.resting[name] = group.copy(extra)
                self.running[name] = group.pick([r for r in range(len(group.members)) if r not in set(extra)])
        self._order = None

    def resume(self, ids: Tensor, new: int, keep_all: bool = False) -> tuple[StepLogits, Tensor]:
        """The step with which the extra branches come back, reading what they missed.

        Args:
            ids: as for :meth:`step`.
            new: as for :meth:`step`.
            keep_all: return the logits behind every token that they missed, not of the last one alone.

        Returns:
            The logits of the step, and those of the extra branches behind each token that they missed, (n, B, k, V).
        """
        outputs = {name: group.forward(ids, new)[:, -1] for name, group in self.running.items()}
        missed = self.missed(ids, new, keep_all)
        resting, self.resting, start = self.resting, {}, 0
        for name, group in resting.items():
            before = self.running.get(name)
            newest = self._newest[start : start + len(group.members)]
            start += len(group.members)
            if before is not None:
                merged = row_batch.merge([before.rows, group.rows])
                group, newest = _Group(merged, before.members + group.members, new), torch.cat([outputs[name], newest])
            self.running[name], outputs[name] = group, newest
        self._order = None
        return self._ordered([outputs[name] for name in self.running], ids.device), missed

    def missed(self, ids: Tensor, new: int, keep_all: bool = True) -> Tensor:
        """Let the branches that were left out read what they missed: logits behind each token, (n, B, k, V)."""
        chunks = [group.forward(ids, new, keep_all) for group in self.resting.values()]
        members = [member for group in self.resting.values() for member in group.members]
        together = torch.cat(chunks)
        self._newest = together[:, -1]
        places = [members.index((n, s)) for n in range(1, len(self.branches) + 1) for s in self.alive]
        return together[places].view(len(self.branches), len(self.alive), *together.shape[1:])

    def _ordered(self, logits: list[Tensor], device: Any) -> StepLogits:
        """The logits of all running groups, branch by branch."""
        together = logits[0] if len(logits) == 1 else torch.cat(logits)
        if self._order is None:
            members = [member for group in self.running.values() for member in group.members]
            place = {member: row for row, member in enumerate(members)}
            extra = range(1, len(self.branches) + 1) if not self.resting else ()
            cond = [place[COND, sample] for sample in self.alive]
            others = [place[number, sample] for number in extra for sample in self.alive]
            self._order = (torch.tensor(cond, device=device), torch.tensor(others, dtype=torch.long, device=device))
            # Branch by branch with every sample in each is the usual order, and needs no gather.
            self._dense = cond + others == list(range(len(members)))
        cond_rows, extra_rows = self._order
        size = len(cond_rows)
        cond_logits = together[:size] if self._dense else together[cond_rows]
        if not len(extra_rows):
            return StepLogits(cond_logits, None)
        extra_logits = together[size:] if self._dense else together[extra_rows]
        return StepLogits(cond_logits, extra_logits.view(len(self.branches), size, -1))

    # -- rows leave and move ---------------------------------------------------------------------------------------

    def drop(self, samples: Sequence[int]) -> None:
        """Let finished ``samples`` leave the batch."""
        self.alive = [sample for sample in self.alive if sample not in set(samples)]
        kept = set(self.alive)
        self._change(lambda group: group.only(kept))

    def reindex(self, sources: Mapping[int, int]) -> None:
        """Let every sample of ``sources`` go on from what the sample that it names has read; all others leave.

        Rows are copied, nothing is read again. A sample that left before may come back in the place of a copy.
        """
        self.alive = sorted(sources)
        self._change(lambda group: group.moved(sources))

    def _change(self, changed: Any) -> None:
        self._order = None
        for groups in (self.running, self.resting):
            for name in list(groups):
                groups[name] = changed(groups[name]) if self.alive else groups.pop(name)
            if not self.alive:
                groups.clear()


def prefill_prepared(
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
        copies: see :class:`BranchPasses`.
        fresh: the rows will stand beside those of other branches: leave a static cache, which has rows for these alone.
        fast: need not reproduce the bits of plain decoding.

    Raises:
        ValueError: the rows are padded, the model would read that into a state, and images come with them.
    """
    kwargs = dict(model_kwargs)
    for name in ("use_cache", "logits_to_keep"):
        kwargs.pop(name, None)
    given = [kwargs.pop(name, None) for name in caches.ARGUMENTS]
    cache = next((cache for cache in given if cache is not None), None)
    if fresh and isinstance(cache, StaticCache):
        cache = None
    mask = kwargs.pop("attention_mask", None)
    known = adapter(model)
    rows: Rows
    if known.is_encoder_decoder:
        decoder_mask = kwargs.pop("decoder_attention_mask", None)
        outputs = kwargs.pop("encoder_outputs")
        rows, logits = prefill.read_encoded(known.base, ids, outputs, mask, decoder_mask=decoder_mask, cache=cache)
        return rows, logits[:, -1].to(ids.device)
    positions = kwargs.pop("position_ids", None)
    with_images = any(_says_something(name, value) for name, value in kwargs.items())
    padded = mask is not None and not bool(mask.all())
    if padded and with_images and known.has_recurrent_state:
        raise ValueError(
            f"{known.name} would read padding into its state, and images come with these prompts: give prompts of one "
            "length, or one prompt at a time"
        )
    # Prompts with images are padded as the model's own processor pads them.
    apart = (
        padded and not with_images and (known.padding is not Padding.EXACT or known.reads_apart(mask.sum(-1).tolist()))
    )
    if mask is not None and not with_images and (apart or known.has_recurrent_state):
        prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        rows, logits = prefill.read_prompts(known.base, prompts, ids.device, fast=fast, sharing=copies > 1)
        return rows, logits[:, -1].to(ids.device)
    # What comes with a row, such as an image, may differ where its ids do not.
    copies = 1 if with_images else copies
    first = slice(None, None, copies)
    batch: RowBatch
    batch, logits = prefill.read_padded(
        known.base,
        ids[first],
        mask if mask is None else mask[first],
        positions=positions[first] if positions is not None and len(positions) == len(ids) else positions,
        cache=cache,
        extra=kwargs,
        fast=fast,
    )
    rows = batch
    if copies > 1:
        row_of = torch.arange(len(ids), device=batch.device) // copies
        rows, logits = row_batch.SharedRows(batch, row_of), logits[row_of.to(logits.device)]
    return rows, logits[:, -1].to(ids.device)


def _says_something(name: str, value: Any) -> bool:
    """Whether an input comes with the rows beside their ids, such as an image; models make empty ones for text."""
    if name.endswith("token_type_ids") and isinstance(value, Tensor):
        return bool((value != value.flatten()[0]).any())
    return bool(value) if isinstance(value, Mapping) else isinstance(value, Tensor)
