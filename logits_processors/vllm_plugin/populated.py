"""Several texts of one request that are resampled together, inside vLLM's scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request, RequestStatus

from .admitted import Admitted
from .extras import OURS
from .population import Population, front_of
from .request_state import Report
from .requests import MAIN


class Populated(Admitted):
    """Lets the particles of a request write together, and copies one into another where they are resampled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fronts: dict[str, Population] = {}

    # -- requests come and go --------------------------------------------------------------------------------------

    def _take_in(self, request: Request, state: Report) -> None:
        size = state.request.particles
        if state.request.population is None:
            super()._take_in(request, state)
            return
        name, number = front_of(request.request_id, size)
        population = self.groups.by_main.get(name)
        if not isinstance(population, Population):
            population = self.groups.by_main[name] = Population.of(name, size)
        self._fronts[request.request_id] = population
        population.fronts[number] = request.request_id
        if number == 0 or population.state is None:  # vLLM counts seeds up from the first one's, which is the request's
            population.state = state
        Scheduler.add_request(self, request)
        self.waiting.remove_request(request)  # it never runs
        if None not in population.fronts:
            for particle in range(size):
                self._seat(population, particle)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """End requests; a population ends with any of its fronts."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        wanted = dict.fromkeys(self.requests if request_ids is None else request_ids)
        populations = {one.main: one for name in wanted if (one := self._fronts.get(name)) is not None}
        members = {name for population in populations.values() for name in population.members}
        fronts = [name for population in populations.values() for name in population.fronts if name is not None]
        finished = super().finish_requests([*(wanted | dict.fromkeys([*fronts, *members]))], finished_status)
        for population in populations.values():
            self._forget(population)
        return [request for request in finished if request.request_id not in members]

    def _forget(self, population: Population) -> None:
        if population.main in self.groups.by_main:
            self._drop(population)
        self._broken.discard(population.main)
        for name in population.fronts:
            if name is not None:
                del self._fronts[name]

    def _seat(self, population: Population, particle: int) -> None:
        """Give a particle its requests, which go on from its text."""
        state: Report = population.state
        front = self.requests[population.fronts[particle]]
        text = population.texts[particle]
        main = f"{front.request_id}/particle-{population.spawned}"
        params = state.parameters(front.sampling_params, main, MAIN, (population.main, particle), len(text))
        self._enlist(
            population,
            particle,
            {main: self._derived(front, state.request, main, front.prompt_token_ids, text, params)},
        )
        if state.wants_branches(len(text)):
            self._seat_branches(population, particle)

    def _seat_branches(self, population: Population, particle: int) -> None:
        state: Report = population.state
        front, (main, *_) = self.requests[population.fronts[particle]], population.own[particle]
        branches = {}
        for place, prompt in enumerate(state.request.prompts, start=1):
            name = f"{main}/branch-{population.spawned}-{place}"
            params = state.parameters(front.sampling_params, main, place)
            branches[name] = self._derived(
                front, state.request, name, prompt, population.texts[particle], params, place
            )
        self._enlist(population, particle, branches)

    def _enlist(self, population: Population, particle: int, requests: dict[str, Request]) -> None:
        population.spawned += 1
        population.own[particle] += tuple(requests)
        self.groups.enlist(population, tuple(requests))
        for request in requests.values():
            Scheduler.add_request(self, request)

    def _dismiss_of(self, population: Population, particle: int, start: int = 0) -> None:
        """Take requests of a particle away, from the one at ``start`` on."""
        names = population.own[particle][start:]
        population.own[particle] = population.own[particle][:start]
        self.groups.strike(population, names)
        Scheduler.finish_requests(self, names, RequestStatus.FINISHED_ABORTED)

    def _is_held(self, request: Request) -> bool:
        """Whether its group waits for the steps in flight: those of a population may tell which texts go on."""
        population = self.groups.of(request.request_id)
        if isinstance(population, Population):
            return any(one.num_output_placeholders for one in self._members(population))
        return super()._is_held(request)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's figures, in which the answers of a population count, and not what runs for them."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            for population in {id(one): one for one in self._fronts.values()}.values():
                members = [self.requests[name] for name in population.members if name in self.requests]
                runs = any(one.status == RequestStatus.RUNNING for one in members)
                arrived = sum(front is not None for front in population.fronts)
                stats.num_running_reqs += arrived if runs else 0
                stats.num_waiting_reqs += 0 if runs else arrived
        return stats

    # -- after a step ----------------------------------------------------------------------------------------------

    def _reconcile_population(
        self, population: Population, scheduled: Any, output: Any, messages: dict[int, dict[str, Any]]
    ) -> None:
        """Take in what the particles wrote, all or none of it."""
        state: Report = population.state
        counts, tokens = scheduled.num_scheduled_tokens, self._sampled(population.members, scheduled, output)
        state.branch_tokens += sum(counts.get(name, 0) for own in population.own for name in own[1:])
        wrote = [name for name, written in tokens.items() if written]
        if not wrote:
            return
        position, size = population.position, 1 + len(state.request.prompts)
        together = len(wrote) == len(population.members) and not (
            state.wants_branches(position) and any(len(population.own[one]) < size for one in population.mains)
        )
        seen = messages.get(position)
        turn = None if seen is None else seen["turn"]
        agree = turn is not None and all(
            turn["tokens"][particle] is None or tokens[name] == [turn["tokens"][particle]]
            for particle, own in enumerate(population.own)
            for name in own
            if name in tokens
        )
        if not together or not agree:
            if together:  # never a wrong answer
                for front in population.fronts:
                    self._fail(str(front))
            state.discarded += 1
            for name in wrote:
                tokens[name].clear()
            self._take_back([self.requests[name] for name in wrote], counts)
            return
        assert seen is not None
        assert turn is not None
        state.preemptions = max(state.preemptions, *(self.requests[name].num_preemptions for name in wrote))
        if position == 0 and self.log_stats:
            for front in population.fronts:
                self.requests[front].record_event(EngineCoreEventType.SCHEDULED)
        for particle in population.mains:
            if turn["tokens"][particle] is not None:
                state.observe(position, state.guides(position), seen["rows"][particle])
        population.write(turn, seen["rows"])

    def _follow_population(self, population: Population, outputs: dict[int, EngineCoreOutputs]) -> None:
        """What became of a population: particles end, go on from others, and at last all is answered."""
        if None in population.fronts:
            return
        state: Report = population.state
        if not any(population.open):
            self._answer(population, outputs)
            return
        if any(one.num_output_placeholders for one in self._members(population)):
            return  # a step is in flight
        position = population.position
        before = set(population.members)
        for particle, opened in enumerate(population.open):
            own = population.own[particle]
            if not opened or particle in population.moved or any(one not in self.requests for one in own):
                self._dismiss_of(population, particle)
            elif len(own) > 1 and state.idles(position):
                self._dismiss_of(population, particle, 1)
            elif len(own) == 1 and state.wants_branches(position):
                self._seat_branches(population, particle)
            if opened and not population.own[particle]:
                self._seat(population, particle)
        population.moved = set()
        if any(self.requests[name].status == RequestStatus.RUNNING for name in population.members):
            # In front of those that wait: the others cannot go on without them.
            self._to_front([self.requests[name] for name in population.members if name not in before])

    def _answer(self, population: Population, outputs: dict[int, EngineCoreOutputs]) -> None:
        """End a population: every front gets its text, and the report of all."""
        for particle in range(len(population.fronts)):
            self._dismiss_of(population, particle)
        fronts = [self.requests[name] for name in population.fronts if name is not None]
        report = {**population.state.summary(), **population.summary()}
        Scheduler.finish_requests(self, [one.request_id for one in fronts], RequestStatus.FINISHED_STOPPED)
        self._forget(population)
        for particle, front in enumerate(fronts):
            text, params = population.texts[particle], front.sampling_params
            ends = {params.eos_token_id, *(params.stop_token_ids or ())}
            ended = bool(text) and text[-1] in ends
            whole = ended or len(text) < population.state.request.limit
            stats = front.take_prefill_stats()
            if stats is not None:
                stats.set(front.num_prompt_tokens, 0, 0)
            batch = outputs.setdefault(front.client_index, EngineCoreOutputs())
            batch.outputs.append(
                EngineCoreOutput(
                    request_id=front.request_id,
                    new_token_ids=text,
                    new_logprobs=_lists(population.logprobs[particle]),
                    finish_reason=FinishReason.STOP if whole else FinishReason.LENGTH,
                    stop_reason=text[-1] if ended and text[-1] != params.eos_token_id else None,
                    events=front.take_events(),
                    kv_transfer_params={OURS: {**report, **population.part(particle)}},
                    trace_headers=front.trace_headers,
                    prefill_stats=stats,
                )
            )


def _lists(logprobs: list[tuple[list[int], list[float], int]]) -> LogprobsLists | None:
    """Log-probabilities of a text as vLLM hands them on."""
    if not logprobs:
        return None
    ids, values, ranks = zip(*logprobs, strict=True)
    return LogprobsLists(np.array(ids, dtype=np.int32), np.array(values, dtype=np.float32), np.array(ranks))
