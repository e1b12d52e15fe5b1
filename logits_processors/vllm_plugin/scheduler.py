"""vLLM's scheduler with guided requests, whose groups are admitted, scheduled and preempted together.

Opt in by class path: ``--scheduler-cls textguide.logits_processors.vllm_plugin.scheduler.GuidedScheduler``.

A guided request becomes a group: the client's request and requests that the scheduler adds, for the branches of its
guidance or for its particles. All requests of a group write the same token in the same step, or none does. This file
has the methods of vLLM that are overridden, in the order in which a request meets them; what they decide is in the
objects that the scheduler holds:

* ``groups``: which requests belong together (``groups.py``, ``branch_group.py``, ``population.py``),
* ``engine``: vLLM's requests, changed group by group (``engine_requests.py``),
* ``blocks``: vLLM's cache (``cache_blocks.py``),
* ``admission``: the token budget, and which requests come in (``admission.py``),
* ``drafts``: guesses, if the engine speculates (``drafts.py``),
* ``totals``: figures of all guided requests (``totals.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from .admission import Admission
from .borrowed_fields import put_figures, with_report
from .branch_group import BranchGroup
from .cache_blocks import CacheBlocks
from .drafts import Drafts
from .engine_requests import EngineRequests
from .extras import OURS
from .groups import Group, Groups
from .population import Population, population_of
from .refusals import refuse
from .request_state import RequestState
from .requests import Draw
from .requests import Request as GuidedRequest
from .speculation import guesser_of
from .startup import refusing
from .step_result import StepResult
from .totals import Totals


class GuidedScheduler(Scheduler):
    """vLLM's scheduler with groups for guided requests.

    Plain requests are scheduled as vLLM schedules them. A group of n requests takes n of the engine's ``max_num_seqs``
    places and the cache of n sequences. Refuses to start with settings that were not tested (``refusals.py``). If the
    engine schedules steps ahead, an object of this class is a :class:`GuidedAsyncScheduler`.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Choose the class for the engine's kind of scheduling; arguments are vLLM's."""
        is_ahead = cls is GuidedScheduler and vllm_config.scheduler_config.async_scheduling
        return super().__new__(GuidedAsyncScheduler if is_ahead else cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with refusing():
            refuse(self.vllm_config, self)
        guesser = guesser_of(self.vllm_config)
        self.groups = Groups()
        self.totals = Totals()
        self.engine = EngineRequests(self, self.groups, self.totals, guesser)
        self.blocks = CacheBlocks(self)
        self.admission = Admission(self, self.groups, self.engine, self.blocks)
        self.drafts: Drafts | None = None
        if guesser is not None:
            self.drafts = Drafts(guesser, self.groups, self.engine, self.blocks, self.admission)
        self._count_prefix_hits_of_clients_only()

    def _count_prefix_hits_of_clients_only(self) -> None:
        # vLLM's hit rate is that of clients' prompts; the branch requests would add theirs.
        record = self.kv_cache_manager.record_prefix_cache_stats

        def record_prefix_cache_stats(request: Request, num_hits: Any) -> None:
            if not self.groups.is_internal(request.request_id):
                record(request, num_hits)

        self.kv_cache_manager.record_prefix_cache_stats = record_prefix_cache_stats

    # -- requests arrive and leave ---------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Add a request; a guided one joins its group, which adds requests as soon as its guidance acts."""
        params = request.sampling_params
        described = (params.extra_args or {}).get(OURS) if params is not None else None
        if not isinstance(described, dict) or request.request_id in self.requests:
            super().add_request(request)
            return
        self.totals.received += 1
        guided = GuidedRequest.from_dict(described)
        reason = self.admission.why_refused(request, guided)
        if reason is not None:
            # vLLM ends requests that it knows, so the request is added all the same.
            self.engine.fail(request.request_id, reason)
            super().add_request(request)
            return
        self._group_of(request, guided).arrive(request, self.engine)

    def _group_of(self, request: Request, guided: GuidedRequest) -> Group:
        """The group that an arriving request belongs to; a new one unless another answer of a population is there."""
        state = self._state_of(request, guided)
        if guided.population is None:
            group: Group = BranchGroup(request.request_id, state)
        else:
            name, number = population_of(request.request_id, guided.particles)
            known = self.groups.by_name.get(name)
            if known is not None:
                # vLLM counts the seeds of the answers up from that of the first one, which is the request's own.
                if number == 0:
                    known.state = state
                return known
            group = Population.of_size(name, state, guided.particles)
        self.groups.add(group)
        return group

    def _state_of(self, request: Request, guided: GuidedRequest) -> RequestState:
        """What the scheduler keeps for a guided request, with the limits that the engine sets."""
        params = request.sampling_params
        guided = dataclasses.replace(guided, draw=Draw.of(params), horizon=request.max_tokens)
        # A branch request must not reach the longest sequence of the engine before the client's request does.
        longest_prompt = max(map(len, guided.prompts), default=0)
        request.max_tokens = max(1, min(request.max_tokens, self.max_model_len - longest_prompt))
        limit = min(request.max_tokens, self.max_model_len - request.num_prompt_tokens)
        return RequestState(dataclasses.replace(guided, limit=limit), stops=bool(params.stop))

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """End requests; each takes its group along."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        names = dict.fromkeys(self.requests if request_ids is None else request_ids)
        groups: dict[str, Group] = {}
        for name in names:
            group = self.groups.by_client.get(name)
            if group is not None:
                groups[group.name] = group
        internal: set[str] = set()
        for group in groups.values():
            names.update(dict.fromkeys((*group.clients, *group.members)))
            internal.update(group.internal)
        finished = super().finish_requests(names, finished_status)
        for group in groups.values():
            self.engine.forget(group)
        return [request for request in finished if request.request_id not in internal]

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Release what vLLM and the guesser keep for a request that has ended."""
        if self.engine.guesser is not None:
            self.engine.guesser.forget(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    # -- a step is scheduled ---------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step. What the running requests read is settled before vLLM looks at them."""
        if self.groups:
            if self.drafts is not None:
                self.drafts.withdraw()
            self.admission.begin_step()
            if self.drafts is not None:
                self.drafts.distribute()
        output = super().schedule(*args, **kwargs)
        self.admission.end_step()
        return output

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Limit how many tokens a request reads; with 0 it is left out of the step.

        vLLM calls this for every request, running or waiting, after its own limits and before it takes cache blocks.
        """
        tokens = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
        return self.admission.tokens_to_read(request, num_computed_tokens, tokens)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether vLLM may look at a waiting request in this step; it calls this for each before all else."""
        if not self.admission.may_come_in(request):
            return False
        if not super()._handle_blocked_waiting_request(request):
            return False
        return not self.admission.has_to_wait_for_group(request)

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        """Preempt a request, as vLLM does if the cache is full; the rest of its group follows before the next step."""
        group = self.groups.of(request.request_id)
        self.engine.evict(request, timestamp, drop_stale_output)
        if group is not None:
            self.engine.incomplete.add(group.name)

    # -- a step has returned ---------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in a step: first what groups wrote, then what vLLM makes of it, then what groups need next."""
        if not self.groups:
            return super().update_from_output(scheduler_output, model_runner_output)
        step = StepResult(scheduler_output, model_runner_output)
        for group in self.groups:
            group.reconcile(step, self.engine)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            self._prepare_for_clients(batch)
        for group in self.groups:
            if not group.is_over(self.engine):
                group.update_members(self.engine)
                continue
            for client, answer in group.close(self.engine):
                outputs.setdefault(client, EngineCoreOutputs()).outputs.append(answer)
            self.engine.forget(group)
        return outputs

    def _prepare_for_clients(self, batch: EngineCoreOutputs) -> None:
        """Remove the outputs of internal requests, and add reports to those that may be a client's last."""
        batch.outputs = [output for output in batch.outputs if not self.groups.is_internal(output.request_id)]
        for output in batch.outputs:
            group = self.groups.by_client.get(output.request_id)
            # Texts that end a request are found in the front end, so there every token may be the last.
            may_be_last = group is not None and (output.finish_reason is not None or group.state.stops)
            if group is not None and may_be_last and output.kv_transfer_params is None:
                output.kv_transfer_params = with_report(None, group.state.summary())

    # -- statistics ------------------------------------------------------------------------------------------------

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's statistics, in which only clients' requests count as requests, and textguide's figures."""
        stats = super().make_stats(*args, **kwargs)
        if stats is None:
            return None
        internal = self.engine.present(self.groups.by_internal)
        n_running = sum(map(self.engine.is_running, internal))
        n_deferred = sum(request in self.deferred_waiting for request in internal)
        stats.num_running_reqs -= n_running
        stats.num_waiting_reqs -= len(internal) - n_running - n_deferred
        stats.num_skipped_waiting_reqs -= n_deferred
        n_groups_running = n_groups_waiting = 0
        for group in self.groups:
            members = self.engine.present(group.members)
            if isinstance(group, Population):
                # The fronts are in no queue of vLLM's; they count as what their particles are.
                runs = any(map(self.engine.is_running, members))
                stats.num_running_reqs += len(group.clients) if runs else 0
                stats.num_waiting_reqs += 0 if runs else len(group.clients)
            if group.name in self.requests:
                if all(map(self.engine.is_running, members)):
                    n_groups_running += 1
                else:
                    n_groups_waiting += 1
        states = [group.state for group in self.groups]
        put_figures(stats, self.totals.changes(states, n_groups_running, n_groups_waiting))
        return stats

    def make_spec_decoding_stats(self, *args: Any, **kwargs: Any) -> Any:
        """No statistics: vLLM's are about its own speculation, and each answer's report has those of textguide."""
        return None


class GuidedAsyncScheduler(GuidedScheduler, AsyncScheduler):
    """Schedules a step while the one before it is in flight, whose tokens are not known yet.

    A group is scheduled as long as nothing in flight can change what it needs; otherwise it waits.
    """
