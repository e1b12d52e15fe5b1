"""Guesses at the tokens of groups: every request of a group reads the same guesses after its newest token.

Knows no vLLM but the names of what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .groups import Group, Groups
from .speculation import AnyGuesser, may_guess

if TYPE_CHECKING:
    from .admission import Admission
    from .cache_blocks import CacheBlocks
    from .engine_requests import EngineRequests


class Drafts:
    """Gives guesses to groups when a step has room for them.

    Args:
        guesser: guesses tokens.
        groups: of the engine.
        engine: its requests.
        blocks: of its cache.
        admission: holds the token budget of the step.
    """

    def __init__(
        self, guesser: AnyGuesser, groups: Groups, engine: EngineRequests, blocks: CacheBlocks, admission: Admission
    ) -> None:
        self._guesser = guesser
        self._groups = groups
        self._engine = engine
        self._blocks = blocks
        self._admission = admission
        self._drafted: list[Any] = []

    def withdraw(self) -> None:
        """Take back guesses that the last step did not come to."""
        for request in self._drafted:
            request.spec_token_ids = []
        self._drafted = []

    def distribute(self) -> None:
        """Give guesses to all groups that are ready for them, as long as there is room in the cache."""
        free = self._blocks.free - self._admission.blocks_needed()
        for group in self._groups:
            if group.may_speculate:
                free -= self._draft(group, free)

    def _draft(self, group: Group, free: int) -> int:
        """Give guesses to one group; the number of cache blocks that they take, at most ``free``."""
        members = self._engine.present(group.members)
        main = self._engine.get(group.name)
        if main is None or not self._is_ready(group, members) or not may_guess(main.sampling_params):
            return 0
        count = self._most(group, main, members)
        guesses = self._guesser.guess(group.name, main.all_token_ids, count) if count > 0 else []
        if not guesses:
            return 0
        needed = sum(self._blocks_for(request, len(guesses)) for request in members)
        if needed > free:
            return 0
        for request in members:
            request.spec_token_ids = list(guesses)
        self._admission.add_tokens(members, len(guesses))
        self._drafted += members
        return needed

    def _is_ready(self, group: Group, members: Sequence[Any]) -> bool:
        """Whether every request of the group writes a token in this step."""
        if len(members) != len(group.members):
            return False
        for request in members:
            if not self._engine.is_running(request) or self._engine.unread(request) != 1:
                return False
            if self._admission.tokens_of(request) != 1:
                return False
        return True

    def _most(self, group: Group, main: Any, members: Sequence[Any]) -> int:
        """Most guesses that the group can read in this step."""
        state = group.state
        position = main.num_output_tokens
        most = min(
            self._guesser.most,
            state.request.limit - position - 1,
            min(self._engine.max_model_len - request.num_tokens - 1 for request in members),
            self._admission.tokens_left // len(members),
            (self._admission.longest_read() or self._guesser.most + 1) - 1,
        )
        if len(members) > 1:
            return most
        # A step has to end before a token that needs branch requests, which are not there yet.
        ahead = (count for count in range(1, most + 1) if state.needs_branches(position + count))
        return next(ahead, most + 1) - 1

    def _blocks_for(self, request: Any, n_guesses: int) -> int:
        """New cache blocks that the guesses of one request take, besides those of its token."""
        start = request.num_computed_tokens
        with_guesses = self._blocks.needed(request, start, start + 1 + n_guesses)
        return with_guesses - self._blocks.needed(request, start, start + 1)
