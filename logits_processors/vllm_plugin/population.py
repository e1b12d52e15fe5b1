"""A request for several texts that are resampled together, as the scheduler keeps it. Knows no vLLM.

vLLM makes a request of each of the ``n`` answers that a client asks for. Those of a population, its *fronts*, only hold
the place of an answer and never run: what runs is a group of requests for every particle that goes on, its *particle
request* and the branch requests of its guidance. Where a particle goes on from another one's text, its requests end and
new ones begin, whose prompts are those texts: the prefix cache finds what the other one has computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from textguide.smc import particles

from .groups import Group

Logprob = tuple[list[int], list[float], int]
"""Token ids with their log-probabilities, the token that was drawn first, and its rank."""


def front_of(request: str, particles: int) -> tuple[str, int]:
    """The population that an answer belongs to, and the number of its particle; vLLM calls the ``i``-th of several
    answers ``i_REQUEST``."""
    if particles == 1:
        return request, 0
    number, _, parent = request.partition("_")
    return parent, int(number)


@dataclass
class Population(Group):
    """The particles of one request.

    Args:
        fronts: ids of the client's requests, by particle; None for those that have not arrived.
        own: ids of the requests that run for each particle, its particle request first; none for those that rest.
        texts: what each has written.
        logprobs: of each token of each text; empty where none are asked for.
        open: particles that go on.
        log_weights: of the texts, −inf for weight 0.
        deaths: why a particle was given up; None for the others.
        calls: questions to the constraint.
        resamplings: how often the population was resampled.
        moved: particles that go on from another one's text since the last step.
    """

    fronts: list[str | None] = field(default_factory=list)
    own: list[tuple[str, ...]] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    logprobs: list[list[Logprob]] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)
    log_weights: list[float] = field(default_factory=list)
    deaths: list[str | None] = field(default_factory=list)
    calls: int = 0
    resamplings: int = 0
    moved: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, name: str, size: int) -> Population:
        """A population whose fronts have yet to arrive."""
        return cls(
            name,
            fronts=[None] * size,
            own=[()] * size,
            texts=[[] for _ in range(size)],
            logprobs=[[] for _ in range(size)],
            open=[True] * size,
            log_weights=[0.0] * size,
            deaths=[None] * size,
        )

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the requests that run; its fronts do not."""
        return self.branches

    @property
    def mains(self) -> dict[int, str]:
        """The particle requests, by particle."""
        return {number: own[0] for number, own in enumerate(self.own) if own}

    @property
    def position(self) -> int:
        """Tokens that each particle that goes on has written."""
        return max((len(text) for text, opened in zip(self.texts, self.open, strict=True) if opened), default=0)

    def write(self, turn: Mapping[str, Any], rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Take in a step.

        Args:
            turn: the fields of :class:`~.particles.Turn`.
            rows: what was seen of each particle.
        """
        for number, token in enumerate(turn["tokens"]):
            if token is not None:
                self.texts[number].append(token)
                seen = rows[number]
                if seen["ids"] is not None:
                    self.logprobs[number].append((seen["ids"], seen["logprobs"], seen["rank"]))
        ancestors: Sequence[int] = turn["ancestors"]
        self.texts = [list(self.texts[ancestor]) for ancestor in ancestors]
        self.logprobs = [list(self.logprobs[ancestor]) for ancestor in ancestors]
        self.moved = {number for number, ancestor in enumerate(ancestors) if number != ancestor}
        self.open, self.log_weights, self.deaths = turn["open"], turn["log_weights"], turn["deaths"]
        self.calls += turn["calls"]
        self.resamplings += turn["resampled"]

    def part(self, particle: int) -> dict[str, Any]:
        """What is reported of one particle."""
        return {"log_weight": _number(self.log_weights[particle]), "death": self.deaths[particle]}

    def summary(self) -> dict[str, Any]:
        """What is reported to the client at the end, as plain values; None stands for the log of 0."""
        weights = torch.tensor(self.log_weights, dtype=torch.float64)
        return {
            "log_weights": [_number(weight) for weight in self.log_weights],
            "log_evidence": _number(float(particles.log_evidence(weights))),
            "ess": float(particles.effective_sample_size(weights)),
            "deaths": self.deaths,
            "resamplings": self.resamplings,
            "constraint_calls": self.calls,
        }


def _number(value: float) -> float | None:
    return None if value == -math.inf else value
