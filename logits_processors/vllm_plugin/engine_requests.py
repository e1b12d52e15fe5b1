"""The requests of vLLM's scheduler, as groups use them: added, removed, failed and preempted together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request, RequestStatus

from . import images
from .borrowed_fields import fail_request, with_report
from .groups import Group, Groups
from .requests import MAIN
from .requests import Request as GuidedRequest
from .speculation import AnyGuesser
from .step_result import Logprob, StepResult
from .totals import Totals


class EngineRequests:
    """Changes the requests of a scheduler.

    It calls vLLM's own methods (``Scheduler.add_request(scheduler, …)``), since the guided scheduler's versions of them
    are for requests of clients.

    Args:
        scheduler: the guided scheduler.
        groups: the groups of its requests.
        totals: what its guided requests did.
        guesser: guesses tokens; None if the engine does not speculate.
    """

    def __init__(self, scheduler: Scheduler, groups: Groups, totals: Totals, guesser: AnyGuesser | None) -> None:
        self._scheduler = scheduler
        self._groups = groups
        self._totals = totals
        self.guesser = guesser
        # Names of groups of which vLLM itself preempted a part; the rest follows before the next step.
        self.incomplete: set[str] = set()

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request."""
        return int(self._scheduler.max_model_len)

    # -- find requests ---------------------------------------------------------------------------------------------

    def get(self, name: str | None) -> Any:
        """The request with an id; None if the engine does not have it."""
        return self._scheduler.requests.get(name)

    def present(self, names: Iterable[str]) -> list[Request]:
        """The requests with these ids that the engine has."""
        requests = self._scheduler.requests
        return [requests[name] for name in names if name in requests]

    def is_running(self, request: Request) -> bool:
        """Whether a request is in the batch."""
        return bool(request.status == RequestStatus.RUNNING)

    def unread(self, request: Request) -> int:
        """Tokens that a running request reads before it writes one, those that steps in flight will write included."""
        return int(request.num_tokens + request.num_output_placeholders - request.num_computed_tokens)

    def running_by_group(self) -> list[list[Request]]:
        """The running requests of each group and each plain request, in the order in which they were admitted."""
        units: dict[str, list[Request]] = {}
        for request in self._scheduler.running:
            group = self._groups.of(request.request_id)
            units.setdefault(request.request_id if group is None else group.name, []).append(request)
        return list(units.values())

    def others(self, request: Request) -> list[Request]:
        """The other requests of its group."""
        group = self._groups.of(request.request_id)
        if group is None:
            return []
        return [member for member in self.present(group.members) if member is not request]

    def missing(self, request: Request) -> list[Request]:
        """The other requests of its group that are not running."""
        return [other for other in self.others(request) if not self.is_running(other)]

    # -- add and remove requests -----------------------------------------------------------------------------------

    def add_client(self, group: Group, request: Request) -> None:
        """Add a request of a client, which belongs to ``group``."""
        self._groups.add_client(group, request.request_id)
        Scheduler.add_request(self._scheduler, request)

    def add_internal(self, group: Group, requests: Sequence[Request]) -> None:
        """Add requests that no client sent, which belong to ``group``."""
        self._groups.add_internal(group, [request.request_id for request in requests])
        for request in requests:
            Scheduler.add_request(self._scheduler, request)

    def remove_internal(self, names: Sequence[str]) -> None:
        """Remove requests that no client sent."""
        if names:
            self._groups.remove_internal(names)
            Scheduler.finish_requests(self._scheduler, names, RequestStatus.FINISHED_ABORTED)

    def finish(self, names: Sequence[str]) -> None:
        """End requests of a client whose text is complete."""
        Scheduler.finish_requests(self._scheduler, names, RequestStatus.FINISHED_STOPPED)

    def forget(self, group: Group) -> None:
        """A group has ended, and vLLM has none of its requests any more."""
        self._groups.remove(group)
        self.incomplete.discard(group.name)
        self._totals.end(group.state)

    def fail(self, name: str, message: str, code: str = "validation_error") -> None:
        """End a request of a client with an error; arguments as for :func:`~.borrowed_fields.fail_request`."""
        self._totals.failed += 1
        fail_request(self._scheduler, name, message, code)

    def take_from_queue(self, request: Request) -> None:
        """Keep a waiting request from running."""
        self._scheduler.waiting.remove_request(request)

    def move_to_front(self, waiting: Sequence[Request]) -> None:
        """Move waiting requests before all others, in this order."""
        queue = self._scheduler.waiting
        for request in reversed(waiting):
            queue.remove_request(request)
            queue.prepend_request(request)

    def continuation(
        self,
        client: Request,
        request: GuidedRequest,
        name: str,
        prompt: Iterable[int],
        text: Iterable[int],
        params: Any,
        place: int,
    ) -> Request:
        """A new request that continues a client's text.

        Args:
            client: the client's request.
            request: the guided request that it asks for.
            name: id of the new request.
            prompt: token ids that the new request reads before the text.
            text: token ids that were written so far.
            params: its sampling parameters.
            place: ``MAIN`` for a particle request, else the number of the branch request.
        """
        lora_request = client.lora_request
        features = None
        if place != MAIN and request.adapters:
            lora_request = request.adapters[place - 1].request(LoRARequest)
        if place != MAIN and request.sees is not None:
            config = self._scheduler.vllm_config.model_config.hf_config
            features = images.shown(client.mm_features, request.sees[place - 1], config)
        new = Request(
            request_id=name,
            prompt_token_ids=[*prompt, *text],
            sampling_params=params,
            pooling_params=None,
            client_index=client.client_index,
            arrival_time=client.arrival_time,
            lora_request=lora_request,
            cache_salt=client.cache_salt,
            priority=client.priority,
            block_hasher=client._block_hasher,
            mm_features=features,
        )
        # The client's request ends the text, so this one must not stop earlier.
        new.max_tokens = self.max_model_len
        return new

    # -- preempt requests ------------------------------------------------------------------------------------------

    def preempt(self, requests: Sequence[Request]) -> None:
        """Move the running ones of these requests back to the front of the queue, the first of them first."""
        now = time.monotonic()
        for request in reversed(requests):
            if self.is_running(request):
                self._scheduler.running.remove(request)
                self.evict(request, now)

    def preempt_incomplete(self) -> None:
        """Preempt the rest of the groups of which vLLM preempted a part."""
        for name in self.incomplete:
            group = self._groups.by_name.get(name)
            if group is not None:
                self.preempt(self.present(group.members))
        self.incomplete.clear()

    def evict(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        """Preempt a request that was removed from the running ones.

        What steps in flight write for a member of a group is dropped: it could arrive for a part of the group only.
        """
        # It may be scheduled again in the very next step, and the worker has to receive its text then.
        self._scheduler.prev_step_scheduled_req_ids.discard(request.request_id)
        in_group = self._groups.of(request.request_id) is not None
        Scheduler._preempt_request(self._scheduler, request, timestamp, drop_stale_output or in_group)

    def take_back(self, names: Sequence[str], step: StepResult) -> None:
        """Return requests to the state before the tokens that they wrote in a step.

        If steps in flight build on these tokens, the requests are preempted, and what those steps write is dropped.
        vLLM's second model runner keeps written tokens on its own and only forgets them on preemption.
        """
        requests = self.present(names)
        steps_in_flight = any(
            request.num_in_flight_tokens > step.tokens_scheduled(request.request_id) for request in requests
        )
        if self._scheduler.use_v2_model_runner or steps_in_flight:
            now = time.monotonic()
            for request in requests:
                self._scheduler.running.remove(request)
                self._scheduler._preempt_request(request, now)
            return
        for request in requests:
            request.num_computed_tokens -= 1 + step.n_guesses(request.request_id)
            request.num_output_placeholders = max(0, request.num_output_placeholders - 1)

    # -- answer clients --------------------------------------------------------------------------------------------

    def note_first_step(self, name: str) -> None:
        """Record for vLLM's statistics that a request was scheduled, although it never runs."""
        if self._scheduler.log_stats:
            self._scheduler.requests[name].record_event(EngineCoreEventType.SCHEDULED)

    def answer(
        self, front: Request, text: list[int], logprobs: Sequence[Logprob], limit: int, report: dict[str, Any]
    ) -> EngineCoreOutput:
        """The only output of a client's request that never ran.

        Args:
            front: the request.
            text: its tokens.
            logprobs: of each token; empty if the client wants none.
            limit: most tokens of the text; a text of this length that does not end with an end token was cut off.
            report: of its guidance.
        """
        params = front.sampling_params
        ends = {params.eos_token_id, *(params.stop_token_ids or ())}
        has_end = bool(text) and text[-1] in ends
        is_whole = has_end or len(text) < limit
        stats = front.take_prefill_stats()
        if stats is not None:
            stats.set(front.num_prompt_tokens, 0, 0)
        return EngineCoreOutput(
            request_id=front.request_id,
            new_token_ids=text,
            new_logprobs=_logprobs_lists(logprobs),
            finish_reason=FinishReason.STOP if is_whole else FinishReason.LENGTH,
            stop_reason=text[-1] if has_end and text[-1] != params.eos_token_id else None,
            events=front.take_events(),
            kv_transfer_params=with_report(None, report),
            trace_headers=front.trace_headers,
            prefill_stats=stats,
        )


def _logprobs_lists(logprobs: Sequence[Logprob]) -> LogprobsLists | None:
    """Log-probabilities of a text in vLLM's form."""
    if not logprobs:
        return None
    ids, values, ranks = zip(*logprobs, strict=True)
    return LogprobsLists(np.array(ids, dtype=np.int32), np.array(values, dtype=np.float32), np.array(ranks))
