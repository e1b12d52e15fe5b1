"""Sampling from masked diffusion models, with guidance in every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..step.effect import Effect
from .canvas import Canvas
from .constraints.base import CanvasConstraint, StepDistributions
from .denoisers import Denoiser
from .draws import draw
from .guiding import Distributions, Guide
from .options import CanvasOptions
from .samplers import Turn

NO_BLOCK = 1 << 30


@dataclass(frozen=True)
class CanvasStep:
    """The canvas after one step.

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
        certainty: probability of the most likely token at each position, (B, L), by which A-CFG chose the positions
            that its second pass read as masks: those with the lowest. None without A-CFG.
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
class _Changes:
    """What one step changed, as the fields of :class:`CanvasStep`, bool (B, L) each."""

    committed: Tensor
    emptied: Tensor
    remasked: Tensor
    corrected: Tensor
    certainty: Tensor | None = None


@dataclass
class _Draws:
    """Distributions and draws of one step at its N positions.

    Attributes:
        distributions: with guidance and without.
        tokens: drawn tokens at masked positions, the tokens that are there at filled ones, (N,).
        certainty: by the order, (N,).
        ranking: the distributions by which positions are ranked, (N, V).
    """

    distributions: Distributions
    tokens: Tensor
    certainty: Tensor
    ranking: Tensor


@dataclass
class _BlockStep:
    """One step of the rows that are not finished, R of them.

    Attributes:
        rows: their numbers in the batch, (R,).
        blocks: the block that each fills, (R,).
        part: their canvas before the step.
        in_block: the positions of these blocks, bool (R, L).
        masked: those of them that are masked, bool (R, L).
        positions: those whose distributions are read, bool (R, L).
        draws: at ``positions``.
        quotas: how many positions an equal share of the steps fills, by row.
    """

    rows: Tensor
    blocks: Tensor
    part: Canvas
    in_block: Tensor
    masked: Tensor
    positions: Tensor
    draws: _Draws
    quotas: list[int]


class Sampler:
    """Fills a canvas; :meth:`run` yields every step.

    Args:
        model: the denoiser.
        canvas: the batch, filled in place.
        guide: the guidance.
        options: how the canvas is filled; ``steps`` is a number.
        blocks: blocks of a row, which share the steps.
        constraint: applied to the whole text of each row; None: nothing is.

    Attributes:
        steps_taken: steps of each row.
        guess: the canvas after the last step with all positions of that step filled by its draws, (B, L).
        generator: gives all random numbers, unless each row has a seed.
    """

    def __init__(
        self,
        model: Denoiser,
        canvas: Canvas,
        guide: Guide,
        options: CanvasOptions,
        blocks: int,
        constraint: CanvasConstraint | None = None,
    ) -> None:
        assert options.steps is not None
        self.model = model
        self.canvas = canvas
        self.guide = guide
        self.options = options
        self.constraint = constraint
        self._blocks = blocks
        device = model.device
        seeds = options.seed if isinstance(options.seed, Sequence) else [options.seed]
        self._has_seed_per_row = isinstance(options.seed, Sequence)
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            generator.seed() if seed is None else generator.manual_seed(seed)
        self.generator = self._generators[0]
        guide.use(self.generator)
        self.steps_taken = [0] * len(canvas)
        self._revises = options.unmasking.revises
        self._block_steps = equal_parts(options.steps, blocks)
        self._quotas = [self._row_quotas(row) for row in range(len(canvas))]
        self._turns_taken = [[0] * len(quotas) for quotas in self._quotas]  # steps so far, by row and block
        self._choose = options.unmasking.start(options.ranking)
        self._confidence = torch.zeros(canvas.ids.shape, device=device)
        self.guess = canvas.ids

    def restart(self, canvas: Canvas) -> Sampler:
        """A sampler for another canvas of the same shape that continues this one's random numbers."""
        sampler = Sampler(self.model, canvas, self.guide, self.options, self._blocks, self.constraint)
        sampler.use(self.generator)
        return sampler

    @property
    def effect(self) -> Effect:
        """What guidance did so far."""
        return self.guide.meter.summary()

    def run(self) -> Iterator[CanvasStep]:
        """Fill the canvas step by step; finished rows leave the batch."""
        index = 0
        while True:
            blocks = self._current_blocks()
            rows = (blocks >= 0).nonzero()[:, 0]
            if not len(rows):
                return
            passes = self.guide.passes
            changes = self._step(rows, blocks[rows])
            for row in rows.tolist():
                self.steps_taken[row] += 1
                self._turns_taken[row][int(blocks[row])] += 1
            if self.options.early_end:
                self._end_rows(rows)
            yield CanvasStep(
                index=index,
                rows=tuple(rows.tolist()),
                ids=self.canvas.ids.clone(),
                committed=changes.committed,
                remasked=changes.remasked,
                corrected=changes.corrected,
                confidence=self._confidence.clone(),
                forwards=self.guide.passes - passes,
                certainty=changes.certainty,
                emptied=changes.emptied,
            )
            index += 1

    @property
    def confidence(self) -> Tensor:
        """Probability of each token when it was filled, (B, L); 0 elsewhere."""
        return self._confidence

    def use(self, generator: torch.Generator) -> None:
        """Take all random numbers from now on from ``generator``."""
        self.generator = generator
        self._generators = [generator]
        self._has_seed_per_row = False
        self.guide.use(generator)

    def put(self, rows: Sequence[int], ids: Tensor, confidence: Tensor) -> None:
        """Replace the tokens of rows between two steps: (r, L) each."""
        index = torch.tensor(list(rows), device=ids.device)
        self.canvas.ids[index] = ids
        self._confidence[index] = confidence

    def move(self, ancestors: Sequence[int]) -> None:
        """Let row ``r`` continue from what row ``ancestors[r]`` has filled, between two steps."""
        index = torch.tensor(ancestors, device=self.canvas.ids.device)
        self.canvas.ids = self.canvas.ids[index]
        self._confidence = self._confidence[index]
        self._turns_taken = [list(self._turns_taken[row]) for row in ancestors]
        self.steps_taken = [self.steps_taken[row] for row in ancestors]

    def _row_quotas(self, row: int) -> list[list[int]]:
        """How many positions each step of each block fills, if the shares are equal."""
        blocks = self.canvas.block[row]
        sizes = [int((blocks == block).sum()) for block in range(int(blocks.max()) + 1)]
        return [equal_shares(size, self._steps_of(block)) for block, size in enumerate(sizes)]

    def _steps_of(self, block: int) -> int:
        """The steps that are planned for a block."""
        return self._block_steps[min(block, len(self._block_steps) - 1)]

    def _turns(self, row: int, block: int) -> int:
        """How many steps a block takes: at most one per position, unless the sampler revises."""
        return self._steps_of(block) if self._revises else len(self._quotas[row][block])

    def _current_blocks(self) -> Tensor:
        """The block that each row is filling, (B,); −1 if the row is finished."""
        masked = self.canvas.masked(self.model.mask_id)
        if not self._revises:
            blocks = self.canvas.block.masked_fill(~masked, NO_BLOCK).amin(-1)
            return blocks.masked_fill(~masked.any(-1), -1)
        # A sampler that revises works on a block until its last step, even if no position is masked any more.
        current = []
        for row, taken in enumerate(self._turns_taken):
            unfinished = (block for block, turn in enumerate(taken) if turn < self._turns(row, block))
            current.append(next(unfinished, -1))
        return torch.tensor(current, device=masked.device)

    def _step(self, rows: Tensor, blocks: Tensor) -> _Changes:
        part = self.canvas.pick(rows)
        in_block = part.target & (part.block == blocks[:, None])
        masked = in_block & (part.ids == self.model.mask_id)
        positions = in_block if self.options.unmasking.reads_filled else masked
        read = positions.any(-1)  # a sampler that revises may have filled a row before its last step
        draws = self._draw(part, rows, positions, masked, read, guided=not self.options.corrector)
        self.guess = self.canvas.ids.clone()
        self.guess[rows] = part.ids.masked_scatter(positions, draws.tokens)
        quotas = [
            self._quota(row, block, left)
            for row, block, left in zip(rows.tolist(), blocks.tolist(), masked.sum(-1).tolist(), strict=True)
        ]
        step = _BlockStep(rows, blocks, part, in_block, masked, positions, draws, quotas)
        changes = _Changes(*(torch.zeros_like(self.canvas.attention) for _ in range(4)))
        self._fill(step, changes)
        distributions = draws.distributions
        changes.remasked[rows[read]] = distributions.remasked
        if distributions.certainty is not None:
            changes.certainty = torch.zeros_like(self._confidence)
            changes.certainty[rows[read]] = distributions.certainty.to(changes.certainty.dtype)
        if self.options.corrector:
            changes.corrected = self._correct(rows, blocks)
        return changes

    def _fill(self, step: _BlockStep, changes: _Changes) -> None:
        """Let the sampler choose positions, and write their tokens."""
        certainty = step.draws.certainty
        table = torch.full(step.positions.shape, -torch.inf, dtype=certainty.dtype, device=certainty.device)
        best = table.masked_scatter(step.positions, certainty).sort(dim=-1, descending=True, stable=True)
        counts = self.options.unmasking.counts(best.values, torch.tensor(step.quotas, device=certainty.device))
        if counts is None:
            self._fill_row_by_row(step, changes)
            return
        # The most certain positions of all rows at once.
        first = torch.arange(step.positions.shape[1], device=certainty.device) < counts[:, None]
        fill = torch.zeros_like(step.positions).scatter_(1, best.indices, first) & step.positions
        tokens = step.draws.tokens
        chance = step.draws.distributions.guided.gather(-1, tokens[:, None])[:, 0].exp().to(self._confidence)
        part = step.part
        rows = step.rows
        self.canvas.ids[rows] = torch.where(fill, part.ids.masked_scatter(step.positions, tokens), part.ids)
        before = self._confidence[rows]
        self._confidence[rows] = torch.where(fill, before.masked_scatter(step.positions, chance), before)
        changes.committed[rows] = fill

    def _fill_row_by_row(self, step: _BlockStep, changes: _Changes) -> None:
        guided = step.draws.distributions.guided
        tokens = step.draws.tokens
        bounds = [0, *step.positions.sum(-1).cumsum(0).tolist()]
        for n, row in enumerate(step.rows.tolist()):
            own = slice(bounds[n], bounds[n + 1])
            fill, empty = self._choose(self._turn_of(step, n, own))
            masked = step.masked[n][step.positions[n]]  # which of the row's distributions are of masked positions
            places = step.masked[n].nonzero()[:, 0][fill]
            chosen = tokens[own][masked][fill]
            logp = guided[own][masked][fill]
            if empty is not None:
                filled = step.in_block[n] & ~step.masked[n]
                changes.emptied[row, filled.nonzero()[:, 0][empty]] = True
                self.canvas.ids[row, changes.emptied[row]] = self.model.mask_id
                self._confidence[row, changes.emptied[row]] = 0.0
            self.canvas.ids[row, places] = chosen
            changes.committed[row, places] = True
            self._confidence[row, places] = logp.gather(-1, chosen[:, None])[:, 0].exp()

    def _quota(self, row: int, block: int, left: int) -> int:
        """How many positions an equal share fills now; all that are left after the planned steps."""
        quotas = self._quotas[row][block]
        turn = self._turns_taken[row][block]
        return quotas[turn] if turn < len(quotas) else left

    def _turn_of(self, step: _BlockStep, n: int, own: slice) -> Turn:
        """What the sampler sees of the ``n``-th row, whose distributions are at ``own``."""
        row = int(step.rows[n])
        block = int(step.blocks[n])
        masked = step.masked[n][step.positions[n]]
        filled = step.in_block[n] & ~step.masked[n]
        certainty = step.draws.certainty[own]
        return Turn(
            row=row,
            certainty=certainty[masked],
            logp=step.draws.ranking[own][masked],
            places=step.masked[n].nonzero()[:, 0],
            quota=step.quotas[n],
            turn=self._turns_taken[row][block],
            turns=self._turns(row, block),
            uniform=lambda count: self._uniform([row], [count], 1)[:, 0],
            filled=filled.nonzero()[:, 0],
            confidence=self._confidence[row][filled],
            filled_certainty=certainty[~masked],
        )

    def _draw(
        self, part: Canvas, rows: Tensor, positions: Tensor, masked: Tensor, read: Tensor, guided: bool = True
    ) -> _Draws:
        """Distributions at ``positions``, and tokens that are drawn at those that are ``masked``.

        Args:
            read: rows that are read, bool (R,).
        """
        if self.constraint is None:
            found = self._distributions(part, rows, positions, read, guided)
            ranking = self._ranking(found)
            tokens = self._independent_tokens(part, rows, positions, masked, found)
        else:
            found, ranking, tokens = self._constrained_draw(part, rows, positions, masked, read, guided)
        order = self.options.ranking
        counts = positions.sum(-1).tolist()
        chance = self._uniform(rows.tolist(), counts, 1)[:, 0] if order.is_random else None
        certainty = order.certainty(ranking, tokens, _places_in_block(part, positions), chance)
        return _Draws(found, tokens, certainty, ranking)

    def _independent_tokens(
        self, part: Canvas, rows: Tensor, positions: Tensor, masked: Tensor, found: Distributions
    ) -> Tensor:
        """A token at each position, from its own distribution if it is masked, (N,)."""
        temperature = self.options.temperature
        tokens = part.ids[positions]
        is_masked = masked[positions]
        logp = found.guided[is_masked]
        noise = self._uniform(rows.tolist(), masked.sum(-1).tolist(), logp.shape[1]) if temperature else None
        tokens[is_masked] = draw(logp, temperature, noise)
        return tokens

    def _constrained_draw(
        self, part: Canvas, rows: Tensor, positions: Tensor, masked: Tensor, read: Tensor, guided: bool
    ) -> tuple[Distributions, Tensor, Tensor]:
        """Distributions given the constraint, those that rank positions, and tokens of one whole text per row.

        The constraint is on the whole text, so the distributions at all masked positions are needed, not only those of
        the current block.
        """
        assert self.constraint is not None
        all_masked = part.masked(self.model.mask_id) & read[:, None]
        wide = positions | all_masked
        found = self._distributions(part, rows, wide, read, guided)
        ranking = self._ranking(found)
        tokens = part.ids[positions]
        if not len(found.guided):
            return found, ranking, tokens
        needed = positions[wide]
        step = StepDistributions(part.pick(read), rows[read], wide[read], all_masked[read], found.guided)
        drawn = torch.zeros_like(part.ids)
        drawn[all_masked] = self.constraint.draw(step, self.options.temperature, self._uniform)
        tokens[masked[positions]] = drawn[masked]
        constrained: Tensor | None = None
        if ranking is not found.guided:
            constrained = self.constraint.posterior(replace(step, logp=ranking))[needed]
        found = replace(found, guided=self.constraint.posterior(step)[needed])
        return found, found.guided if constrained is None else constrained, tokens

    def _ranking(self, found: Distributions) -> Tensor:
        """The distributions that rank positions."""
        by_name = {"guided": found.guided, "conditional": found.cond, "unconditional": found.uncond}
        return by_name[self.options.positions]

    def _distributions(
        self, part: Canvas, rows: Tensor, positions: Tensor, read: Tensor, guided: bool = True
    ) -> Distributions:
        """The distributions at ``positions``; rows that are not ``read`` have none."""
        if not read.all():
            if not read.any():
                none = torch.zeros(0, self.model.size, device=positions.device)
                return Distributions(none, none, none, positions[:0])
            part = part.pick(read)
            rows = rows[read]
            positions = positions[read]
        allowed = None
        if self.options.allowed is not None:
            allowed = self._allowed(part, rows, positions)
            blocked = ~allowed.any(-1)
            if blocked.any():
                row = int(positions.nonzero()[blocked][0, 0])
                raise ValueError(
                    f"allowed leaves no token for a masked position of row {int(rows[row])}; allow one everywhere"
                )
        return self.guide.distributions(part, rows, positions, allowed, guided=guided)

    def _allowed(self, part: Canvas, rows: Tensor, positions: Tensor) -> Tensor:
        """The allowed tokens at each position, bool (N, V).

        Raises:
            ValueError: a mask has another vocabulary, or too few positions for a row.
        """
        allowed = self.options.allowed
        masks = []
        for n, row in enumerate(rows.tolist()):
            inside = positions[n][part.target[n]]  # which of the row's targets are positions
            if not isinstance(allowed, Tensor):
                assert allowed is not None
                mask = allowed(row, part.ids[n][part.target[n]]).to(positions.device)
                self._check_allowed(mask, row, len(inside))
                masks.append(mask[inside])
                continue
            mask = allowed.to(positions.device)
            mask = mask[row] if mask.dim() == 3 else mask
            self._check_allowed(mask, row, len(inside))
            if mask.dim() == 1:
                masks.append(mask.expand(int(inside.sum()), -1))
            else:
                masks.append(mask[: len(inside)][inside])
        return torch.cat(masks)

    def _check_allowed(self, mask: Tensor, row: int, count: int) -> None:
        """Refuse a mask that does not fit row number ``row``, which has ``count`` masks to fill."""
        size = self.model.size
        if mask.shape[-1] != size:
            raise ValueError(
                f"allowed has {mask.shape[-1]} tokens, and the model's vocabulary has {size}; give bool (V,), (G, V) "
                f"or (B, G, V) with V = {size}"
            )
        if mask.dim() == 2 and len(mask) < count:
            raise ValueError(
                f"allowed has {len(mask)} positions, and row {row} has {count} masks to fill; give one for each"
            )

    def _uniform(self, rows: Sequence[int], counts: Sequence[int], width: int) -> Tensor:
        """Uniform float64 numbers, (sum of counts, width); each row's own if it has a seed."""
        wanted = list(zip(rows, counts, strict=True)) if self._has_seed_per_row else [(0, sum(counts))]
        device = self.model.device
        parts = [
            torch.rand((count, width), generator=self._generators[row], device=device, dtype=torch.float64)
            for row, count in wanted
        ]
        return torch.cat(parts)

    def _correct(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """Empty the least certain filled positions of the block and fill them again from the guided distribution;
        returns these positions, bool (B, L)."""
        part = self.canvas.pick(rows)
        filled = part.target & (part.block == blocks[:, None]) & (part.ids != self.model.mask_id)
        confidence = self._confidence[rows].masked_fill(~filled, 2.0)
        rank = confidence.argsort(dim=-1, stable=True).argsort(dim=-1)
        again = filled & (rank < self.options.corrector)
        part.ids.masked_fill_(again, self.model.mask_id)
        draws = self._draw(part, rows, again, again, torch.ones_like(rows, dtype=torch.bool))
        corrected = torch.zeros_like(self.canvas.attention)
        corrected[rows] = again
        self.canvas.ids[corrected] = draws.tokens
        guided = draws.distributions.guided
        self._confidence[corrected] = guided.gather(-1, draws.tokens[:, None])[:, 0].exp()
        return corrected

    def _end_rows(self, rows: Tensor) -> None:
        """Finish the rows whose text has ended with everything before the end filled: the rest becomes end tokens."""
        if self.model.end_id is None:
            return
        for row in rows.tolist():
            if self._revises and self._revises_block_of(row):
                continue
            places = self.canvas.target[row].nonzero()[:, 0]
            tokens = self.canvas.ids[row, places]
            ends = (tokens == self.model.end_id).nonzero()[:, 0]
            if len(ends) and not (tokens[: ends[0]] == self.model.mask_id).any():
                self.canvas.ids[row, places[ends[0] :]] = self.model.end_id
                self._turns_taken[row] = [self._turns(row, block) for block in range(len(self._turns_taken[row]))]

    def _revises_block_of(self, row: int) -> bool:
        """Whether a block of the row has begun and has steps left."""
        return any(0 < turn < self._turns(row, block) for block, turn in enumerate(self._turns_taken[row]))


def _places_in_block(part: Canvas, positions: Tensor) -> Tensor:
    """The number of each position within its block, from 0, (N,)."""
    block = part.block.gather(1, positions.int().argmax(1, keepdim=True))
    return ((part.block == block).cumsum(1) - 1)[positions]


def equal_shares(masks: int, steps: int) -> list[int]:
    """How many positions each step fills: nearly the same number, the earlier steps one more, none of them 0."""
    steps = min(masks, steps)
    return [masks // steps + (step < masks % steps) for step in range(steps)] if masks else []


def equal_parts(steps: int, blocks: int) -> list[int]:
    """The steps of each block, the earlier blocks one more if they do not divide evenly."""
    return [steps // blocks + (block < steps % blocks) for block in range(blocks)]


def until_end(tokens: Sequence[int], end: int | None) -> list[int]:
    """``tokens`` before the first end token."""
    tokens = list(tokens)
    return tokens[: tokens.index(end)] if end in tokens else tokens
