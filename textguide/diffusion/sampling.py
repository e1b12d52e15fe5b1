"""Sampling from masked diffusion models, with guidance in every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..step.effect import Effect
from . import orders
from .canvas import Canvas
from .constraints.base import Asked, Form
from .denoisers import Denoiser
from .guiding import Distributions, Guide
from .samplers import Confidence, EqualShares, Order, Threshold, Turn, Unmasking

Allowed = Tensor | Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """How a canvas is filled; see :func:`textguide.diffusion.generate`."""

    steps: int
    blocks: int
    order: Order = field(default_factory=Confidence)
    sampler: Unmasking = field(default_factory=EqualShares)
    temperature: float = 0.0
    positions: str = "guided"
    corrector: int = 0
    early_end: bool = True
    allowed: Any = None
    seed: int | Sequence[int] | None = None


@dataclass(frozen=True)
class CanvasStep:
    """The canvas behind one step.

    Attributes:
        index: number of the step, from 0.
        rows: rows of the batch that took part.
        ids: the whole batch, (B, L).
        committed: positions that this step filled, bool (B, L).
        remasked: positions that A-CFG's second pass read as masks, bool (B, L).
        corrected: positions that the corrector emptied and filled again, bool (B, L).
        emptied: positions that the sampler masked again, bool (B, L).
        confidence: probability of each token when it was filled, (B, L); 0 elsewhere.
        forwards: forward passes of this step.
        certainty: by which A-CFG chose the positions that its second pass read as masks, those of the least: the
            probability of the likeliest token at each position, (B, L); None without A-CFG.
    """

    index: int
    rows: tuple[int, ...]
    ids: Tensor
    committed: Tensor
    remasked: Tensor
    corrected: Tensor
    confidence: Tensor
    forwards: int
    certainty: Tensor | None = None
    emptied: Tensor | None = None


@dataclass
class Sampler:
    """Fills a canvas; :meth:`run` yields every step.

    Attributes:
        canvas: the batch, filled in place.
        steps_taken: steps of each row.
        guess: the canvas behind the last step with everything that it asked about filled by its draws, (B, L).
    """

    model: Denoiser
    canvas: Canvas
    guide: Guide
    plan: Plan
    form: Form | None = None
    steps_taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.model.device
        seed = self.plan.seed
        self._seeded = isinstance(seed, Sequence)
        seeds = seed if isinstance(seed, Sequence) else [seed]
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, value in zip(self._generators, seeds, strict=True):
            generator.seed() if value is None else generator.manual_seed(value)
        self.generator = self._generators[0]
        self.guide.use(self.generator)
        self.steps_taken = [0] * len(self.canvas)
        self._revises = self.plan.sampler.revises
        self._steps = orders.steps_of_blocks(self.plan.steps, self.plan.blocks)
        self._quotas = [self._plan_row(row) for row in range(len(self.canvas))]
        self._turn = [[0] * len(blocks) for blocks in self._quotas]
        self._choose = self.plan.sampler.start(self.plan.order)
        self._confidence = torch.zeros(self.canvas.ids.shape, device=device)
        self.guess = self.canvas.ids

    @property
    def effect(self) -> Effect:
        """What guidance did so far."""
        return self.guide.meter.summary()

    def run(self) -> Iterator[CanvasStep]:
        """Fill the canvas step by step; finished rows leave the batch."""
        index = 0
        while True:
            current = self._current()
            rows = (current >= 0).nonzero()[:, 0]
            if not len(rows):
                return
            before = self.guide.passes
            step = self._step(rows, current[rows, None])
            for row in rows.tolist():
                self.steps_taken[row] += 1
                self._turn[row][int(current[row])] += 1
            if self.plan.early_end:
                self._end_rows(rows)
            yield replace(
                step, index=index, ids=self.canvas.ids.clone(), confidence=self._confidence.clone(),
                forwards=self.guide.passes - before,
            )  # fmt: skip
            index += 1

    @property
    def confidence(self) -> Tensor:
        """Probability of each token when it was filled, (B, L); 0 elsewhere."""
        return self._confidence

    def use(self, generator: torch.Generator) -> None:
        """Take all random numbers from here on from ``generator``."""
        self.generator, self._generators, self._seeded = generator, [generator], False
        self.guide.use(generator)

    def put(self, rows: Sequence[int], ids: Tensor, confidence: Tensor) -> None:
        """Write what rows hold, between two steps: (r, L) each."""
        index = torch.tensor(list(rows), device=ids.device)
        self.canvas.ids[index], self._confidence[index] = ids, confidence

    def move(self, ancestors: Sequence[int]) -> None:
        """Let row ``r`` go on from what row ``ancestors[r]`` has filled, between two steps."""
        index = torch.tensor(ancestors, device=self.canvas.ids.device)
        self.canvas.ids, self._confidence = self.canvas.ids[index], self._confidence[index]
        self._turn = [list(self._turn[row]) for row in ancestors]
        self.steps_taken = [self.steps_taken[row] for row in ancestors]

    def _plan_row(self, row: int) -> list[list[int]]:
        """For each block how many positions each of its steps fills."""
        blocks = self.canvas.block[row]
        sizes = [int((blocks == block).sum()) for block in range(int(blocks.max()) + 1)]
        return [orders.quotas(size, self._steps_of(block)) for block, size in enumerate(sizes)]

    def _steps_of(self, block: int) -> int:
        """The steps that are planned for a block."""
        return self._steps[min(block, len(self._steps) - 1)]

    def _turns(self, row: int, block: int) -> int:
        """How many steps a block takes: as many as it has positions at most, unless it is revised."""
        return self._steps_of(block) if self._revises else len(self._quotas[row][block])

    def _current(self) -> Tensor:
        """The block that each row is filling, (B,); −1 where it is finished."""
        masked = self.canvas.masked(self.model.mask_id)
        if not self._revises:
            blocks = self.canvas.block.masked_fill(~masked, 1 << 30).amin(-1)
            return blocks.masked_fill(~masked.any(-1), -1)
        open_ = [
            next((n for n, turn in enumerate(turns) if turn < self._turns(row, n)), -1)
            for row, turns in enumerate(self._turn)
        ]
        return torch.tensor(open_, device=masked.device)

    def _step(self, rows: Tensor, current: Tensor) -> CanvasStep:
        part = self.canvas.pick(rows)
        here = part.target & (part.block == current)
        masked = here & (part.ids == self.model.mask_id)
        where = here if self.plan.sampler.reads_filled else masked
        read = where.any(-1)  # a sampler that revises may have filled a row before its last step
        drawn = self._draw(part, rows, where, masked, read, guided=not self.plan.corrector)
        distributions, tokens, sure, ranking = drawn
        self.guess = self.canvas.ids.clone()
        self.guess[rows] = part.ids.masked_scatter(where, tokens)
        committed, emptied, remasked, corrected = (torch.zeros_like(self.canvas.attention) for _ in range(4))
        quotas = [self._quota(row, int(block), int(left)) for row, block, left in zip(
            rows.tolist(), current[:, 0].tolist(), masked.sum(-1).tolist(), strict=True)]  # fmt: skip
        table = torch.full(where.shape, -torch.inf, dtype=sure.dtype, device=sure.device).masked_scatter(where, sure)
        best = table.sort(dim=-1, descending=True, stable=True)
        counts = self.plan.sampler.counts(best.values, torch.tensor(quotas, device=sure.device))
        if counts is None:
            self._fill_each(rows, current, here, masked, where, (distributions.guided, tokens, sure, ranking, quotas),
                            committed, emptied)  # fmt: skip
        else:
            first = torch.arange(where.shape[1], device=sure.device) < counts[:, None]
            fill = torch.zeros_like(where).scatter_(1, best.indices, first) & where
            logp = distributions.guided.gather(-1, tokens[:, None])[:, 0].exp().to(self._confidence)
            self.canvas.ids[rows] = torch.where(fill, part.ids.masked_scatter(where, tokens), part.ids)
            before = self._confidence[rows]
            self._confidence[rows] = torch.where(fill, before.masked_scatter(where, logp), before)
            committed[rows] = fill
        remasked[rows[read]] = distributions.remasked
        certainty = None
        if distributions.certainty is not None:
            certainty = torch.zeros_like(self._confidence)
            certainty[rows[read]] = distributions.certainty.to(certainty.dtype)
        if self.plan.corrector:
            corrected = self._correct(rows, current)
        return CanvasStep(
            0, tuple(rows.tolist()), self.canvas.ids, committed, remasked, corrected, self._confidence, 0, certainty,
            emptied,
        )  # fmt: skip

    def _fill_each(
        self, rows: Tensor, current: Tensor, here: Tensor, masked: Tensor, where: Tensor, said: tuple[Any, ...],
        committed: Tensor, emptied: Tensor,
    ) -> None:  # fmt: skip
        """Let the sampler choose row by row; writes ``committed`` and ``emptied``."""
        guided, tokens, sure, ranking, quotas = said
        bounds = [0, *where.sum(-1).cumsum(0).tolist()]
        for n, row in enumerate(rows.tolist()):
            mine = slice(bounds[n], bounds[n + 1])
            fill, empty = self._choose(
                self._turn_of(row, int(current[n]), here[n], masked[n], where[n], sure[mine], ranking[mine], quotas[n])
            )
            open_ = masked[n][where[n]]  # which of the distributions are of masked positions
            places = masked[n].nonzero()[:, 0][fill]
            kept, logp = tokens[mine][open_][fill], guided[mine][open_][fill]
            if empty is not None:
                emptied[row, (here[n] & ~masked[n]).nonzero()[:, 0][empty]] = True
                self.canvas.ids[row, emptied[row]] = self.model.mask_id
                self._confidence[row, emptied[row]] = 0.0
            self.canvas.ids[row, places] = kept
            committed[row, places] = True
            self._confidence[row, places] = logp.gather(-1, kept[:, None])[:, 0].exp()

    def _quota(self, row: int, block: int, left: int) -> int:
        """How many an equal share fills now; all that is left behind the planned steps."""
        quotas, turn = self._quotas[row][block], self._turn[row][block]
        return quotas[turn] if turn < len(quotas) else left

    def _turn_of(
        self, row: int, block: int, here: Tensor, masked: Tensor, where: Tensor, sure: Tensor, ranking: Tensor,
        quota: int,
    ) -> Turn:  # fmt: skip
        """What the sampler sees of a row: ``here`` are the positions of its block, (L,); ``sure`` (n,) and ``ranking``
        (n, V) belong to those of ``where``."""
        open_, filled = masked[where], here & ~masked
        return Turn(
            row=row, certainty=sure[open_], logp=ranking[open_], places=masked.nonzero()[:, 0],
            quota=quota, turn=self._turn[row][block],
            turns=self._turns(row, block), uniform=lambda count: self._uniform([row], [count], 1)[:, 0],
            filled=filled.nonzero()[:, 0], confidence=self._confidence[row][filled], filled_certainty=sure[~open_],
        )  # fmt: skip

    def _distributions(
        self, part: Canvas, rows: Tensor, where: Tensor, read: Tensor | None = None, guided: bool = True
    ) -> Distributions:
        """The distributions at ``where``; rows that are not ``read`` have none."""
        if read is not None and not read.all():
            if not read.any():
                none = torch.zeros(0, self.model.size, device=where.device)
                return Distributions(none, none, none, where[:0])
            part, rows, where = part.pick(read), rows[read], where[read]
        allowed = None
        if self.plan.allowed is not None:
            allowed = self._allowed(part, rows, where)
            blocked = ~allowed.any(-1)
            if blocked.any():
                row = int(where.nonzero()[blocked][0, 0])
                raise ValueError(
                    f"allowed leaves no token for a masked position of row {int(rows[row])}; allow one everywhere"
                )
        return self.guide.distributions(part, rows, where, allowed, guided=guided)

    def _allowed(self, part: Canvas, rows: Tensor, where: Tensor) -> Tensor:
        allowed, masks = self.plan.allowed, []
        for n, row in enumerate(rows.tolist()):
            inside = where[n][part.target[n]]
            if isinstance(allowed, Tensor):
                mask = allowed.to(where.device)
                mask = mask[row] if mask.dim() == 3 else mask
                masks.append(mask.expand(int(inside.sum()), -1) if mask.dim() == 1 else mask[: len(inside)][inside])
            else:
                masks.append(allowed(row, part.ids[n][part.target[n]]).to(where.device)[inside])
        return torch.cat(masks)

    def _uniform(self, rows: Sequence[int], counts: Sequence[int], width: int) -> Tensor:
        """Uniform float64 numbers, (sum of counts, width): each row's own where it has a seed of its own."""
        wanted = list(zip(rows, counts, strict=True)) if self._seeded else [(0, sum(counts))]
        return torch.cat(
            [
                torch.rand(
                    (count, width), generator=self._generators[row], device=self.model.device, dtype=torch.float64
                )
                for row, count in wanted
            ]
        )

    def _draw(
        self, part: Canvas, rows: Tensor, where: Tensor, masked: Tensor, read: Tensor, guided: bool = True
    ) -> tuple[Distributions, Tensor, Tensor, Tensor]:
        """For every position of ``where``: its distributions; a token, drawn where it is masked; how sure the ranking
        distribution is of it; and that distribution."""
        masks = part.masked(self.model.mask_id) & read[:, None]
        wide = where if self.form is None else where | masks
        found = self._distributions(part, rows, wide, read, guided)
        ranking = {"guided": found.guided, "conditional": found.cond, "unconditional": found.uncond}[
            self.plan.positions
        ]
        tokens, numbers = part.ids[where], rows.tolist()
        open_ = masked[where]
        if self.form is None:
            guided_ = found.guided[open_]
            counts = masked.sum(-1).tolist()
            noise = self._uniform(numbers, counts, guided_.shape[1]) if self.plan.temperature else None
            tokens[open_] = orders.draw(guided_, self.plan.temperature, noise)
        elif len(found.guided):
            mine = where[wide]
            asked = Asked(part.pick(read), rows[read], wide[read], masks[read], found.guided)
            drawn = torch.zeros_like(part.ids)
            drawn[masks] = self.form.draw(asked, self.plan.temperature, self._uniform)
            tokens[open_] = drawn[masked]
            other = None if ranking is found.guided else self.form.posterior(replace(asked, logp=ranking))[mine]
            found = replace(found, guided=self.form.posterior(asked)[mine])
            ranking = found.guided if other is None else other
        counts = where.sum(-1).tolist()
        chance = self._uniform(numbers, counts, 1)[:, 0] if self.plan.order.is_random else None
        places = ((part.block == part.block.gather(1, where.int().argmax(1, keepdim=True))).cumsum(1) - 1)[where]
        return found, tokens, self.plan.order.certainty(ranking, tokens, places, chance), ranking

    def _correct(self, rows: Tensor, current: Tensor) -> Tensor:
        """Empty the least certain filled positions of the block and fill them again from the guided distribution."""
        part = self.canvas.pick(rows)
        filled = part.target & (part.block == current) & (part.ids != self.model.mask_id)
        confidence = self._confidence[rows].masked_fill(~filled, 2.0)
        rank = confidence.argsort(dim=-1, stable=True).argsort(dim=-1)
        again = filled & (rank < self.plan.corrector)
        part.ids.masked_fill_(again, self.model.mask_id)
        everywhere = torch.ones_like(rows, dtype=torch.bool)
        distributions, tokens, _, _ = self._draw(part, rows, again, again, everywhere)
        whole = torch.zeros_like(self.canvas.attention)
        whole[rows] = again
        self.canvas.ids[whole] = tokens
        self._confidence[whole] = distributions.guided.gather(-1, tokens[:, None])[:, 0].exp()
        return whole

    def _end_rows(self, rows: Tensor) -> None:
        """Rows whose text ends with everything in front of the end filled are finished: the rest becomes end tokens."""
        if self.model.end_id is None:
            return
        for row in rows.tolist():
            if self._revises and any(turn < self._turns(row, n) for n, turn in enumerate(self._turn[row]) if turn):
                continue  # a block that is being revised
            places = self.canvas.target[row].nonzero()[:, 0]
            tokens = self.canvas.ids[row, places]
            ends = (tokens == self.model.end_id).nonzero()[:, 0]
            if len(ends) and not (tokens[: ends[0]] == self.model.mask_id).any():
                self.canvas.ids[row, places[ends[0] :]] = self.model.end_id
                self._turn[row] = [self._turns(row, block) for block in range(len(self._turn[row]))]


def checked_plan(
    *, count: int, steps: Any, blocks: int, order: Any, sampler: Any, temperature: Any, threshold: Any, positions: Any,
    corrector: Any, early_end: bool, allowed: Any, seed: Any,
) -> Plan:  # fmt: skip
    """The arguments as a plan.

    Raises:
        ValueError: one has a value that cannot work; the message names it.
    """
    steps = whole_number("steps", steps)
    if steps < blocks:
        raise ValueError(
            f"steps={steps} is fewer than the {blocks} blocks; take a step a block at least, or larger blocks"
        )
    order = Order.of(order)
    sampler = _sampler(sampler, threshold)
    sampler.check(order)
    if positions not in orders.POSITIONS:
        raise ValueError(f"positions={positions!r} is unknown; use one of {', '.join(orders.POSITIONS)}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} must be a number of 0 or more; 0 takes the most likely token")
    if isinstance(corrector, bool) or not isinstance(corrector, int) or corrector < 0:
        raise ValueError(f"corrector={corrector!r} must be a number of tokens, 0 for none")
    if isinstance(allowed, Tensor) and (allowed.dtype != torch.bool or allowed.dim() not in (1, 2, 3)):
        raise ValueError(f"allowed has shape {tuple(allowed.shape)} and type {allowed.dtype}; give bool (V,), (G, V) "
                         "or (B, G, V), or a function of the row and its tokens")  # fmt: skip
    if isinstance(allowed, Tensor) and allowed.dim() == 3 and len(allowed) != count:
        raise ValueError(f"allowed has {len(allowed)} rows for {count} texts; give one a text")
    if allowed is not None and not isinstance(allowed, Tensor) and not callable(allowed):
        raise ValueError(f"allowed={allowed!r} must be a bool tensor, or a function of the row and its tokens")
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    if any(one is not None and (isinstance(one, bool) or not isinstance(one, int)) for one in seeds) or not seeds:
        raise ValueError(f"seed={seed!r} must be a whole number, a list with one a row, or None")
    if isinstance(seed, (list, tuple)) and len(seeds) != count:
        raise ValueError(f"seed has {len(seeds)} numbers for {count} texts; give one a text")
    return Plan(steps, blocks, order, sampler, float(temperature), positions, corrector, early_end, allowed, seed)


def _sampler(sampler: Any, threshold: Any) -> Unmasking:
    """``sampler=`` or ``threshold=``, of which one may be given."""
    if threshold is None:
        return Unmasking.of(EqualShares() if sampler is None else sampler)
    if sampler is not None:
        raise ValueError(f"threshold={threshold!r} is a sampler of its own beside sampler={sampler!r}; leave one out")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold={threshold!r} must lie in (0, 1], or be None for equal quotas")
    return Threshold(float(threshold))


def whole_number(name: str, value: Any) -> int:
    """``value`` where it is a whole number of 1 or more.

    Raises:
        ValueError: it is not; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of 1 or more")
    return value


def finished(rows: Sequence[int], end: int | None) -> list[int]:
    """``rows`` up to its first end token."""
    tokens = list(rows)
    return tokens[: tokens.index(end)] if end in tokens else tokens
