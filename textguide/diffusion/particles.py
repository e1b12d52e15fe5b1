"""Canvases of one prompt that are filled together, weighted by a predictor and resampled: SMC and particle Gibbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..guidance.particle_gibbs import ParticleGibbs
from ..smc.particles import effective_sample_size, log_evidence, normalized
from .canvas import Canvas
from .options import CanvasOptions
from .predictors import Predictor
from .sampling import Sampler


@dataclass
class Trajectory:
    """One canvas per prompt, step by step.

    Attributes:
        ids: token ids after each step, S tensors (P, L).
        confidence: probability of each token when it was filled, S tensors (P, L).
        potentials: ``weight · log f`` of the canvas with its masks filled, S tensors (P,).
        steps: how many steps each canvas took, P numbers.
    """

    ids: list[Tensor]
    confidence: list[Tensor]
    potentials: list[Tensor]
    steps: list[int]


class ParticleSampler:
    """Fills one canvas per prompt by :class:`textguide.guidance.ParticleGibbs`.

    Args:
        guidance: the settings.
        predictor: scores canvases.
        sampler: for ``particles`` adjacent rows per prompt, before its first step; its generator gives all random
            numbers.

    Attributes:
        log_mean: logarithm of the estimate of ``E_p[f^weight]`` from the first run, float64 (P,).
    """

    def __init__(self, guidance: ParticleGibbs, predictor: Predictor, sampler: Sampler) -> None:
        self.guidance = guidance
        self.predictor = predictor
        self._first = sampler
        self._empty = sampler.canvas.ids.clone()
        self.log_mean = torch.zeros(0, dtype=torch.float64)

    def run(self) -> tuple[Tensor, list[int]]:
        """The token ids of one text per prompt, (P, L), and the steps each took."""
        reference: Trajectory | None = None
        for iteration in range(self.guidance.iterations):
            reference = self._iterate(iteration, reference)
        assert reference is not None
        return reference.ids[-1], reference.steps

    def _iterate(self, iteration: int, reference: Trajectory | None) -> Trajectory:
        """One run of (conditional) SMC, from which one trajectory per prompt is drawn.

        Args:
            reference: the trajectory of the iteration before, which the first canvas of each prompt follows.
        """
        sampler = self._first
        count = self.guidance.particles
        if iteration:
            sampler = sampler.restart(replace(sampler.canvas, ids=self._empty.clone()))
        prompts = len(self._empty) // count
        weights = torch.zeros(prompts, count, dtype=torch.float64)
        states: list[_State] = []
        for step in sampler.run():
            potential = self._potential(sampler)
            if reference is not None:
                at = min(step.index, len(reference.ids) - 1)  # this run may take more steps
                potential[::count] = reference.potentials[at]
                sampler.put(range(0, prompts * count, count), reference.ids[at], reference.confidence[at])
            before = states[-1].potential if states else torch.zeros_like(potential)
            weights += (potential - before).view(prompts, count)
            states.append(_State(sampler.canvas.ids.clone(), sampler.confidence.clone(), potential))
            if not bool(sampler.canvas.masked(sampler.model.mask_id).any()):
                continue  # the last step: canvases are drawn by weight below
            ancestors = self._ancestors(weights, has_reference=reference is not None)
            if ancestors is not None:
                sampler.move(ancestors)
                states = [state.pick(ancestors) for state in states]
        if not iteration:
            self.log_mean = log_evidence(weights)
        chosen = self._draw(weights, 1)[:, 0] + torch.arange(prompts) * count
        return self._trajectory(chosen.tolist(), states, sampler, reference)

    def _trajectory(
        self, rows: list[int], states: Sequence[_State], sampler: Sampler, reference: Trajectory | None
    ) -> Trajectory:
        steps = [sampler.steps_taken[row] for row in rows]
        if reference is not None:
            # The reference's canvas took the steps of the run in which it was filled.
            for prompt, row in enumerate(rows):
                if row % self.guidance.particles == 0:
                    steps[prompt] = reference.steps[prompt]
        return Trajectory(
            [state.ids[rows] for state in states],
            [state.confidence[rows] for state in states],
            [state.potential[rows] for state in states],
            steps,
        )

    def _potential(self, sampler: Sampler) -> Tensor:
        """``weight · log f`` of the canvases, with the step's draws at their masks, float64 (P · K,) on the CPU."""
        unfinished = sampler.canvas.masked(sampler.model.mask_id).any(-1, keepdim=True)
        ids = torch.where(unfinished, sampler.guess, sampler.canvas.ids)
        log_probs = self.predictor.log_prob(ids, sampler.canvas, torch.arange(len(ids), device=ids.device))
        return self.guidance.weight * log_probs.double().cpu()

    def _ancestors(self, weights: Tensor, has_reference: bool) -> list[int] | None:
        """The row that each row continues from; None if no prompt resamples. Resampling sets the weights of a prompt to
        their mean.

        Ancestors are drawn independently of each other, which leaves the target of conditional SMC unchanged if the
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
        if has_reference:
            drawn[:, 0] = 0
        ancestors = torch.where(due[:, None], drawn, torch.arange(count))
        weights[due] = log_evidence(weights)[due, None].expand(-1, count)
        return (ancestors + torch.arange(prompts)[:, None] * count).flatten().tolist()

    def _draw(self, weights: Tensor, draws: int) -> Tensor:
        """Indices in proportion to the weights, (P, K) → (P, draws)."""
        generator = self._first.generator
        shape = (len(weights), draws)
        uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).cpu()
        mass = normalized(weights).cumsum(1)
        return torch.searchsorted(mass, uniform * mass[:, -1:], right=True).clamp(max=weights.shape[1] - 1)


@dataclass
class _State:
    """All canvases after one step: ids and confidences (P · K, L), and potentials (P · K,)."""

    ids: Tensor
    confidence: Tensor
    potential: Tensor

    def pick(self, rows: list[int]) -> _State:
        return _State(self.ids[rows], self.confidence[rows], self.potential[rows])


def repeat_rows(canvas: Canvas, count: int) -> Canvas:
    """A canvas with every row ``count`` times."""
    return canvas.pick(torch.arange(len(canvas), device=canvas.ids.device).repeat_interleave(count))


def repeat_texts(texts: Sequence[Sequence[Any]] | None, count: int) -> list[list[Any]] | None:
    """What branches read, with every row ``count`` times."""
    if texts is None:
        return None
    return [[row for row in rows for _ in range(count)] for rows in texts]


def options_of_particles(options: CanvasOptions, count: int, one_pass: bool) -> CanvasOptions:
    """Options for rows that are repeated ``count`` times.

    Args:
        one_pass: A-CFG ranks positions by the step before.

    Raises:
        ValueError: an option does not work with particles.
    """
    if options.caching is not None or one_pass:
        name = f"cache={options.caching}" if options.caching is not None else "ACFG(one_pass=True)"
        raise ValueError(f"{name} remembers rows, and particle-gibbs moves canvases between them; leave it off")
    if isinstance(options.seed, Sequence):
        raise ValueError(
            f"seed={options.seed!r}: the canvases of particle-gibbs are drawn together; give one number, or None"
        )
    if options.corrector:
        raise ValueError(
            f"corrector={options.corrector} draws tokens again within a step, which particle-gibbs does not weigh; "
            "leave it 0"
        )
    if options.unmasking.revises or options.unmasking.remembers:
        raise ValueError(
            f"sampler={options.unmasking.name!r} remembers rows or fills them again, and particle-gibbs moves canvases "
            "between them; use shares, threshold or eb"
        )
    if options.temperature == 0.0:
        raise ValueError(
            "temperature=0 fills every canvas alike, so that there is nothing to weigh; give particle-gibbs a "
            "temperature above 0"
        )
    allowed = options.allowed
    if isinstance(allowed, Tensor):
        return replace(options, allowed=allowed.repeat_interleave(count, 0)) if allowed.dim() == 3 else options
    if allowed is not None:
        of_prompt = allowed
        return replace(options, allowed=lambda row, tokens: of_prompt(row // count, tokens))
    return options
