"""Guided requests and their branch requests inside vLLM's scheduler: admitted, scheduled and preempted together.

Opt in by class path: ``--scheduler-cls textguide.logits_processors.vllm_plugin.scheduler.GuidedScheduler``.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from . import requests
from .channel import Listener
from .extras import OURS
from .pairs import BRANCH, MAIN, Pair, Pairs
from .plan import Load, Plan, share
from .refusals import refuse
from .report import Report


class GuidedScheduler(Scheduler):
    """vLLM's scheduler with a branch request beside every guided request.

    Plain requests are scheduled as vLLM schedules them. A pair holds two of the engine's ``max_num_seqs`` places and
    the cache of two sequences. Refuses at start what it was not tested with (``refusals.py``).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse(self.vllm_config, self)
        self.pairs = Pairs()
        self.listener = Listener(self.vllm_config.instance_id)
        self.branch_tokens = 0
        self._broken: set[str] = set()  # main requests of pairs of which vLLM itself preempted one half
        self._plan = Plan({}, {}, 0)
        self._left = 0
        self._pinned: list[Any] = []
        # PyTorch cannot rewind a CPU generator, and vLLM's first runner does so after a part of a seeded prompt.
        self._rewinds = self.vllm_config.device_config.device_type != "cpu"
        record = self.kv_cache_manager.record_prefix_cache_stats
        self.kv_cache_manager.record_prefix_cache_stats = lambda request, hits: (
            None if self.pairs.is_branch(request.request_id) else record(request, hits)
        )

    # -- requests come and go --------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Take a request in; a guided one gets a branch request as soon as its guidance is active."""
        params = request.sampling_params
        ours = (params.extra_args or {}).get(OURS) if params is not None else None
        if not isinstance(ours, dict) or request.request_id in self.requests:
            super().add_request(request)
            return
        if request.prompt_token_ids is None or request.mm_features or request.resumable:
            # Prompts as embeddings, with images, or in instalments; vLLM's way to end a request with an error.
            self.grammar_compile_error_reqs.add(request.request_id)
            super().add_request(request)
            return
        asked = requests.Request.from_dict(ours)
        asked = dataclasses.replace(asked, draw=requests.Draw.of(params), horizon=request.max_tokens)
        state = Report(asked, self._branch_prompt(request, asked))
        # A branch request must not reach the end of what the engine can hold before the user's request does.
        request.max_tokens = max(1, min(request.max_tokens, self.max_model_len - len(state.negative)))
        limit = min(request.max_tokens, self.max_model_len - request.num_prompt_tokens)
        state.request = dataclasses.replace(asked, limit=limit)
        request.sampling_params = self._params(params, request.request_id, MAIN, state)
        pair = self.pairs.add(request.request_id, state)
        super().add_request(request)
        if state.wants_branch(0):
            self._spawn(pair, request)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """End requests; branch requests go along."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        wanted = list(self.requests if request_ids is None else request_ids)
        pairs = [pair for pair in map(self.pairs.by_main.get, wanted) if pair is not None]
        branches = {pair.branch for pair in pairs if pair.branch is not None}
        finished = super().finish_requests([*wanted, *(branches - set(wanted))], finished_status)
        for pair in pairs:
            self.pairs.drop(pair)
        return [request for request in finished if request.request_id not in branches]

    def _spawn(self, pair: Pair, main: Request) -> None:
        """Give a pair a branch request: a request whose prompt is the negative one and what was written so far."""
        state: Report = pair.state
        branch = Request(
            request_id=self.pairs.spawn(pair),
            prompt_token_ids=state.negative + list(main.output_token_ids),
            sampling_params=self._params(main.sampling_params, pair.main, BRANCH, state),
            pooling_params=None,
            client_index=main.client_index,
            arrival_time=main.arrival_time,
            lora_request=main.lora_request,
            cache_salt=main.cache_salt,
            priority=main.priority,
            block_hasher=main._block_hasher,
        )
        branch.max_tokens = self.max_model_len
        Scheduler.add_request(self, branch)
        if main.status == RequestStatus.RUNNING:  # resumed in the middle: in front of those that wait
            self.waiting.remove_request(branch)
            self.waiting.prepend_request(branch)

    def _dismiss(self, pair: Pair) -> None:
        """Take a pair's branch request away."""
        branch = self.pairs.dismiss(pair)
        if branch is not None:
            Scheduler.finish_requests(self, branch, RequestStatus.FINISHED_ABORTED)
        self._broken.discard(pair.main)

    def _branch_prompt(self, request: Request, asked: requests.Request) -> list[int]:
        return list(request.prompt_token_ids[-1:] if asked.negative is None else asked.negative)

    def _params(self, params: Any, pair: str, role: str, state: Report) -> Any:
        """Sampling parameters for the engine: greedy, since the processor draws; the pair is named in them."""
        params = copy.copy(params)
        params.temperature, params.top_p, params.top_k, params.min_p, params.seed = 0.0, 1.0, 0, 0.0, None
        params.repetition_penalty, params.presence_penalty, params.frequency_penalty = 1.0, 0.0, 0.0
        # cached_property of vLLM, read before
        getattr(params, "__dict__", {}).pop("sampling_type", None)
        ours: dict[str, Any] = {"pair": pair, "role": role, "measures": state.measures}
        ours["request"] = state.request.to_dict()
        ours["ends"] = sorted({params.eos_token_id, *(params.stop_token_ids or ())} - {None})
        params.extra_args = {**(params.extra_args or {}), OURS: ours}
        if role == BRANCH:
            params.structured_outputs, params.logprobs, params.repetition_detection = None, None, None
            params.min_tokens = 0
            params.stop_token_ids, params._eos_token_id, params._all_stop_token_ids = None, None, set()
        return params

    # -- before a step ---------------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step. What the running requests get is settled before vLLM looks at them."""
        if self.pairs:
            self._settle()
        output = super().schedule(*args, **kwargs)
        self._plan = Plan({}, {}, 0)
        self.kv_cache_manager.block_pool.free_blocks(reversed(self._pinned))
        self._pinned = []
        return output

    def _settle(self) -> None:
        """Preempt what has to go, pair by pair, and share out the token budget."""
        for main in self._broken:
            pair = self.pairs.of(main)
            if pair is not None:
                self._preempt(self._halves(pair))
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
        for partner in [*reversed(self._waiting_partners()), *reversed(self._plan.arrivals)]:
            self.waiting.remove_request(self.requests[partner])
            self.waiting.prepend_request(self.requests[partner])
        for partner in self._plan.arrivals:
            self._pin(self.requests[partner])

    def _is_stuck(self) -> bool:
        """Whether all that run wait for partners, and none of these can come in."""
        if not self.running or any(self._plan.tokens.values()) or self._plan.arrivals:
            return False
        awaited = self._waiting_partners()
        if not awaited or len(self.running) >= self.max_num_active_reqs:
            return bool(awaited)
        first = self.requests[awaited[0]]
        needed = self._blocks(first, 0, first.num_tokens) + self.kv_cache_manager.watermark_blocks
        return needed > self.kv_cache_manager.block_pool.get_num_free_blocks()

    def _loads(self) -> list[Load]:
        loads = []
        places = self.max_num_active_reqs - len(self.running)
        for request in self.running:
            pair = self.pairs.of(request.request_id)
            partner = pair.partner(request.request_id) if pair is not None else None
            arriving = None
            if partner is not None and self.requests[partner].status != RequestStatus.RUNNING and places > 0:
                arriving = self._unread(self.requests[partner])
                places -= 1
            loads.append(Load(request.request_id, request.num_tokens - request.num_computed_tokens, partner, arriving))
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
        for partner in self._plan.arrivals:
            needed += self._blocks(self.requests[partner], 0, self.requests[partner].num_tokens)
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
        """Running requests by pairs, in the order in which they were admitted."""
        units: dict[str, list[Request]] = {}
        for request in self.running:
            pair = self.pairs.of(request.request_id)
            units.setdefault(request.request_id if pair is None else pair.main, []).append(request)
        return list(units.values())

    def _halves(self, pair: Pair) -> list[Request]:
        names = [name for name in (pair.main, pair.branch) if name is not None]
        return [self.requests[name] for name in names if name in self.requests]

    def _preempt(self, unit: list[Request]) -> None:
        """Send a pair, or a request that stands alone, back to the front of the queue, the main request first."""
        now = time.monotonic()
        for request in reversed(unit):
            if request.status == RequestStatus.RUNNING:
                self.running.remove(request)
                Scheduler._preempt_request(self, request, now)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """vLLM preempts a request by itself; its other half follows before the next step."""
        super()._preempt_request(request, *args, **kwargs)
        pair = self.pairs.of(request.request_id)
        if pair is not None:
            self._broken.add(pair.main)

    # -- while vLLM schedules --------------------------------------------------------------------------------------

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """The hook through which vLLM asks how many tokens a request may read; 0 leaves it out of the step."""
        tokens = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
        remaining = request.num_tokens - num_computed_tokens
        if not self._rewinds and tokens < remaining and self._is_seeded(request):
            return 0  # it waits for a step that has room for all of it
        if not self.pairs:
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
        pair = self.pairs.of(request.request_id)
        partner = None if pair is None else pair.partner(request.request_id)
        other = self.requests.get(partner) if partner is not None else None
        if other is not None and other.status == RequestStatus.RUNNING:
            return min(tokens, remaining - 1)  # it writes when its other half does
        # Places and blocks are kept for partners of those that run already: two halves must not wait for each other.
        owed = [self.requests[name] for name in self._waiting_partners()]
        places = len(self.running) + len(owed) + (1 if other is None else 2)
        if places > self.max_num_active_reqs:
            return 0
        if owed or other is not None:
            blocks = sum(self._blocks(one, 0, one.num_tokens) for one in [*owed, request, *([other] if other else [])])
            blocks += self.kv_cache_manager.watermark_blocks
            if blocks > self.kv_cache_manager.block_pool.get_num_free_blocks() and self.running:
                return 0
        if other is None:
            return tokens if tokens == remaining or self._rewinds or not self._is_seeded(request) else 0
        unread = self._unread(other)
        if unread is not None and tokens == remaining and remaining + unread <= self._left and self._next_is(other):
            self._plan.arrivals[other.request_id] = unread
            self._pin(other)
            self._left -= unread
            return tokens
        if remaining > 1:
            return min(tokens, remaining - 1)
        if unread is not None and unread > 1:  # the one with a single token goes second
            self.waiting.remove_request(other)
            self.waiting.prepend_request(other)
        return 0

    def _next_is(self, request: Request) -> bool:
        return len(self.waiting) > 1 and next(iter(list(self.waiting)[1:2]), None) is request

    def _waiting_partners(self) -> list[str]:
        names = []
        for request in self.running:
            pair = self.pairs.of(request.request_id)
            partner = pair.partner(request.request_id) if pair is not None else None
            if partner is not None and self.requests[partner].status != RequestStatus.RUNNING:
                names.append(partner)
        return [name for name in names if name not in self._plan.arrivals]

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether vLLM may look at a waiting request in this step."""
        if not self._rewinds and self._is_seeded(request) and request.num_tokens > self.max_num_scheduled_tokens:
            self.grammar_compile_error_reqs.add(request.request_id)
        if request.request_id in self.grammar_compile_error_reqs:
            return False
        if not super()._handle_blocked_waiting_request(request):
            return False
        pair = self.pairs.of(request.request_id)
        partner = pair.partner(request.request_id) if pair is not None else None
        if partner is None or request.request_id in self._plan.arrivals:
            return True
        other = self.requests[partner]
        if other.status == RequestStatus.RUNNING:
            return (self._unread(request) or 0) > 1  # else there is nothing to read before both can write
        return not self._is_blocked_waiting_status(other.status)

    # -- after a step ----------------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in the tokens of a step: both halves of a pair wrote the same one, or neither wrote."""
        if not self.pairs:
            return super().update_from_output(scheduler_output, model_runner_output)
        seen = self.listener.receive()
        for pair in self.pairs:
            self._reconcile(pair, scheduler_output, model_runner_output, seen.get(pair.main))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            batch.outputs = [one for one in batch.outputs if not self.pairs.is_branch(one.request_id)]
            for one in batch.outputs:
                ours = self.pairs.by_main.get(one.request_id)
                if ours is not None and one.finish_reason is not None and one.kv_transfer_params is None:
                    report = {**ours.state.summary(), "engine_branch_tokens": self.branch_tokens}
                    one.kv_transfer_params = {OURS: report}
        for pair in self.pairs:
            self._follow(pair)
        return outputs

    def _reconcile(self, pair: Pair, scheduled: Any, output: Any, seen: dict[str, Any] | None) -> None:
        """Throw away what one half wrote alone, and put the guided log-probabilities in place."""
        state: Report = pair.state
        counts, sampled = scheduled.num_scheduled_tokens, output.sampled_token_ids
        tokens: dict[str, list[int]] = {}
        for name in (pair.main, pair.branch):
            if name is not None and name in counts and name in self.requests and sampled:
                tokens[name] = sampled[output.req_id_to_index[name]]
        if pair.branch is not None:
            state.branch_tokens += counts.get(pair.branch, 0)
            self.branch_tokens += counts.get(pair.branch, 0)
        wrote = [name for name, written in tokens.items() if written]
        if not wrote:
            return
        main = self.requests.get(pair.main)
        if main is None:
            return
        state.preemptions = main.num_preemptions
        position = main.num_output_tokens
        alone = pair.branch is None and not state.wants_branch(position)
        agree = len(wrote) == 2 and tokens[wrote[0]] == tokens[wrote[1]]
        if not agree and not (alone and wrote == [pair.main]):
            if len(wrote) == 2:  # never a wrong answer
                self.grammar_compile_error_reqs.add(pair.main)
            state.discarded += 1
            for name in wrote:
                tokens[name].clear()
                self.requests[name].num_computed_tokens -= 1
            return
        state.observe(position, agree and state.wants_branch(position), seen)
        if seen is not None and seen["ids"] is not None and output.logprobs is not None:
            row, count = output.req_id_to_index[pair.main], len(seen["ids"])
            ids, values, ranks = (array.copy() for array in output.logprobs[:3])
            ids[row, :count], values[row, :count], ranks[row] = seen["ids"], seen["logprobs"], seen["rank"]
            output.logprobs = output.logprobs._replace(
                logprob_token_ids=ids, logprobs=values, sampled_token_ranks=ranks
            )

    def _follow(self, pair: Pair) -> None:
        """What became of a pair: its branch request ends with it, is dropped for a while, or is made again."""
        main = self.requests.get(pair.main)
        if main is None or main.is_finished():
            self._dismiss(pair)
            self.pairs.drop(pair)
            return
        if pair.branch is not None and pair.branch not in self.requests:
            self.pairs.dismiss(pair)
        position = main.num_output_tokens
        if pair.branch is None and pair.state.wants_branch(position):
            self._spawn(pair, main)
        elif pair.branch is not None and pair.state.idles(position):
            self._dismiss(pair)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's figures, in which branch requests do not count as requests."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.pairs:
            branches = [self.requests[name] for name in self.pairs.by_branch if name in self.requests]
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
