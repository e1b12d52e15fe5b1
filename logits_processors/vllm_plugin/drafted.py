"""Guesses at the tokens of guided requests inside vLLM's scheduler: every request of a group reads the same ones."""

from __future__ import annotations

from typing import Any

from vllm.v1.request import Request, RequestStatus

from .groups import Group
from .populated import Populated
from .population import Population
from .speculation import guesser_of, may_guess


class Drafted(Populated):
    """Lets groups read guesses with their newest token, where a step has room for them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guesser = guesser_of(self.vllm_config)
        self._guessing: list[Request] = []

    def _settle(self) -> None:
        for request in self._guessing:  # of a step that did not come to them
            request.spec_token_ids = []
        self._guessing = []
        super()._settle()
        if self.guesser is None:
            return
        free = self.kv_cache_manager.block_pool.get_num_free_blocks() - self._blocks_needed()
        for group in self.groups:
            if not isinstance(group, Population) and group.state.request.awrs is None and not group.state.request.caif:
                free -= self._guess(self.guesser, group, free)

    def _guess(self, guesser: Any, group: Group, free: int) -> int:
        """Give a group guesses to read, where all of it writes in this step; the cache blocks that they take."""
        members, tokens, state = self._members(group), self._plan.tokens, group.state
        ready = len(members) == len(group.members) and all(
            one.status == RequestStatus.RUNNING and tokens.get(one.request_id) == 1 == self._unread(one)
            for one in members
        )
        main = self.requests.get(group.main)
        if not ready or main is None or not may_guess(main.sampling_params):
            return 0
        position = main.num_output_tokens
        most = min(
            guesser.most,
            state.request.limit - position - 1,
            *(self.max_model_len - one.num_tokens - 1 for one in members),
            self._left // len(members),
            (self._longest() or guesser.most + 1) - 1,
        )
        for ahead in range(1, most + 1):
            # Where branch requests come back, and where what was measured may let guidance rest, a step begins anew.
            wanting = state.wants_branches(position + ahead) and not group.branches
            if wanting or state.decides(position + ahead) or state.skips(position + ahead) != state.skips(position):
                most = ahead - 1
                break
        guesses = guesser.guess(group.main, main.all_token_ids, most) if most > 0 else []
        if not guesses:
            return 0
        count = len(guesses)
        needed = 0
        for one in members:
            read = one.num_computed_tokens
            needed += self._blocks(one, read, read + 1 + count) - self._blocks(one, read, read + 1)
        if needed > free:
            return 0
        for one in members:
            one.spec_token_ids = list(guesses)
            tokens[one.request_id] += count
        self._guessing += members
        self._left -= count * len(members)
        return needed

    def _judge(self, request: str, right: int) -> None:
        """Learn how many guesses of a request were right."""
        if self.guesser is not None:
            self.guesser.judge(request, right)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        if self.guesser is not None:
            self.guesser.forget(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def make_spec_decoding_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's figures of speculation are those of its own; what ours did stands in each answer's report."""
        return None
