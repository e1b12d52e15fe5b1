"""Before a step: what the running requests of every group get is settled before vLLM looks at them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sized
from typing import Any

from vllm.v1.request import Request, RequestStatus

from .grouped import Grouped
from .plan import Load, Plan, share


class Settled(Grouped):
    """Shares out the token budget, and preempts group by group."""

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
        if any(one.num_in_flight_tokens for one in self.running):
            return False  # a step in flight will move them
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
            held = self._is_held(unit[0])
            running = {one.request_id: 0 if held else self._unread(one) for one in unit}
            absent: dict[str, int] | None = None if held else {}
            for request in self._missing(unit[0]):
                unread, places = self._to_read(request), places - 1
                if unread is None or places < 0:
                    absent = None
                if absent is not None and unread is not None:
                    absent[request.request_id] = unread
            loads.append(Load(running, absent))
        return loads

    def _is_held(self, request: Request) -> bool:
        """Whether its group has to see what the steps in flight write before it may be scheduled again.

        At the last token, since vLLM stops a main request there but not its branch requests; where branch requests
        come back, since they read all that was written; where guidance may begin to rest; and where a part of the
        group wrote alone.
        """
        group = self.groups.of(request.request_id)
        if group is None:
            return False
        ahead = {one.num_output_placeholders for one in self._members(group)}
        if len(ahead) > 1 or not any(ahead):
            return len(ahead) > 1
        main, state = self.requests[group.main], group.state
        position = main.num_output_tokens + main.num_output_placeholders
        is_over = position >= min(main.max_tokens, self.max_model_len - main.num_prompt_tokens)
        return is_over or state.decides(position) or (not group.branches and state.wants_branches(position))

    def _to_read(self, request: Request) -> int | None:
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

    def _preempt(self, unit: list[Request]) -> None:
        """Send a group, or a request that stands alone, back to the front of the queue, the main request first."""
        now = time.monotonic()
        for request in reversed(unit):
            if request.status == RequestStatus.RUNNING:
                self.running.remove(request)
                self._evict(request, now)

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        """vLLM preempts a request by itself; the rest of its group follows before the next step.

        What steps in flight write of a group is dropped: it could arrive for a part of the group alone.
        """
        group = self.groups.of(request.request_id)
        self._evict(request, timestamp, drop_stale_output)
        if group is not None:
            self._broken.add(group.main)

    def _evict(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        """Preempt a request that was taken from those that run."""
        # It may come back in the very next step, and the worker has to be told then what it wrote.
        self.prev_step_scheduled_req_ids.discard(request.request_id)
        is_ours = self.groups.of(request.request_id) is not None
        super()._preempt_request(request, timestamp, drop_stale_output or is_ours)

    def _take_back(
        self, wrote: list[Request], counts: Mapping[str, int], guesses: Mapping[str, Sized] | None = None
    ) -> None:
        """Let requests be as they were in front of the token that they wrote in a step that has come back.

        Where steps in flight build on that token, the requests are preempted, and what those steps write is dropped.
        vLLM's second runner keeps written tokens by itself, and forgets them with a preemption alone.
        """
        if self.use_v2_model_runner or any(one.num_in_flight_tokens > counts[one.request_id] for one in wrote):
            now = time.monotonic()
            for request in wrote:
                self.running.remove(request)
                self._preempt_request(request, now)
            return
        for request in wrote:
            request.num_computed_tokens -= 1 + len((guesses or {}).get(request.request_id, ()))
            request.num_output_placeholders = max(0, request.num_output_placeholders - 1)
