"""A guided request whose several texts are resampled together, in the scheduler.

vLLM makes a request for each of the ``n`` answers that a client wants. Those of a population, its *fronts*, only hold
the place of an answer and never run. What runs, for every particle that is not finished, is a *particle request* and
the branch requests of the guidance. When a particle continues another one's text, its requests end and new ones begin
whose prompts are that text; the prefix cache has what the other one computed.

Knows no vLLM: it moves vLLM's requests through :class:`~.engine_requests.EngineRequests`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from textguide.smc import particles

from .groups import Group
from .request_state import RequestState
from .requests import MAIN
from .step_result import Logprob, StepResult

if TYPE_CHECKING:
    from .engine_requests import EngineRequests


def population_of(request: str, particles: int) -> tuple[str, int]:
    """The name of the population that an answer belongs to, and the number of its particle.

    vLLM calls the ``i``-th of several answers ``i_REQUEST``.
    """
    if particles == 1:
        return request, 0
    number, _, parent = request.partition("_")
    return parent, int(number)


@dataclass
class Population(Group):
    """The particles of one request.

    Args:
        fronts: ids of the client's requests, by particle; None for those that have not arrived.
        requests: ids of the requests that run for each particle, its particle request first; empty if none runs.
        members: the same ids, in the order in which the requests were added.
        texts: the tokens of each particle.
        logprobs: of each token of each text; empty if the client wants none.
        open: which particles are not finished.
        log_weights: of the texts; −inf for weight 0.
        deaths: why a particle was given up; None for the others.
        constraint_calls: how often the constraint was evaluated.
        resamplings: how often the population was resampled.
        first: for each particle the one whose first token its text continues.
        distinct_texts: number of different texts with a weight above 0; None before all are finished.
        moved: particles that continue another one's text since the last step.
    """

    fronts: list[str | None] = field(default_factory=list)
    requests: list[tuple[str, ...]] = field(default_factory=list)
    members: tuple[str, ...] = ()
    texts: list[list[int]] = field(default_factory=list)
    logprobs: list[list[Logprob]] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)
    log_weights: list[float] = field(default_factory=list)
    deaths: list[str | None] = field(default_factory=list)
    constraint_calls: int = 0
    resamplings: int = 0
    first: list[int] = field(default_factory=list)
    distinct_texts: int | None = None
    moved: set[int] = field(default_factory=set)

    @classmethod
    def of_size(cls, name: str, state: RequestState, size: int) -> Population:
        """A population whose fronts have not arrived yet."""
        return cls(
            name,
            state,
            fronts=[None] * size,
            requests=[()] * size,
            texts=[[] for _ in range(size)],
            logprobs=[[] for _ in range(size)],
            open=[True] * size,
            log_weights=[0.0] * size,
            deaths=[None] * size,
            first=list(range(size)),
        )

    @property
    def clients(self) -> tuple[str, ...]:
        """The fronts that have arrived."""
        return tuple(front for front in self.fronts if front is not None)

    @property
    def internal(self) -> tuple[str, ...]:
        """The particle requests and their branch requests; the fronts do not run."""
        return self.members

    @property
    def may_speculate(self) -> bool:
        """Particles are drawn together, one token at a time."""
        return False

    @property
    def position(self) -> int:
        """Number of tokens that each open particle has written."""
        lengths = [len(text) for text, is_open in zip(self.texts, self.open, strict=True) if is_open]
        return max(lengths, default=0)

    # -- requests arrive -------------------------------------------------------------------------------------------

    def arrive(self, request: Any, engine: EngineRequests) -> None:
        """Add a front; the particles begin when the last one has arrived."""
        _, number = population_of(request.request_id, len(self.fronts))
        self.fronts[number] = request.request_id
        engine.add_client(self, request)
        engine.take_from_queue(request)  # it never runs
        if None not in self.fronts:
            for particle in range(len(self.fronts)):
                self._start(particle, engine)

    def _start(self, particle: int, engine: EngineRequests) -> None:
        """Add the requests of a particle, which continue its text."""
        front = engine.get(self.fronts[particle])
        text = self.texts[particle]
        name = f"{front.request_id}/particle-{self.n_spawned}"
        params = self.state.parameters(
            front.sampling_params, name, MAIN, particle=(self.name, particle), n_written=len(text)
        )
        prompt = front.prompt_token_ids
        main = engine.continuation(front, self.state.request, name, prompt, text, params, MAIN)
        self._add(particle, [main], engine)
        if self.state.needs_branches(len(text)):
            self._add_branches(particle, engine)

    def _add_branches(self, particle: int, engine: EngineRequests) -> None:
        front = engine.get(self.fronts[particle])
        main = self.requests[particle][0]
        request = self.state.request
        branches = []
        for place, prompt in enumerate(request.prompts, start=1):
            name = f"{main}/branch-{self.n_spawned}-{place}"
            params = self.state.parameters(front.sampling_params, main, place)
            text = self.texts[particle]
            branches.append(engine.continuation(front, request, name, prompt, text, params, place))
        self._add(particle, branches, engine)

    def _add(self, particle: int, requests: Sequence[Any], engine: EngineRequests) -> None:
        self.n_spawned += 1
        names = tuple(request.request_id for request in requests)
        self.requests[particle] += names
        self.members += names
        engine.add_internal(self, requests)

    def _remove(self, particle: int, engine: EngineRequests, start: int = 0) -> None:
        """Remove the requests of a particle, from the one at ``start`` on."""
        names = self.requests[particle][start:]
        self.requests[particle] = self.requests[particle][:start]
        self.members = tuple(name for name in self.members if name not in names)
        engine.remove_internal(names)

    # -- a step has returned ---------------------------------------------------------------------------------------

    def must_wait(self, engine: EngineRequests) -> bool:
        """Whether a step is in flight, since it may determine which texts continue."""
        return any(request.num_output_placeholders for request in engine.present(self.members))

    def reconcile(self, step: StepResult, engine: EngineRequests) -> None:
        """Accept what the particles wrote, if all of them wrote what the worker drew for them."""
        for names in self.requests:
            self.state.branch_tokens += step.tokens_read(names[1:])
        written = step.written(engine.present(self.members))
        if not written:
            return
        message = step.messages.get(self.name, {}).get(self.position)
        complete = self._is_complete(written)
        if message is None or not complete or not self._agrees(written, message["turn"]):
            self.discard(written, step, engine, failed=complete)
            return
        preemptions = [engine.get(name).num_preemptions for name in written]
        self.state.preemptions = max(self.state.preemptions, *preemptions)
        if self.position == 0:
            for front in self.clients:
                engine.note_first_step(front)  # vLLM does it for requests that run
        self._observe(message)
        self.write(message["turn"], message["rows"])

    def _is_complete(self, written: Mapping[str, list[int]]) -> bool:
        """Whether every request of every particle wrote a token, branch requests included if they are needed."""
        if len(written) != len(self.members):
            return False
        if not self.state.needs_branches(self.position):
            return True
        size = 1 + len(self.state.request.prompts)
        return all(len(names) >= size for names in self.requests if names)

    def _agrees(self, written: Mapping[str, list[int]], turn: Mapping[str, Any] | None) -> bool:
        """Whether the requests of each particle wrote the token that was drawn for it."""
        if turn is None:
            return False
        for names, token in zip(self.requests, turn["tokens"], strict=True):
            if token is not None and any(written[name] != [token] for name in names):
                return False
        return True

    def _observe(self, message: Mapping[str, Any]) -> None:
        guided = self.state.guides(self.position)
        for particle, names in enumerate(self.requests):
            if names and message["turn"]["tokens"][particle] is not None:
                self.state.observe(guided, message["rows"][particle])

    def write(self, turn: Mapping[str, Any], rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Append the tokens of a step, then move texts between particles as they were resampled.

        Args:
            turn: the fields of :class:`~.particles.Turn`.
            rows: the worker's report about each particle.
        """
        for number, token in enumerate(turn["tokens"]):
            if token is not None:
                self.texts[number].append(token)
                row = rows[number]
                if row["ids"] is not None:
                    self.logprobs[number].append((row["ids"], row["logprobs"], row["rank"]))
        ancestors: Sequence[int] = turn["ancestors"]
        # Copies, since two particles may continue the same text.
        self.texts = [list(self.texts[ancestor]) for ancestor in ancestors]
        self.logprobs = [list(self.logprobs[ancestor]) for ancestor in ancestors]
        self.first = [self.first[ancestor] for ancestor in ancestors]
        self.moved = {number for number, ancestor in enumerate(ancestors) if number != ancestor}
        self.open = turn["open"]
        self.log_weights = turn["log_weights"]
        self.deaths = turn["deaths"]
        self.constraint_calls += turn["calls"]
        self.resamplings += turn["resampled"]
        self.distinct_texts = turn["distinct_texts"]

    def is_over(self, engine: EngineRequests) -> bool:
        """Whether all particles are finished."""
        return not any(self.open)

    def update_members(self, engine: EngineRequests) -> None:
        """Replace the requests of particles that moved, remove those of finished ones, and add or remove branches."""
        if None in self.fronts or self.must_wait(engine):
            return
        before = set(self.members)
        for particle in range(len(self.fronts)):
            self._update_particle(particle, engine)
        self.moved = set()
        if any(engine.is_running(engine.get(name)) for name in self.members):
            # Those that run wait for the new ones, so the new ones come before all others.
            engine.move_to_front([engine.get(name) for name in self.members if name not in before])

    def _update_particle(self, particle: int, engine: EngineRequests) -> None:
        names = self.requests[particle]
        is_open = self.open[particle]
        is_broken = any(engine.get(name) is None for name in names)
        if not is_open or particle in self.moved or is_broken:
            self._remove(particle, engine)
        elif len(names) > 1 and self.state.can_drop_branches(self.position):
            self._remove(particle, engine, start=1)
        elif len(names) == 1 and self.state.needs_branches(self.position):
            self._add_branches(particle, engine)
        if is_open and not self.requests[particle]:
            self._start(particle, engine)

    # -- answers ---------------------------------------------------------------------------------------------------

    def close(self, engine: EngineRequests) -> list[tuple[int, Any]]:
        """End the fronts and remove the requests of the particles; every front is answered with its text."""
        for particle in range(len(self.fronts)):
            self._remove(particle, engine)
        fronts = [engine.get(front) for front in self.clients]
        engine.finish(self.clients)
        report = {**self.state.summary(), **self.summary()}
        answers = []
        for particle, front in enumerate(fronts):
            answer = engine.answer(
                front,
                self.texts[particle],
                self.logprobs[particle],
                limit=self.state.request.limit,
                report={**report, **self.part(particle)},
            )
            answers.append((front.client_index, answer))
        return answers

    def part(self, particle: int) -> dict[str, Any]:
        """The part of the report that is about one particle."""
        return {"log_weight": _finite(self.log_weights[particle]), "death": self.deaths[particle]}

    def summary(self) -> dict[str, Any]:
        """The part of the report that is about all particles, as plain values; None is the log of 0."""
        weights = torch.tensor(self.log_weights, dtype=torch.float64)
        return {
            "log_weights": [_finite(weight) for weight in self.log_weights],
            "log_evidence": _finite(float(particles.log_evidence(weights))),
            "ess": float(particles.effective_sample_size(weights)),
            "distinct_texts": self.distinct_texts,
            "ancestors": int(particles.distinct(weights[None], self.first)),
            "deaths": self.deaths,
            "resamplings": self.resamplings,
            "constraint_calls": self.constraint_calls,
        }


def _finite(value: float) -> float | None:
    """JSON has no −inf."""
    return None if value == -math.inf else value
