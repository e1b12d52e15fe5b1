"""Canvases that are filled side by side, weighed by a predictor and resampled: SMC and particle Gibbs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..guidance.particle_gibbs import ParticleGibbs
from ..smc.particles import effective_sample_size, log_evidence, normalized
from .caching import Caching
from .canvas import Canvas
from .predictors import Predictor
from .sampling import Plan, Sampler


@dataclass
class Trajectory:
    """One canvas a prompt, step by step.

    Attributes:
        ids: behind each step, S tensors (P, L).
        confidence: of each token when it was filled, likewise.
        judged: ``weight · log f`` of the canvas with its masks filled, S tensors (P,).
        steps: how many it took, (P,).
    """

    ids: list[Tensor]
    confidence: list[Tensor]
    judged: list[Tensor]
    steps: list[int]


class ParticleSampler:
    """Fills one canvas a prompt by :class:`textguide.guidance.ParticleGibbs`.

    Args:
        guidance: how.
        predictor: what judges.
        sampler: of ``particles`` rows a prompt, side by side, in front of its first step; its generator gives all
            random numbers.

    Attributes:
        log_mean: log of the estimate of ``E_p[f^weight]`` that the first run gave, (P,) in float64.
    """

    def __init__(self, guidance: ParticleGibbs, predictor: Predictor, sampler: Sampler) -> None:
        self.guidance, self.predictor, self._first = guidance, predictor, sampler
        self._empty = sampler.canvas.ids.clone()
        self.log_mean = torch.zeros(0, dtype=torch.float64)

    def run(self) -> tuple[Tensor, list[int]]:
        """The token ids of one text a prompt, (P, L), and the steps it took."""
        kept: Trajectory | None = None
        for iteration in range(self.guidance.iterations):
            kept = self._once(iteration, kept)
        assert kept is not None
        return kept.ids[-1], kept.steps

    def _once(self, iteration: int, kept: Trajectory | None) -> Trajectory:
        """One run, and a trajectory a prompt from it; the first canvas of each prompt takes ``kept`` in any case."""
        sampler, count = self._first, self.guidance.particles
        if iteration:
            canvas = replace(sampler.canvas, ids=self._empty.clone())
            sampler, generator = Sampler(sampler.model, canvas, sampler.guide, sampler.plan), sampler.generator
            sampler.use(generator)
        prompts = len(self._empty) // count
        weights = torch.zeros(prompts, count, dtype=torch.float64)
        history: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in sampler.run():
            open_ = sampler.canvas.masked(sampler.model.mask_id).any(-1, keepdim=True)
            judged = self._judged(sampler, torch.where(open_, sampler.guess, sampler.canvas.ids))
            if kept is not None:
                at = min(step.index, len(kept.ids) - 1)
                judged[::count] = kept.judged[at]
                sampler.put(range(0, prompts * count, count), kept.ids[at], kept.confidence[at])
            before = history[-1][2] if history else torch.zeros_like(judged)
            weights += (judged - before).view(prompts, count)
            history.append((sampler.canvas.ids.clone(), sampler.confidence.clone(), judged))
            if not bool((sampler.canvas.masked(sampler.model.mask_id)).any()):
                continue
            ancestors = self._ancestors(weights, kept is not None)
            if ancestors is not None:
                sampler.move(ancestors)
                history = [tuple(one[ancestors] for one in values) for values in history]  # type: ignore[misc]
        if not iteration:
            self.log_mean = log_evidence(weights)
        chosen = self._draw(weights, 1)[:, 0] + torch.arange(prompts) * count
        places = chosen.tolist()
        steps = [sampler.steps_taken[place] for place in places]
        if kept is not None:
            steps = [old if place % count == 0 else new
                     for place, old, new in zip(places, kept.steps, steps, strict=True)]  # fmt: skip
        return Trajectory(
            [ids[places] for ids, _, _ in history],
            [confidence[places] for _, confidence, _ in history],
            [judged[places] for _, _, judged in history],
            steps,
        )

    def _judged(self, sampler: Sampler, ids: Tensor) -> Tensor:
        """``weight · log f`` of canvases (P · K, L), in float64 on the CPU."""
        said = self.predictor.of(ids, sampler.canvas, torch.arange(len(ids), device=ids.device))
        return self.guidance.weight * said.double().cpu()

    def _ancestors(self, weights: Tensor, fixed: bool) -> list[int] | None:
        """The row that each row goes on from; None where no prompt resamples. Changes ``weights``, whose mean stays.

        Ancestors are drawn independently of each other, which leaves the target of conditional SMC unchanged where the
        first canvas keeps its own.
        """
        prompts, count = weights.shape
        threshold = self.guidance.ess_threshold
        due = torch.ones(prompts, dtype=torch.bool)
        if threshold < 1.0:
            due = effective_sample_size(weights) < threshold * count
        if not due.any():
            return None
        drawn = self._draw(weights, count)
        if fixed:
            drawn[:, 0] = 0
        ancestors = torch.where(due[:, None], drawn, torch.arange(count))
        weights[due] = log_evidence(weights)[due, None].expand(-1, count)
        return (ancestors + torch.arange(prompts)[:, None] * count).flatten().tolist()

    def _draw(self, weights: Tensor, draws: int) -> Tensor:
        """Indices in proportion to the weights, (P, K) → (P, draws)."""
        generator = self._first.generator
        uniform = torch.rand(
            (len(weights), draws), generator=generator, device=generator.device, dtype=torch.float64
        ).cpu()
        mass = normalized(weights).cumsum(1)
        return torch.searchsorted(mass, uniform * mass[:, -1:], right=True).clamp(max=weights.shape[1] - 1)


def side_by_side(canvas: Canvas, count: int) -> Canvas:
    """Every row ``count`` times."""
    return canvas.pick(torch.arange(len(canvas), device=canvas.ids.device).repeat_interleave(count))


def repeated(texts: Sequence[Sequence[Any]] | None, count: int) -> list[list[Any]] | None:
    """What branches read, every row ``count`` times."""
    return None if texts is None else [[row for row in rows for _ in range(count)] for rows in texts]


def plan_for(plan: Plan, count: int, cache: Caching | None, one_pass: bool) -> Plan:
    """A plan whose ``allowed`` knows rows that stand ``count`` times.

    Args:
        cache: what is kept between two passes.
        one_pass: A-CFG ranks by the step before.

    Raises:
        ValueError: something does not go together with particles.
    """
    if cache is not None or one_pass:
        name = f"cache={cache}" if cache is not None else "ACFG(one_pass=True)"
        raise ValueError(f"{name} remembers rows, and particle-gibbs moves canvases between them; leave it off")
    if isinstance(plan.seed, Sequence):
        raise ValueError(
            f"seed={plan.seed!r}: the canvases of particle-gibbs are drawn together; give one number, or None"
        )
    if plan.corrector:
        raise ValueError(
            f"corrector={plan.corrector} draws tokens again within a step, which is no part of what particle-gibbs "
            "weighs; leave it 0"
        )
    if plan.sampler.revises or plan.sampler.remembers:
        raise ValueError(
            f"sampler={plan.sampler.name!r} remembers rows or fills them anew, and particle-gibbs moves canvases "
            "between them; take shares, threshold or eb"
        )
    if plan.temperature == 0.0:
        raise ValueError(
            "temperature=0 fills every canvas alike, so that there is nothing to weigh; give particle-gibbs a "
            "temperature above 0"
        )
    allowed = plan.allowed
    if isinstance(allowed, Tensor):
        return replace(plan, allowed=allowed.repeat_interleave(count, 0)) if allowed.dim() == 3 else plan
    if callable(allowed):
        ask: Callable[[int, Tensor], Tensor] = allowed
        return replace(plan, allowed=lambda row, tokens: ask(row // count, tokens))
    return plan
