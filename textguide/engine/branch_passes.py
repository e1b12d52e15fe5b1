"""The forward passes of one decoding run: which rows of which branch run, sleep and wake.

Rows of the conditional branch run at every step. Rows of extra branches run beside them in the same pass, unless
their guidance is inactive: then they leave the lane and sleep, and when they wake they read in one chunk what was
written meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from ..forward import caches, model_views, row_batch
from ..forward.model_views import Owner
from ..forward.row_batch import Lane
from ..guidance.base import SELF, Branch

COND = 0
WHOLE: Owner = (SELF, None)


class _Group:
    """Rows of one lane: ``slots[r]`` is the (branch, sample) of row ``r``; ``read`` counts generated tokens read."""

    def __init__(self, lane: Lane, slots: list[tuple[int, int]], read: int = 0) -> None:
        self.lane, self.slots, self.read = lane, slots, read
        self.samples = torch.tensor([sample for _, sample in slots], device=lane.next_position.device)

    def forward(self, ids: Tensor, new: int, keep_all: bool = False) -> Tensor:
        """Read the tokens that are new to these rows; the last logits, or all of them (R, k, V)."""
        missed = new - self.read
        out = self.lane.forward(ids[self.samples.to(ids.device), -missed:], keep=missed if keep_all else 1)
        self.read = new
        return out.to(ids.device)

    def forget(self, tokens: int) -> None:
        """Go back by the last ``tokens`` tokens."""
        if not self.lane.crop(tokens):
            raise RuntimeError(f"the cache of {type(self.lane.model).__name__} cannot forget tokens")
        self.read -= tokens

    def pick(self, rows: list[int]) -> _Group:
        """These rows alone, in this order; the group must not be used afterwards."""
        if rows == list(range(len(self.slots))):
            return self
        self.lane.select(torch.tensor(rows, device=self.samples.device))
        return _Group(self.lane, [self.slots[r] for r in rows], self.read)

    def copy(self, rows: list[int]) -> _Group:
        """These rows in a group of their own; this one stays as it is."""
        lane = self.lane.split(torch.tensor(rows, device=self.samples.device))
        return _Group(lane, [self.slots[r] for r in rows], self.read)


class _Plan:
    """Where the rows of each branch stand in the logits of all groups together."""

    def __init__(self, slots: list[tuple[int, int]], alive: list[int], branches: int, device: Any) -> None:
        place = {slot: i for i, slot in enumerate(slots)}
        rows = [r for r, sample in enumerate(alive) if branches and (1, sample) in place]
        cond = [place[COND, sample] for sample in alive]
        extra = [place[n, alive[r]] for n in range(1, branches + 1) for r in rows]
        self.shape = (branches, len(rows))
        # Branch by branch with every sample in each is the usual order, and needs no gather.
        self.dense = cond + extra == list(range(len(slots)))
        self.cond = torch.tensor(cond, device=device)
        self.extra = torch.tensor(extra, device=device)
        self.awake = None if len(rows) == len(alive) else torch.tensor(rows, dtype=torch.long, device=device)

    def law(self, logits: Tensor, woken: list[tuple[list[int], Tensor]]) -> Law:
        size = self.cond.shape[0]
        cond = logits[:size] if self.dense else logits[self.cond]
        if not self.shape[1]:
            return Law(cond, None, self.awake, woken)
        extra = logits[size:] if self.dense else logits[self.extra]
        return Law(cond, extra.view(*self.shape, -1), self.awake, woken)


@dataclass
class Law:
    """Logits of one step for the samples that are alive, in their order.

    Args:
        cond: the conditional branch, (B, V).
        extra: the extra branches, (n, b, V), for the ``awake`` rows.
        awake: indices into the B rows, or None where all are awake.
        woken: logits of the positions that waking samples slept through, as (samples, logits (n, samples, k, V)).
    """

    cond: Tensor
    extra: Tensor | None
    awake: Tensor | None
    woken: list[tuple[list[int], Tensor]]


class Source(Protocol):
    """What a branch reads where token ids alone do not say it, such as an image."""

    shares: bool
    """Whether its rows can ride in the pass of the model that is decoded."""

    def prefill(self, model: Any, size: int) -> tuple[Lane, Tensor]:
        """Read it for ``size`` rows with the branch's model; the lane and the next-token logits (size, V)."""


class Passes:
    """Runs the branches of one batch of samples.

    Args:
        model: the model that is decoded.
        models: further models by the name that branches use.
        branches: the extra branches.
        prompts: for each extra branch, the token ids of every row, or a :class:`Source`.
        copies: every so many rows that follow each other have one prompt, which is then read once; rows stay one for
            as long as they read the same.
    """

    def __init__(
        self,
        model: Any,
        branches: Sequence[Branch],
        prompts: Sequence[Sequence[Sequence[int]] | Source],
        models: Mapping[str, Any] | None = None,
        copies: int = 1,
    ) -> None:
        self.copies = copies
        self.owners = model_views.owners(model, models, branches)
        self.branches = branches
        self.prompts = prompts
        self.running: dict[Owner, _Group] = {}
        self.asleep: list[dict[Owner, _Group]] = []
        self.alive: list[int] = []
        self._plan: _Plan | None = None

    # -- prefill ---------------------------------------------------------------------------------------------------

    def prefill(self, ids: Tensor, model_kwargs: dict[str, Any]) -> Law:
        """Read every branch's prompt, each at its own length, and return the first next-token logits.

        Args:
            ids: the conditional prompt as transformers' ``generate`` hands it over, (B, L), padded on the left.
            model_kwargs: what goes with it: attention mask, positions, cache, encoder outputs.
        """
        model, device = self.owners[WHOLE], ids.device
        self.alive = list(range(ids.shape[0]))
        cond, logits = prefill_prepared(model, ids, model_kwargs, copies=self.copies, fresh=bool(self.branches))
        groups: dict[Owner, list[tuple[Lane, int]]] = {WHOLE: [(cond, COND)]}
        laws = [logits]
        for number, (branch, prompts) in enumerate(zip(self.branches, self.prompts, strict=True), start=1):
            owner, name = self.owners[branch.owner], branch.owner
            if not isinstance(prompts, Sequence):
                lane, last = prompts.prefill(owner, len(self.alive))
                name = name if prompts.shares else (f"{branch.model} {number}", branch.view)
            elif owner.config.is_encoder_decoder:
                outputs, mask = row_batch.encode(owner, prompts, device)
                lane, logits_of = row_batch.prefill_encoder_decoder(owner, ids, outputs, mask)
                last = logits_of[:, -1]
            else:
                lane, logits_of = row_batch.prefill(owner, prompts, device, guided=True, sharing=self.copies > 1)
                last = logits_of[:, -1]
            self._check_vocabulary(branch, last.shape[-1], logits.shape[-1])
            groups.setdefault(name, []).append((lane, number))
            laws.append(last.to(device))
        for name, parts in groups.items():
            slots = [(number, sample) for _, number in parts for sample in self.alive]
            merged = row_batch.merge([lane for lane, _ in parts])
            merged.guided = bool(self.branches) or self.copies > 1
            self.running[name] = _Group(merged, slots)
        extra = torch.stack(laws[1:]) if len(laws) > 1 else None
        return Law(logits, extra, None, [])

    def _check_vocabulary(self, branch: Branch, size: int, expected: int) -> None:
        if size != expected:
            raise ValueError(
                f"model {branch.model or 'of the branch'!r} has {size} tokens in its vocabulary and the decoded model "
                f"{expected}; their next-token laws cannot be combined: use models that share a tokenizer"
            )

    def make_static(self, new_tokens: int) -> None:
        """Give the decoded model's lane a cache of fixed shape with room for ``new_tokens`` more positions."""
        lane = self.running[WHOLE].lane
        lane.make_static(lane.length + new_tokens)

    def replace_call(self, call: Any) -> None:
        """Use ``call`` in place of the decoded model's own from the next step on (None: its own)."""
        self.running[WHOLE].lane.call = call

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self, ids: Tensor, new: int, waking: Sequence[int] = (), measure: bool = False) -> Law:
        """Read the newest token of every row that is alive.

        Args:
            ids: all ids so far, (rows at the start, T); the last ``new`` columns were generated.
            new: number of generated tokens.
            waking: samples whose extra branches come back with this step, reading what they missed.
            measure: return the logits of every position that the waking rows slept through.
        """
        slots: list[tuple[int, int]] = []
        logits: list[Tensor] = []
        for group in self.running.values():
            logits.append(group.forward(ids, new)[:, -1])
            slots += group.slots
        woken: list[tuple[list[int], Tensor]] = []
        if waking:
            chunks = self._rise(set(waking), ids, new, measure)
            for chunk in chunks:
                for group_slots, out in chunk:
                    slots += group_slots
                    logits.append(out[:, -1])
                if measure:
                    woken.append(self._by_branch(chunk))
            self._plan = None
        plan = self._planned(slots, ids.device)
        if waking:  # the rows that just woke stand elsewhere from the next step on
            self._plan = None
        return plan.law(logits[0] if len(logits) == 1 else torch.cat(logits), woken)

    def _planned(self, slots: list[tuple[int, int]], device: Any) -> _Plan:
        if self._plan is None:
            self._plan = _Plan(slots, self.alive, len(self.branches), device)
        return self._plan

    # -- sleeping, waking, leaving ---------------------------------------------------------------------------------

    def sleep(self, samples: Sequence[int]) -> None:
        """Take the extra branches of ``samples`` (at least one) out of the pass."""
        sleepers = set(samples)
        bed: dict[Owner, _Group] = {}
        for name, group in list(self.running.items()):
            leaving = [r for r, (number, sample) in enumerate(group.slots) if number != COND and sample in sleepers]
            if leaving:
                bed[name] = group.copy(leaving)
                self._keep(name, group, [r for r in range(len(group.slots)) if r not in set(leaving)])
        self.asleep.append(bed)
        self._plan = None

    def drop(self, samples: Sequence[int]) -> None:
        """Let finished ``samples`` leave the batch."""
        gone = set(samples)
        self.alive = [sample for sample in self.alive if sample not in gone]
        for name, group in list(self.running.items()):
            self._keep(name, group, [r for r, (_, sample) in enumerate(group.slots) if sample not in gone])
        beds = [
            {
                name: group.pick([r for r, (_, s) in enumerate(group.slots) if s not in gone])
                for name, group in bed.items()
            }
            for bed in self.asleep
            if any(s not in gone for group in bed.values() for _, s in group.slots)
        ]
        self.asleep = beds
        self._plan = None

    def reindex(self, sources: Mapping[int, int]) -> None:
        """Let every sample of ``sources`` go on from what the sample that it names has read; all others leave.

        Rows are copied, nothing is read again. A sample that left before may come back in the place of a copy.
        """
        self.alive = sorted(sources)
        self.running = {name: self._moved(group, sources) for name, group in self.running.items()}
        self.asleep = [{name: self._moved(group, sources) for name, group in bed.items()} for bed in self.asleep]
        self._plan = None

    def _moved(self, group: _Group, sources: Mapping[int, int]) -> _Group:
        place = {slot: row for row, slot in enumerate(group.slots)}
        numbers = sorted({number for number, _ in group.slots})
        slots = [(n, sample) for n in numbers for sample in self.alive if (n, sources[sample]) in place]
        rows = [place[n, sources[sample]] for n, sample in slots]
        if rows != list(range(len(group.slots))):
            group.lane.select(torch.tensor(rows, dtype=torch.long, device=group.samples.device))
        return _Group(group.lane, slots, group.read)

    def reread(self, samples: Sequence[int], ids: Tensor, new: int) -> list[tuple[list[int], Tensor]]:
        """Let sleeping ``samples`` read what they missed without coming back: their logits, as in ``Law.woken``."""
        chunks = self._rise(set(samples), ids, new, True, rejoin=False)
        return [self._by_branch(chunk) for chunk in chunks]

    def sleepers(self) -> list[int]:
        """Samples whose extra branches are asleep."""
        return sorted({s for bed in self.asleep for group in bed.values() for _, s in group.slots})

    def _rise(
        self, wakers: set[int], ids: Tensor, new: int, keep_all: bool, rejoin: bool = True
    ) -> list[list[tuple[list[tuple[int, int]], Tensor]]]:
        """Run the sleeping rows of ``wakers``; for each bed that any left, the slots and logits of its groups."""
        results = []
        beds, self.asleep = self.asleep, []
        for bed in beds:
            staying, chunk = {}, []
            for name, group in bed.items():
                up = [r for r, (_, sample) in enumerate(group.slots) if sample in wakers]
                down = [r for r in range(len(group.slots)) if r not in set(up)]
                if down:
                    staying[name] = group.copy(down) if up else group
                if up:
                    rising = group.pick(up)
                    chunk.append((rising.slots, rising.forward(ids, new, keep_all)))
                    if rejoin:
                        self._rejoin(name, rising)
            if staying:
                self.asleep.append(staying)
            if chunk:
                results.append(chunk)
        return results

    def _rejoin(self, name: Owner, group: _Group) -> None:
        other = self.running.get(name)
        if other is not None:
            group = _Group(row_batch.merge([other.lane, group.lane]), other.slots + group.slots, group.read)
        self.running[name] = group.pick(sorted(range(len(group.slots)), key=lambda r: group.slots[r]))

    def _by_branch(self, chunk: list[tuple[list[tuple[int, int]], Tensor]]) -> tuple[list[int], Tensor]:
        slots = [slot for group_slots, _ in chunk for slot in group_slots]
        logits = torch.cat([out for _, out in chunk])
        samples = sorted({sample for _, sample in slots})
        order = [slots.index((n, s)) for n in range(1, len(self.branches) + 1) for s in samples]
        return samples, logits[order].view(len(self.branches), len(samples), *logits.shape[1:])

    def _keep(self, name: Owner, group: _Group, rows: list[int]) -> None:
        if rows:
            self.running[name] = group.pick(rows)
        else:
            del self.running[name]


def prefill_prepared(
    model: Any, ids: Tensor, model_kwargs: Mapping[str, Any], *, copies: int = 1, fresh: bool = False
) -> tuple[Lane, Tensor]:
    """Read what transformers' ``generate`` prepared; the lane and the next-token logits (B, V).

    Args:
        ids: (B, L), padded on the left.
        model_kwargs: attention mask, positions, cache, encoder outputs, pixels…
        copies: see :class:`Passes`.
        fresh: the rows will stand beside those of other branches: leave a static cache, which has rows for these alone.
    """
    kwargs = dict(model_kwargs)
    for name in ("use_cache", "logits_to_keep"):
        kwargs.pop(name, None)
    given = [kwargs.pop(name, None) for name in caches.ARGUMENTS]
    cache = next((cache for cache in given if cache is not None), None)
    if fresh and isinstance(cache, StaticCache):
        cache = None
    mask = kwargs.pop("attention_mask", None)
    if model.config.is_encoder_decoder:
        decoder_mask = kwargs.pop("decoder_attention_mask", None)
        outputs = kwargs.pop("encoder_outputs")
        lane, logits = row_batch.prefill_encoder_decoder(
            model, ids, outputs, mask, decoder_mask=decoder_mask, cache=cache
        )
    elif mask is not None and caches.has_recurrent_state(model):
        rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        lane, logits = row_batch.prefill(model, rows, ids.device, sharing=copies > 1)
    else:
        positions = kwargs.pop("position_ids", None)
        # What comes with a row, such as an image, may differ where its ids do not.
        copies = 1 if any(isinstance(value, (Tensor, Mapping)) for value in kwargs.values()) else copies
        first = slice(None, None, copies)
        mask = mask if mask is None else mask[first]
        positions = positions[first] if positions is not None and len(positions) == len(ids) else positions
        lane, logits = row_batch.prefill_padded(
            model, ids[first], mask, positions=positions, cache=cache, extra=kwargs, guided=fresh
        )
        if copies > 1:
            owners = torch.arange(len(ids), device=ids.device) // copies
            lane = row_batch.share(lane, owners)
            logits = logits[owners.to(logits.device)]
    return lane, logits[:, -1].to(ids.device)
