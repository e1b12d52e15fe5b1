"""Guided requests and their branch requests inside vLLM's scheduler: admitted, scheduled and preempted together.

Opt in by class path: ``--scheduler-cls textguide.logits_processors.vllm_plugin.scheduler.GuidedScheduler``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from . import requests
from .channel import Listener
from .extras import OURS
from .groups import MAIN, Group, Groups
from .plan import Load, Plan, share, too_large
from .refusals import refuse
from .report import AnswerWeights, Report, with_guided


class GuidedScheduler(Scheduler):
    """vLLM's scheduler with branch requests beside every guided request.

    Plain requests are scheduled as vLLM schedules them. A group of n requests holds n of the engine's ``max_num_seqs``
    places and the cache of n sequences. Refuses at start what it was not tested with (``refusals.py``).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse(self.vllm_config, self)
        self.groups = Groups()
        self.listener = Listener(self.vllm_config.instance_id)
        self.weights = AnswerWeights()
        self.branch_tokens = 0
        self._broken: set[str] = set()  # main requests of groups of which vLLM itself preempted a part
        self._plan = Plan({}, {}, 0)
        self._left = 0
        self._pinned: list[Any] = []
        # PyTorch cannot rewind a CPU generator, and vLLM's first runner does so after a part of a seeded prompt.
        self._rewinds = self.vllm_config.device_config.device_type != "cpu"
        record = self.kv_cache_manager.record_prefix_cache_stats
        self.kv_cache_manager.record_prefix_cache_stats = lambda request, hits: (
            None if self.groups.is_branch(request.request_id) else record(request, hits)
        )

    # -- requests come and go --------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Take a request in; a guided one gets branch requests as soon as its guidance is active."""
        params = request.sampling_params
        ours = (params.extra_args or {}).get(OURS) if params is not None else None
        if not isinstance(ours, dict) or request.request_id in self.requests:
            super().add_request(request)
            return
        asked = requests.Request.from_dict(ours)
        if (
            request.prompt_token_ids is None
            or request.mm_features
            or request.resumable
            or self._too_large(request, asked)
        ):
            # Prompts as embeddings, with images, or in instalments; vLLM's way to end a request with an error.
            self.grammar_compile_error_reqs.add(request.request_id)
            super().add_request(request)
            return
        asked = dataclasses.replace(asked, draw=requests.Draw.of(params), horizon=request.max_tokens)
        # A branch request must not reach the end of what the engine can hold before the user's request does.
        longest = max(map(len, asked.prompts), default=0)
        request.max_tokens = max(1, min(request.max_tokens, self.max_model_len - longest))
        limit = min(request.max_tokens, self.max_model_len - request.num_prompt_tokens)
        state = Report(dataclasses.replace(asked, limit=limit))
        request.sampling_params = state.parameters(params, request.request_id, MAIN)
        group = self.groups.add(request.request_id, state)
        super().add_request(request)
        if state.wants_branches(0):
            self._spawn(group, request)

    def _too_large(self, request: Request, asked: requests.Request) -> bool:
        prompts = (request.num_prompt_tokens, *map(len, asked.prompts))
        lengths = [min(self.max_model_len, prompt + request.max_tokens) for prompt in prompts]
        pool = self.kv_cache_manager.block_pool
        blocks = pool.num_gpu_blocks - 1 - self.kv_cache_manager.watermark_blocks
        limits = (self.max_num_active_reqs, self.max_num_scheduled_tokens, blocks, self.block_size)
        return len(lengths) > 1 and too_large(lengths, *limits) is not None

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """End requests; branch requests go along."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        wanted = list(self.requests if request_ids is None else request_ids)
        groups = [group for group in map(self.groups.by_main.get, wanted) if group is not None]
        branches = {branch for group in groups for branch in group.branches}
        finished = super().finish_requests([*wanted, *(branches - set(wanted))], finished_status)
        for group in groups:
            self.groups.drop(group)
            self.weights.forget(group.main)
        return [request for request in finished if request.request_id not in branches]

    def _spawn(self, group: Group, main: Request) -> None:
        """Give a group its branch requests: their prompts are those of the branches and what was written so far."""
        state: Report = group.state
        names = self.groups.spawn(group, len(state.request.prompts))
        branches = [
            Request(
                request_id=name,
                prompt_token_ids=[*prompt, *main.output_token_ids],
                sampling_params=state.parameters(main.sampling_params, group.main, place),
                pooling_params=None,
                client_index=main.client_index,
                arrival_time=main.arrival_time,
                lora_request=main.lora_request,
                cache_salt=main.cache_salt,
                priority=main.priority,
                block_hasher=main._block_hasher,
            )
            for place, (name, prompt) in enumerate(zip(names, state.request.prompts, strict=True), start=1)
        ]
        for branch in branches:
            branch.max_tokens = self.max_model_len
            Scheduler.add_request(self, branch)
        if main.status == RequestStatus.RUNNING:  # resumed in the middle: in front of those that wait
            self._to_front(branches)

    def _dismiss(self, group: Group) -> None:
        """Take a group's branch requests away."""
        branches = self.groups.dismiss(group)
        if branches:
            Scheduler.finish_requests(self, branches, RequestStatus.FINISHED_ABORTED)
        self._broken.discard(group.main)

    def _to_front(self, waiting: Iterable[Request]) -> None:
        """Put waiting requests in front of all others, in this order."""
        for request in reversed(list(waiting)):
            self.waiting.remove_request(request)
            self.waiting.prepend_request(request)

    # -- before a step ---------------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step. What the running requests get is settled before vLLM looks at them."""
        if self.groups:
            self._settle()
        output = super().schedule(*args, **kwargs)
        self._plan = Plan({}, {}, 0)
        self.kv_cache_manager.block_pool.free_blocks(reversed(self._pinned))
        self._pinned = []
        return output

    def _settle(self) -> None:
        """Preempt what has to go, group by group, and share out the token budget."""
        for main in self._broken:
            group = self.groups.of(main)
            if group is not None:
                self._preempt(self._members(group))
        self._broken.clear()
        while True:
            self._plan = share(self._loads(), self.max_num_scheduled_tokens, self._longest())
            lacking = self._blocks_needed() - self.kv_cache_manager.block_pool.get_num_free_blocks()
            if lacking <= 0 and not self._is_stuck():
                break
            units = self._units()
            if len(units) < 2:
                break  # vLLM preempts it
            self._preempt(units[-1])
        self._left = self._plan.left
        # Those that others wait for come first, and of these the ones that are awaited in this step.
        arriving = [self.requests[name] for name in self._plan.arrivals]
        self._to_front(self._awaited())
        self._to_front(arriving)
        for request in arriving:
            self._pin(request)

    def _is_stuck(self) -> bool:
        """Whether all that run wait for requests of their groups, and the first of these cannot come in."""
        if any(self._plan.tokens.values()) or self._plan.arrivals:
            return False
        for unit in self._units():
            missing = self._missing(unit[0])
            if missing:
                needed = sum(self._blocks(one, 0, one.num_tokens) for one in missing)
                needed += self.kv_cache_manager.watermark_blocks
                places = len(self.running) + len(missing)
                free = self.kv_cache_manager.block_pool.get_num_free_blocks()
                return places > self.max_num_active_reqs or needed > free
        return False

    def _loads(self) -> list[Load]:
        loads = []
        places = self.max_num_active_reqs - len(self.running)
        for unit in self._units():
            running = {one.request_id: one.num_tokens - one.num_computed_tokens for one in unit}
            absent: dict[str, int] | None = {}
            for request in self._missing(unit[0]):
                unread, places = self._unread(request), places - 1
                if unread is None or places < 0:
                    absent = None
                if absent is not None and unread is not None:
                    absent[request.request_id] = unread
            loads.append(Load(running, absent))
        return loads

    def _unread(self, request: Request) -> int | None:
        """Tokens that a waiting request would have to read; None where it cannot be admitted yet."""
        if self._is_blocked_waiting_status(request.status):
            return None
        return int(request.num_tokens - self.kv_cache_manager.get_computed_blocks(request)[1])

    def _pin(self, request: Request) -> None:
        """Keep the cached prefix of a request that will be admitted in this step from those that are served before."""
        for blocks in self.kv_cache_manager.get_computed_blocks(request)[0].blocks:
            self.kv_cache_manager.block_pool.touch(blocks)
            self._pinned += blocks

    def _longest(self) -> int:
        threshold = int(self.scheduler_config.long_prefill_token_threshold)
        return threshold if len(self.running) + len(self.waiting) > 1 else 0

    def _blocks_needed(self) -> int:
        """New cache blocks that the plan takes."""
        size = min(group.kv_cache_spec.block_size for group in self.kv_cache_config.kv_cache_groups)
        needed = 0
        for request in self.running:
            tokens, read = self._plan.tokens.get(request.request_id, 0), request.num_computed_tokens
            if tokens > -read % size:  # past the end of its last block
                needed += self._blocks(request, read, read + tokens)
        for name in self._plan.arrivals:
            needed += self._blocks(self.requests[name], 0, self.requests[name].num_tokens)
        return needed

    def _blocks(self, request: Request, read: int, upto: int) -> int:
        return int(
            self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=min(upto, self.max_model_len),
                new_computed_blocks=self.kv_cache_manager.empty_kv_cache_blocks.blocks,
                num_encoder_tokens=0,
                total_computed_tokens=read,
                num_local_computed_tokens=read,
                num_tokens_main_model=upto,
                prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
            )
        )

    def _units(self) -> list[list[Request]]:
        """Running requests by groups, in the order in which they were admitted."""
        units: dict[str, list[Request]] = {}
        for request in self.running:
            group = self.groups.of(request.request_id)
            units.setdefault(request.request_id if group is None else group.main, []).append(request)
        return list(units.values())

    def _members(self, group: Group) -> list[Request]:
        return [self.requests[name] for name in group.members if name in self.requests]

    def _others(self, request: Request) -> list[Request]:
        """The other requests of its group."""
        group = self.groups.of(request.request_id)
        return [] if group is None else [one for one in self._members(group) if one is not request]

    def _missing(self, request: Request) -> list[Request]:
        """The other requests of its group that are not running."""
        return [one for one in self._others(request) if one.status != RequestStatus.RUNNING]

    def _preempt(self, unit: list[Request]) -> None:
        """Send a group, or a request that stands alone, back to the front of the queue, the main request first."""
        now = time.monotonic()
        for request in reversed(unit):
            if request.status == RequestStatus.RUNNING:
                self.running.remove(request)
                Scheduler._preempt_request(self, request, now)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """vLLM preempts a request by itself; the rest of its group follows before the next step."""
        super()._preempt_request(request, *args, **kwargs)
        group = self.groups.of(request.request_id)
        if group is not None:
            self._broken.add(group.main)

    # -- while vLLM schedules --------------------------------------------------------------------------------------

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """The hook through which vLLM asks how many tokens a request may read; 0 leaves it out of the step."""
        tokens = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
        remaining = request.num_tokens - num_computed_tokens
        if not self._rewinds and tokens < remaining and self._is_seeded(request):
            return 0  # it waits for a step that has room for all of it
        if not self.groups:
            return tokens
        if request.status == RequestStatus.RUNNING:
            return min(tokens, self._plan.tokens.get(request.request_id, tokens))
        if request.request_id in self._plan.arrivals:
            return tokens
        tokens = min(tokens, self._left)
        tokens = self._admit(request, remaining, tokens)
        self._left -= tokens
        return tokens

    def _is_seeded(self, request: Request) -> bool:
        params = request.sampling_params
        return params is not None and params.seed is not None and params.temperature > 0

    def _admit(self, request: Request, remaining: int, tokens: int) -> int:
        """Tokens for a waiting request that vLLM is about to admit; 0 where it has to wait."""
        others = self._others(request)
        if any(one.status == RequestStatus.RUNNING for one in others):
            return min(tokens, remaining - 1)  # it writes when the rest of its group does
        # Places and blocks are kept for what running requests wait for: two groups must not wait for each other.
        owed = self._awaited()
        if len(self.running) + len(owed) + 1 + len(others) > self.max_num_active_reqs:
            return 0
        if owed or others:
            blocks = sum(self._blocks(one, 0, one.num_tokens) for one in [*owed, request, *others])
            blocks += self.kv_cache_manager.watermark_blocks
            if blocks > self.kv_cache_manager.block_pool.get_num_free_blocks() and self.running:
                return 0
        if not others:
            return tokens if tokens == remaining or self._rewinds or not self._is_seeded(request) else 0
        if any(one not in self.waiting for one in others):
            return min(tokens, remaining - 1)
        self._to_front([request, *others])
        unread = {one.request_id: self._unread(one) for one in others}
        reads = [tokens for tokens in unread.values() if tokens is not None]
        fits = len(reads) == len(others) and tokens == remaining and remaining + sum(reads) <= self._left
        if fits and max(reads) <= (self._longest() or self._left):
            self._plan.arrivals.update(zip(unread, reads, strict=True))
            for one in others:
                self._pin(one)
            self._left -= sum(reads)
            return tokens
        if remaining > 1:
            return min(tokens, remaining - 1)
        # One with a single token goes behind those that have something to read before.
        self._to_front([one for one in others if (unread[one.request_id] or 0) > 1])
        return 0

    def _awaited(self) -> list[Request]:
        """What running requests wait for, and will not get in this step."""
        missing = [one for unit in self._units() for one in self._missing(unit[0])]
        return [one for one in missing if one.request_id not in self._plan.arrivals]

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether vLLM may look at a waiting request in this step."""
        if not self._rewinds and self._is_seeded(request) and request.num_tokens > self.max_num_scheduled_tokens:
            self.grammar_compile_error_reqs.add(request.request_id)
        if request.request_id in self.grammar_compile_error_reqs:
            return False
        if not super()._handle_blocked_waiting_request(request):
            return False
        if request.request_id in self._plan.arrivals:
            return True
        others = self._others(request)
        if any(one.status == RequestStatus.RUNNING for one in others):
            return (self._unread(request) or 0) > 1  # else there is nothing to read before all can write
        return not any(self._is_blocked_waiting_status(one.status) for one in others)

    # -- after a step ----------------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in the tokens of a step: all requests of a group wrote the same one, or none wrote."""
        if not self.groups:
            return super().update_from_output(scheduler_output, model_runner_output)
        seen = self.listener.receive()
        for group in self.groups:
            self._reconcile(group, scheduler_output, model_runner_output, seen.get(group.main))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            batch.outputs = [one for one in batch.outputs if not self.groups.is_branch(one.request_id)]
            for one in batch.outputs:
                ours = self.groups.by_main.get(one.request_id)
                if ours is not None and one.finish_reason is not None and one.kv_transfer_params is None:
                    report = {**ours.state.summary(), "engine_branch_tokens": self.branch_tokens}
                    if ours.state.request.answers > 1:
                        report["log_weights"] = self.weights.finish(one.request_id, ours.state)
                    one.kv_transfer_params = {OURS: report}
        for group in self.groups:
            self._follow(group)
        return outputs

    def _reconcile(self, group: Group, scheduled: Any, output: Any, seen: dict[str, Any] | None) -> None:
        """Throw away what a part of a group wrote alone, and put the guided log-probabilities in place."""
        state: Report = group.state
        counts, sampled = scheduled.num_scheduled_tokens, output.sampled_token_ids
        tokens: dict[str, list[int]] = {}
        for name in group.members:
            if name in counts and name in self.requests and sampled:
                tokens[name] = sampled[output.req_id_to_index[name]]
        read = sum(counts.get(name, 0) for name in group.branches)
        state.branch_tokens += read
        self.branch_tokens += read
        wrote = [name for name, written in tokens.items() if written]
        main = self.requests.get(group.main)
        if not wrote or main is None:
            return
        state.preemptions = main.num_preemptions
        position = main.num_output_tokens
        together = len(wrote) == len(group.members) and (bool(group.branches) or not state.wants_branches(position))
        broken = seen is not None and seen["broken"]
        if broken or not together or any(tokens[name] != tokens[wrote[0]] for name in wrote):
            if broken or together:  # never a wrong answer
                self.grammar_compile_error_reqs.add(group.main)
            state.discarded += 1
            for name in wrote:
                tokens[name].clear()
                self.requests[name].num_computed_tokens -= 1
            return
        state.observe(position, state.guides(position), seen)
        if seen is not None and seen["ids"] is not None and output.logprobs is not None:
            output.logprobs = with_guided(output.logprobs, output.req_id_to_index[group.main], seen)

    def _follow(self, group: Group) -> None:
        """What became of a group: its branch requests end with it, are dropped for a while, or are made again."""
        main = self.requests.get(group.main)
        if main is None or main.is_finished():
            self._dismiss(group)
            self.groups.drop(group)
            return
        if any(branch not in self.requests for branch in group.branches):
            self._dismiss(group)
        position = main.num_output_tokens
        if not group.branches and group.state.wants_branches(position):
            self._spawn(group, main)
        elif group.branches and group.state.idles(position):
            self._dismiss(group)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's figures, in which branch requests do not count as requests."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.groups:
            branches = [self.requests[name] for name in self.groups.by_branch if name in self.requests]
            running = sum(branch.status == RequestStatus.RUNNING for branch in branches)
            deferred = sum(branch in self.deferred_waiting for branch in branches)
            stats.num_running_reqs -= running
            stats.num_waiting_reqs -= len(branches) - running - deferred
            stats.num_skipped_waiting_reqs -= deferred
        return stats

    def shutdown(self) -> None:
        """Close the channel to the workers too."""
        super().shutdown()
        self.listener.close()
