"""Sampling from masked diffusion models, with guidance in every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..engine.effect import Effect
from . import orders
from .canvas import Canvas
from .denoisers import Denoiser
from .guiding import Distributions, Guide

Allowed = Tensor | Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """How a canvas is filled; see :func:`textguide.diffusion.generate`."""

    steps: int
    blocks: int
    order: str = "confidence"
    temperature: float = 0.0
    threshold: float | None = None
    positions: str = "guided"
    corrector: int = 0
    early_end: bool = True
    allowed: Any = None
    seed: int | None = None


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
    steps_taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.model.device
        self.generator = torch.Generator(device)
        if self.plan.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.plan.seed)
        self.use(self.generator)
        self.steps_taken = [0] * len(self.canvas)
        self._quotas = [self._plan_row(row) for row in range(len(self.canvas))]
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
            rows = self.canvas.masked(self.model.mask_id).any(-1).nonzero()[:, 0]
            if not len(rows):
                return
            before = self.guide.passes
            committed, remasked, corrected, certainty = self._step(rows)
            for row in rows.tolist():
                self.steps_taken[row] += 1
            if self.plan.early_end:
                self._end_rows(rows)
            yield CanvasStep(
                index, tuple(rows.tolist()), self.canvas.ids.clone(), committed, remasked, corrected,
                self._confidence.clone(), self.guide.passes - before, certainty,
            )  # fmt: skip
            index += 1

    @property
    def confidence(self) -> Tensor:
        """Probability of each token when it was filled, (B, L); 0 elsewhere."""
        return self._confidence

    def use(self, generator: torch.Generator) -> None:
        """Take all random numbers from here on from ``generator``."""
        self.generator = generator
        self.guide.use(generator)

    def put(self, rows: Sequence[int], ids: Tensor, confidence: Tensor) -> None:
        """Write what rows hold, between two steps: (r, L) each."""
        index = torch.tensor(list(rows), device=ids.device)
        self.canvas.ids[index], self._confidence[index] = ids, confidence

    def move(self, ancestors: Sequence[int]) -> None:
        """Let row ``r`` go on from what row ``ancestors[r]`` has filled, between two steps."""
        index = torch.tensor(ancestors, device=self.canvas.ids.device)
        self.canvas.ids, self._confidence = self.canvas.ids[index], self._confidence[index]
        self._quotas = [[list(block) for block in self._quotas[row]] for row in ancestors]
        self.steps_taken = [self.steps_taken[row] for row in ancestors]

    def _plan_row(self, row: int) -> list[list[int]]:
        """For each block how many positions each of its steps fills."""
        blocks = self.canvas.block[row]
        sizes = [int((blocks == block).sum()) for block in range(int(blocks.max()) + 1)]
        steps = orders.steps_of_blocks(self.plan.steps, self.plan.blocks)
        return [orders.quotas(size, steps[min(block, len(steps) - 1)]) for block, size in enumerate(sizes)]

    def _step(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        part = self.canvas.pick(rows)
        masked = part.masked(self.model.mask_id)
        current = part.block.masked_fill(~masked, 1 << 30).amin(-1, keepdim=True)
        where = masked & (part.block == current)
        distributions = self._distributions(part, rows, where, guided=not self.plan.corrector)
        picked, sure = self._choose(distributions, where)
        self.guess = self.canvas.ids.clone()
        self.guess[rows] = part.ids.masked_scatter(where, picked)
        counts = self._counts(sure, rows, current[:, 0])
        committed = torch.zeros_like(self.canvas.attention)
        self._write(rows, where, picked, sure, counts, distributions.guided, committed)
        remasked = torch.zeros_like(committed)
        remasked[rows] = distributions.remasked
        certainty = None
        if distributions.certainty is not None:
            certainty = torch.zeros_like(self._confidence)
            certainty[rows] = distributions.certainty.to(certainty.dtype)
        corrected = torch.zeros_like(committed)
        if self.plan.corrector:
            corrected = self._correct(rows, current)
        return committed, remasked, corrected, certainty

    def _distributions(self, part: Canvas, rows: Tensor, where: Tensor, guided: bool = True) -> Distributions:
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

    def _noise(self, rows: Tensor, counts: list[int], width: int) -> list[Tensor]:
        """Uniform float64 numbers for each row."""
        shape = (sum(counts), width)
        drawn = torch.rand(shape, generator=self.generator, device=self.model.device, dtype=torch.float64)
        return list(drawn.split(counts))

    def _choose(self, distributions: Distributions, where: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A token for every position of ``where`` and how sure the distribution is of it, row by row."""
        counts = where.sum(-1).tolist()
        size = distributions.guided.shape[-1]
        noise = torch.cat(self._noise(where, counts, size)) if self.plan.temperature else None
        tokens = orders.draw(distributions.guided, self.plan.temperature, noise)
        distribution = {
            "guided": distributions.guided,
            "conditional": distributions.cond,
            "unconditional": distributions.uncond,
        }[self.plan.positions]
        chance = torch.cat(self._noise(where, counts, 1))[:, 0] if self.plan.order == "random" else None
        return tokens, list(orders.certainty(distribution, tokens, self.plan.order, chance).split(counts))

    def _counts(self, sure: list[Tensor], rows: Tensor, blocks: Tensor) -> list[int]:
        if self.plan.threshold is not None:
            return [max(1, int((values >= self.plan.threshold).sum())) for values in sure]
        counts = []
        for values, row, block in zip(sure, rows.tolist(), blocks.tolist(), strict=True):
            quotas = self._quotas[row][block]
            counts.append(min(len(values), quotas.pop(0) if quotas else len(values)))
        return counts

    def _write(
        self, rows: Tensor, where: Tensor, tokens: Tensor, sure: list[Tensor], counts: list[int], distribution: Tensor,
        written: Tensor,
    ) -> None:  # fmt: skip
        start = 0
        for n, chosen in enumerate(orders.surest(sure, counts)):
            row, places = int(rows[n]), where[n].nonzero()[:, 0][chosen]
            kept = tokens[start : start + len(sure[n])][chosen]
            self.canvas.ids[row, places] = kept
            written[row, places] = True
            self._confidence[row, places] = (
                distribution[start : start + len(sure[n])][chosen].gather(-1, kept[:, None])[:, 0].exp()
            )
            start += len(sure[n])

    def _correct(self, rows: Tensor, current: Tensor) -> Tensor:
        """Empty the least certain filled positions of the block and fill them again from the guided distribution."""
        part = self.canvas.pick(rows)
        filled = part.target & (part.block == current) & (part.ids != self.model.mask_id)
        confidence = self._confidence[rows].masked_fill(~filled, 2.0)
        rank = confidence.argsort(dim=-1, stable=True).argsort(dim=-1)
        again = filled & (rank < self.plan.corrector)
        part.ids.masked_fill_(again, self.model.mask_id)
        distributions = self._distributions(part, rows, again)
        tokens, _ = self._choose(distributions, again)
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
            places = self.canvas.target[row].nonzero()[:, 0]
            tokens = self.canvas.ids[row, places]
            ends = (tokens == self.model.end_id).nonzero()[:, 0]
            if len(ends) and not (tokens[: ends[0]] == self.model.mask_id).any():
                self.canvas.ids[row, places[ends[0] :]] = self.model.end_id


def checked_plan(
    *, count: int, steps: Any, blocks: int, order: Any, temperature: Any, threshold: Any, positions: Any,
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
    if order not in orders.ORDERS:
        raise ValueError(f"order={order!r} is unknown; use one of {', '.join(orders.ORDERS)}")
    if positions not in orders.POSITIONS:
        raise ValueError(f"positions={positions!r} is unknown; use one of {', '.join(orders.POSITIONS)}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} must be a number of 0 or more; 0 takes the most likely token")
    if threshold is not None and (not isinstance(threshold, (int, float)) or not 0.0 < threshold <= 1.0):
        raise ValueError(f"threshold={threshold!r} must lie in (0, 1], or be None for equal quotas")
    if threshold is not None and order not in ("confidence", "margin"):
        raise ValueError(
            f"threshold={threshold} compares probabilities, and order={order!r} gives none; use confidence"
        )
    if isinstance(corrector, bool) or not isinstance(corrector, int) or corrector < 0:
        raise ValueError(f"corrector={corrector!r} must be a number of tokens, 0 for none")
    if isinstance(allowed, Tensor) and (allowed.dtype != torch.bool or allowed.dim() not in (1, 2, 3)):
        raise ValueError(f"allowed has shape {tuple(allowed.shape)} and type {allowed.dtype}; give bool (V,), (G, V) "
                         "or (B, G, V), or a function of the row and its tokens")  # fmt: skip
    if isinstance(allowed, Tensor) and allowed.dim() == 3 and len(allowed) != count:
        raise ValueError(f"allowed has {len(allowed)} rows for {count} texts; give one a text")
    if allowed is not None and not isinstance(allowed, Tensor) and not callable(allowed):
        raise ValueError(f"allowed={allowed!r} must be a bool tensor, or a function of the row and its tokens")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"seed={seed!r} must be a whole number, or None")
    return Plan(steps, blocks, order, float(temperature), threshold, positions, corrector, early_end, allowed, seed)


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
