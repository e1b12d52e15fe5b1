"""Several particles of one request in a worker: texts that are drawn in one step and resampled by their weights.

What happens to the rows is what :mod:`textguide.smc` does to those of ``textguide.generate``, from the same random
numbers; here stands when it happens. Knows no vLLM.
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

from textguide.smc.constrained import Constrained
from textguide.smc.population import Corrected, Weighed

from .constraints import EngineConstraints
from .requests import Request

logger = logging.getLogger(__name__)

KEPT = 64
"""Populations that a worker keeps at least."""


@dataclass(frozen=True)
class Turn:
    """One step of a population, as the scheduler hears of it.

    Args:
        tokens: what each particle wrote; None for those that wrote nothing.
        ancestors: the particle that each goes on from, its own text included.
        open: those that go on, after that.
        log_weights: of the texts, after that; −inf for weight 0.
        deaths: why a particle was given up; None for the others.
        calls: questions to the constraint in this step.
        resampled: whether particles were resampled.
    """

    tokens: list[int | None]
    ancestors: list[int]
    open: list[bool]
    log_weights: list[float]
    deaths: list[str | None]
    calls: int = 0
    resampled: bool = False


class Particles:
    """The particles of one request.

    Args:
        rows: in front of the first token.
        generator: from which they draw.
        limit: most tokens of a text.
        failure: why nothing can be drawn; None where something can.
    """

    def __init__(
        self,
        rows: Weighed,
        generator: torch.Generator,
        limit: int,
        failure: str | None = None,
    ) -> None:
        self.rows, self.generator, self.limit, self.failure = rows, generator, limit, failure
        self.position = -1  # of the newest token
        self.texts: list[list[int]] = [[] for _ in rows.open]
        self._calls = 0  # questions that were told of
        self._before: tuple[Weighed, Tensor, list[list[int]]] | None = None

    @property
    def open(self) -> list[bool]:
        """The particles that go on."""
        return self.rows.open

    def draw(
        self,
        position: int,
        texts: Mapping[int, list[int]],
        scores: Mapping[int, Tensor],
        normalisers: Mapping[int, float],
    ) -> Turn | None:
        """The tokens at ``position``, their weights, and which particles go on from which; None where not all particles
        are there, or their texts are not those that were drawn.

        A step whose tokens nobody took is drawn again: the same from the same scores.

        Args:
            position: tokens that each open particle has written.
            texts: these tokens, by the particle.
            scores: processed scores (V,) of each.
            normalisers: log of what normalising the guidance divided by, where texts are weighed by it.
        """
        if position == self.position:
            assert self._before is not None
            self.rows, state, self.texts = self._before
            self.generator.set_state(state)
        elif position != self.position + 1:
            return None
        self.position = position - 1
        going = [number for number, opened in enumerate(self.rows.open) if opened]
        if sorted(scores) != going or any(texts[number] != self.texts[number] for number in going):
            return None
        self._before = self.rows.fork(), self.generator.get_state(), [list(text) for text in self.texts]
        self.position = position
        if self.failure is not None:
            return self._given_up(self.failure)
        try:
            turn = self._drawn(scores, normalisers, position >= self.limit - 1)
            if not any(turn.open):
                self.rows = self._before[0]  # all that is needed, should the step be drawn again, and much smaller
            return turn
        except Exception as error:  # a function that the engine was started with failed: the texts end, and it goes on
            logger.exception("a constraint failed")
            return self._given_up(f"the constraint failed: {type(error).__name__}: {error}")

    def _drawn(self, scores: Mapping[int, Tensor], normalisers: Mapping[int, float], last: bool) -> Turn:
        rows, size = self.rows, len(self.texts)
        idle = torch.zeros_like(next(iter(scores.values())))  # of those that ended; the noise is drawn for all
        for number, normaliser in normalisers.items():
            rows.log_weights[number] += normaliser
        chosen = rows.choose(torch.stack([scores.get(number, idle) for number in range(size)]), last)
        tokens: list[int | None] = [
            token if opened else None for token, opened in zip(chosen.tolist(), rows.open, strict=True)
        ]
        rows.advance(chosen.cpu(), last)
        for text, token in zip(self.texts, tokens, strict=True):
            text += [] if token is None else [token]
        before = rows.outcome()
        moved = rows.resample()
        asked, self._calls = self._calls, before.calls
        ancestors = list(range(size)) if moved is None else moved.tolist()
        self.texts = [list(self.texts[ancestor]) for ancestor in ancestors]
        return Turn(
            tokens=tokens,
            ancestors=ancestors,
            open=rows.open,
            log_weights=rows.log_weights.tolist(),
            deaths=rows.deaths,
            calls=before.calls - asked,
            resampled=rows.outcome().resamplings > before.resamplings,
        )

    def _given_up(self, reason: str) -> Turn:
        size, rows = len(self.texts), self.rows
        weights = torch.where(torch.tensor(rows.open), -math.inf, rows.log_weights).tolist()
        deaths = [reason if opened else death for opened, death in zip(rows.open, rows.deaths, strict=True)]
        return Turn([None] * size, list(range(size)), [False] * size, weights, deaths)


class Populations:
    """The populations of one worker.

    Args:
        constraints: makes those of requests; None where the engine has no tokenizer.
        most: populations to keep. One lives from its first step to its last, or until it is the one that was drawn from
            the longest ago: nobody tells a worker of a request that was aborted.
    """

    def __init__(self, constraints: EngineConstraints | None, most: int) -> None:
        self._constraints, self._most = constraints, most
        self._kept: OrderedDict[str, Particles] = OrderedDict()

    def of(self, name: str, request: Request, ends: Sequence[int], device: Any = "cpu") -> Particles:
        """The population called ``name``, in front of its first token where it is new."""
        particles = self._kept.get(name)
        if particles is None:
            particles = self._kept[name] = self._begin(request, ends, device)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return particles

    def drop(self, name: str) -> None:
        """A population has ended."""
        self._kept.pop(name, None)

    def _begin(self, request: Request, ends: Sequence[int], device: Any) -> Particles:
        asked = request.population
        assert asked is not None
        generator = torch.Generator(device).manual_seed(request.draw.seed)
        size, threshold = asked.particles, asked.ess_threshold
        corrects = request.weighs
        if corrects and asked.constraint is None:
            free = Corrected(size, size, threshold, asked.resampling, generator, frozenset(ends))
            return Particles(free, generator, request.limit)
        assert self._constraints is not None, "requests with a constraint are refused where there is no tokenizer"
        try:
            session, vocabulary = self._constraints.start(asked, ends)
            asked = replace(asked, critic=self._constraints.critic(request.critic))
            rows = Constrained(asked, session, vocabulary, size, generator, device, corrects)
            return Particles(rows, generator, request.limit)
        except ValueError as error:  # it was compiled where the request came in, but a worker must never fall
            logger.exception("a constraint cannot be used")
            free = Corrected(size, size, threshold, asked.resampling, generator, frozenset(ends))
            return Particles(free, generator, request.limit, failure=str(error))


@dataclass(frozen=True)
class Seat:
    """A particle of a request in a worker's batch.

    Args:
        name: of the population.
        number: of the particle.
        ends: tokens that end a text.
        populations: of the worker.
    """

    name: str
    number: int
    ends: tuple[int, ...]
    populations: Populations

    def particles(self, request: Request, device: Any) -> Particles:
        """The population."""
        return self.populations.of(self.name, request, self.ends, device)
