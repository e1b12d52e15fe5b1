"""Several particles of one request in a worker: texts that are drawn in one step and resampled by their weights.

:mod:`textguide.smc` does to the rows what it does to those of ``textguide.generate``, with the same random numbers.
This file determines when. Knows no vLLM.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from textguide.constraints import Vocabulary
from textguide.smc.constrained import Constrained
from textguide.smc.particles import distinct
from textguide.smc.population import Corrected, Weighed

from .constraints import EngineConstraints
from .requests import Request

logger = logging.getLogger(__name__)

LEAST_KEPT = 64
"""Number of populations that a worker keeps at least."""


@dataclass(frozen=True)
class Turn:
    """One step of a population, as the worker reports it to the scheduler.

    Args:
        tokens: what each particle wrote; None for those that wrote nothing.
        ancestors: the particle whose text each continues, which may be its own.
        open: which particles are not finished after that.
        log_weights: of the texts after that; −inf for weight 0.
        deaths: why a particle was given up; None for the others.
        calls: how often the constraint was evaluated in this step.
        resampled: whether particles were resampled.
        distinct_texts: number of different texts with a weight above 0, once no particle is open; None before.
    """

    tokens: list[int | None]
    ancestors: list[int]
    open: list[bool]
    log_weights: list[float]
    deaths: list[str | None]
    calls: int = 0
    resampled: bool = False
    distinct_texts: int | None = None


class Particles:
    """The particles of one request.

    Args:
        rows: before the first token.
        generator: from which they draw.
        limit: most tokens of a text.
        vocabulary: of the model; None if it is not known, and texts with different tokens are different then.
        failure: why nothing can be drawn; None if something can.
    """

    def __init__(
        self,
        rows: Weighed,
        generator: torch.Generator,
        limit: int,
        vocabulary: Vocabulary | None = None,
        failure: str | None = None,
    ) -> None:
        self.rows = rows
        self.generator = generator
        self.limit = limit
        self.vocabulary = vocabulary
        self.failure = failure
        self.position = -1  # of the newest token
        self.texts: list[list[int]] = [[] for _ in rows.open]
        self._reported_calls = 0
        self._before: tuple[Weighed, Tensor, list[list[int]]] | None = None

    @property
    def open(self) -> list[bool]:
        """Which particles are not finished."""
        return self.rows.open

    def draw(
        self,
        position: int,
        texts: Mapping[int, list[int]],
        scores: Mapping[int, Tensor],
        normalisers: Mapping[int, float],
    ) -> Turn | None:
        """Draw the tokens at ``position``, weigh and resample the texts.

        A step whose tokens the scheduler discarded is drawn again, with the same result from the same scores.

        Args:
            position: number of tokens that each open particle has written.
            texts: these tokens, by the particle.
            scores: processed scores (V,) of each.
            normalisers: log of what normalising the guidance divided by, if texts are weighed by it.

        Returns:
            The step; None if particles are missing, or their texts are not those that were drawn.
        """
        if position == self.position:
            assert self._before is not None
            self.rows, state, self.texts = self._before
            self.generator.set_state(state)
        elif position != self.position + 1:
            return None
        self.position = position - 1
        open_ones = [number for number, is_open in enumerate(self.rows.open) if is_open]
        if sorted(scores) != open_ones or any(texts[number] != self.texts[number] for number in open_ones):
            return None
        self._before = self.rows.fork(), self.generator.get_state(), [list(text) for text in self.texts]
        self.position = position
        if self.failure is not None:
            return self._given_up(self.failure)
        try:
            turn = self._drawn(scores, normalisers, position >= self.limit - 1)
            if not any(turn.open):
                # Enough to draw the step again, and much smaller.
                self.rows = self._before[0]
            return turn
        except Exception as error:
            # A function that the engine was started with failed. The texts end, and the engine continues.
            logger.exception("a constraint failed")
            return self._given_up(f"the constraint failed: {type(error).__name__}: {error}")

    def _drawn(self, scores: Mapping[int, Tensor], normalisers: Mapping[int, float], last: bool) -> Turn:
        rows = self.rows
        size = len(self.texts)
        for number, normaliser in normalisers.items():
            rows.log_weights[number] += normaliser
        # Finished particles have no scores, and the noise is drawn for all rows.
        nothing = torch.zeros_like(next(iter(scores.values())))
        chosen = rows.choose(torch.stack([scores.get(number, nothing) for number in range(size)]), last)
        tokens: list[int | None] = []
        for token, is_open in zip(chosen.tolist(), rows.open, strict=True):
            tokens.append(token if is_open else None)
        rows.advance(chosen.cpu(), last)
        for text, written in zip(self.texts, tokens, strict=True):
            if written is not None:
                text.append(written)
        before = rows.outcome()
        moved = rows.resample()
        ancestors = list(range(size)) if moved is None else moved.tolist()
        self.texts = [list(self.texts[ancestor]) for ancestor in ancestors]
        calls = before.calls - self._reported_calls
        self._reported_calls = before.calls
        return Turn(
            tokens=tokens,
            ancestors=ancestors,
            open=rows.open,
            log_weights=rows.log_weights.tolist(),
            deaths=rows.deaths,
            calls=calls,
            resampled=rows.outcome().resamplings > before.resamplings,
            distinct_texts=None if any(rows.open) else self._distinct_texts(rows.log_weights),
        )

    def _distinct_texts(self, log_weights: Tensor) -> int:
        texts: list[Any] = [tuple(text) for text in self.texts]
        if self.vocabulary is not None:  # several tokenizations of a text are one text
            tokens = self.vocabulary.tokens
            texts = [b"".join(tokens[token] for token in text) for text in self.texts]
        return int(distinct(log_weights[None], texts))

    def _given_up(self, reason: str) -> Turn:
        """A step in which all open particles are given up."""
        rows = self.rows
        size = len(self.texts)
        weights = torch.where(torch.tensor(rows.open), -math.inf, rows.log_weights)
        deaths = [reason if is_open else death for is_open, death in zip(rows.open, rows.deaths, strict=True)]
        return Turn(
            tokens=[None] * size,
            ancestors=list(range(size)),
            open=[False] * size,
            log_weights=weights.tolist(),
            deaths=deaths,
            distinct_texts=self._distinct_texts(weights),
        )


class Populations:
    """The populations of one worker.

    Args:
        constraints: makes those of requests; None if the engine has no tokenizer.
        most: number of populations to keep. A worker is not told which requests were aborted, so the population that
            was drawn from the longest ago is dropped.
    """

    def __init__(self, constraints: EngineConstraints | None, most: int) -> None:
        self._constraints = constraints
        self._most = most
        self._kept: OrderedDict[str, Particles] = OrderedDict()

    def of(self, name: str, request: Request, ends: Sequence[int], device: Any = "cpu") -> Particles:
        """The population called ``name``; a new one begins before its first token."""
        particles = self._kept.get(name)
        if particles is None:
            particles = self._kept[name] = self._begin(request, ends, device)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return particles

    def _begin(self, request: Request, ends: Sequence[int], device: Any) -> Particles:
        guidance = request.population
        assert guidance is not None
        generator = torch.Generator(device).manual_seed(request.draw.seed)
        size = guidance.particles

        unconstrained = Corrected(size, size, guidance.ess_threshold, guidance.resampling, generator, frozenset(ends))
        if request.weighs and guidance.constraint is None:
            return Particles(unconstrained, generator, request.limit)
        assert self._constraints is not None, "requests with a constraint are refused if there is no tokenizer"
        try:
            session, vocabulary = self._constraints.start(guidance, ends)
            guidance = replace(guidance, critic=self._constraints.critic(request.critic))
            rows = Constrained(guidance, session, vocabulary, size, generator, device, request.weighs)
            return Particles(rows, generator, request.limit, vocabulary)
        except ValueError as error:
            # The front end compiled it, so this should not happen. But an exception here would end the engine.
            logger.exception("a constraint cannot be used")
            return Particles(unconstrained, generator, request.limit, failure=str(error))


@dataclass(frozen=True)
class Particle:
    """A particle of a request in a worker's batch.

    Args:
        population: its name.
        number: of the particle.
        ends: tokens that end a text.
        populations: of the worker.
    """

    population: str
    number: int
    ends: tuple[int, ...]
    populations: Populations

    def particles(self, request: Request, device: Any) -> Particles:
        """All particles of the population."""
        return self.populations.of(self.population, request, self.ends, device)
