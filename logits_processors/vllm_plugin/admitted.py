"""While vLLM schedules: through its hooks, how many tokens a request may read, and which waiting ones may come in."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.v1.request import Request, RequestStatus

from .settled import Settled


class Admitted(Settled):
    """Admits the requests of a group together, and holds those back that would write alone."""

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """The hook through which vLLM asks how many tokens a request may read; 0 leaves it out of the step."""
        tokens = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
        remaining = request.num_tokens + request.num_output_placeholders - num_computed_tokens
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
        if self.lora_config and len(self._adapters([*self.running, request])) > self.lora_config.max_loras:
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
        unread = {one.request_id: self._to_read(one) for one in others}
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

    def _adapters(self, found: Iterable[Request]) -> set[int]:
        """The adapters of requests and their groups, now or later: two groups must not wait for each other."""
        numbers: set[int] = set()
        for request in found:
            group = self.groups.of(request.request_id)
            members = [request] if group is None else [request, *self._members(group)]
            numbers |= {one.lora_request.lora_int_id for one in members if one.lora_request}
            numbers |= set() if group is None else {one.number for one in group.state.request.adapters}
        return numbers - {0}

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
            return (self._to_read(request) or 0) > 1  # else there is nothing to read before all can write
        return not any(self._is_blocked_waiting_status(one.status) for one in others)
