"""Which requests take part in a step of the engine, and how many tokens each of them reads.

Before vLLM schedules a step, the token budget is shared out among the running requests of all groups
(:func:`~.plan.share`). While it schedules, vLLM asks through two hooks how many tokens a request may read and whether a
waiting request may come in. Knows no vLLM but the names of what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import images
from .borrowed_fields import fail_request, is_failed
from .groups import Groups
from .plan import Load, Plan, share, too_large
from .requests import Request

if TYPE_CHECKING:
    from .cache_blocks import CacheBlocks
    from .engine_requests import EngineRequests


class Admission:
    """The token budget of a step, and the requests that come in.

    Args:
        scheduler: the guided scheduler.
        groups: its groups.
        engine: its requests.
        blocks: of its cache.
    """

    def __init__(self, scheduler: Any, groups: Groups, engine: EngineRequests, blocks: CacheBlocks) -> None:
        self._scheduler = scheduler
        self._groups = groups
        self._engine = engine
        self._blocks = blocks
        self._plan = Plan({}, {}, 0)
        self.tokens_left = 0
        # vLLM's first model runner draws for every part of a seeded prompt and rewinds the generator after all but the
        # last one. PyTorch cannot rewind a CPU generator.
        self._can_rewind = scheduler.vllm_config.device_config.device_type != "cpu"

    # -- when a request arrives ------------------------------------------------------------------------------------

    def why_refused(self, request: Any, guided: Request) -> str | None:
        """Why a request that a client sent cannot be guided; None if it can.

        The front end checks requests as well, and better (``validation.py``). These are left for requests that reach
        the engine in another way.
        """
        if request.prompt_token_ids is None:
            return "guidance needs the token ids of the prompt; a prompt of embeddings has none"
        features = request.mm_features
        if features and (guided.sees is None or not images.can_be_shown(features, guided.sees)):
            return "guidance does not work with this prompt's images, or they were not checked"
        if request.resumable:
            return "guidance does not work with prompts that arrive in parts"
        return self._why_too_large(request, guided)

    def _why_too_large(self, request: Any, guided: Request) -> str | None:
        longest = self._engine.max_model_len
        lengths = []
        for n_prompt in (request.num_prompt_tokens, *map(len, guided.prompts)):
            lengths.append(min(longest, n_prompt + request.max_tokens))
        lengths *= guided.particles
        if len(lengths) == 1:
            return None
        return too_large(
            lengths,
            self._scheduler.max_num_active_reqs,
            self._scheduler.max_num_scheduled_tokens,
            self._blocks.total,
            self._scheduler.block_size,
        )

    # -- before a step ---------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Preempt what has no room, group by group, and share out the token budget among the rest."""
        self._engine.preempt_incomplete()
        while True:
            self._plan = share(self._loads(), self._scheduler.max_num_scheduled_tokens, self.longest_read())
            if self.blocks_needed() <= self._blocks.free and not self._is_stuck():
                break
            units = self._engine.running_by_group()
            if len(units) < 2:
                break  # vLLM preempts it
            self._engine.preempt(units[-1])
        self.tokens_left = self._plan.left
        # Requests that others wait for come first, and of these the ones that have to come in in this step.
        arriving = [self._engine.get(name) for name in self._plan.arrivals]
        self._engine.move_to_front(self._awaited())
        self._engine.move_to_front(arriving)
        for request in arriving:
            self._blocks.pin(request)

    def end_step(self) -> None:
        """Forget the plan, and release the cached prefixes that were kept for arrivals."""
        self._plan = Plan({}, {}, 0)
        self._blocks.unpin()

    def _loads(self) -> list[Load]:
        loads = []
        free_places = self._scheduler.max_num_active_reqs - len(self._scheduler.running)
        for unit in self._engine.running_by_group():
            must_wait = self.must_wait(unit[0])
            running = {request.request_id: 0 if must_wait else self._engine.unread(request) for request in unit}
            absent: dict[str, int] | None = None if must_wait else {}
            for request in self._engine.missing(unit[0]):
                unread = self._unread_waiting(request)
                free_places -= 1
                if unread is None or free_places < 0:
                    absent = None
                elif absent is not None:
                    absent[request.request_id] = unread
            loads.append(Load(running, absent))
        return loads

    def must_wait(self, request: Any) -> bool:
        """Whether its group has to see what the steps in flight write before it may be scheduled again."""
        group = self._groups.of(request.request_id)
        return group is not None and group.must_wait(self._engine)

    def _unread_waiting(self, request: Any) -> int | None:
        """Tokens that a waiting request would have to read; None if it cannot be admitted yet."""
        if self._scheduler._is_blocked_waiting_status(request.status):
            return None
        return self._blocks.unread(request)

    def _is_stuck(self) -> bool:
        """Whether everything that runs waits for requests of its group, and the first of these cannot come in."""
        if any(self._plan.tokens.values()) or self._plan.arrivals:
            return False
        if any(request.num_in_flight_tokens for request in self._scheduler.running):
            return False  # a step in flight will change that
        for unit in self._engine.running_by_group():
            missing = self._engine.missing(unit[0])
            if missing:
                needed = sum(self._blocks.needed_to_admit(request) for request in missing) + self._blocks.reserve
                n_running = len(self._scheduler.running) + len(missing)
                return n_running > self._scheduler.max_num_active_reqs or needed > self._blocks.free
        return False

    def _awaited(self) -> list[Any]:
        """Requests that running ones of their group wait for, without those that come in in this step."""
        awaited = []
        for unit in self._engine.running_by_group():
            awaited += [one for one in self._engine.missing(unit[0]) if one.request_id not in self._plan.arrivals]
        return awaited

    def longest_read(self) -> int:
        """The most tokens that one request may read in this step; 0 if there is no such limit."""
        threshold = int(self._scheduler.scheduler_config.long_prefill_token_threshold)
        return threshold if len(self._scheduler.running) + len(self._scheduler.waiting) > 1 else 0

    def blocks_needed(self) -> int:
        """New cache blocks that the plan of the step takes."""
        needed = 0
        for request in self._scheduler.running:
            tokens = self.tokens_of(request)
            start = request.num_computed_tokens
            if not self._blocks.fits_last_block(start, tokens):
                needed += self._blocks.needed(request, start, start + tokens)
        for name in self._plan.arrivals:
            needed += self._blocks.needed_to_admit(self._engine.get(name))
        return needed

    def tokens_of(self, request: Any) -> int:
        """Tokens that the plan gives to a running request."""
        return self._plan.tokens.get(request.request_id, 0)

    def add_tokens(self, requests: Sequence[Any], count: int) -> None:
        """Give ``count`` more tokens to each of these running requests."""
        for request in requests:
            self._plan.tokens[request.request_id] += count
        self.tokens_left -= count * len(requests)

    # -- while vLLM schedules --------------------------------------------------------------------------------------

    def may_come_in(self, request: Any) -> bool:
        """Whether vLLM may look at a waiting request in this step."""
        if self._must_read_at_once(request) and request.num_tokens > self._scheduler.max_num_scheduled_tokens:
            fail_request(
                self._scheduler,
                request.request_id,
                f"a CPU reads the prompt of a request with a seed in one step: it has {request.num_tokens} tokens, and "
                f"max_num_batched_tokens is {self._scheduler.max_num_scheduled_tokens}; shorten it, or leave seed out",
            )
        return not is_failed(self._scheduler, request.request_id)

    def has_to_wait_for_group(self, request: Any) -> bool:
        """Whether a waiting request has to wait for others of its group before vLLM may look at it."""
        if request.request_id in self._plan.arrivals:
            return False
        others = self._engine.others(request)
        if any(self._engine.is_running(other) for other in others):
            # It reads all but its last token, and writes in a step in which the whole group can.
            return (self._unread_waiting(request) or 0) <= 1
        return any(self._scheduler._is_blocked_waiting_status(other.status) for other in others)

    def tokens_to_read(self, request: Any, n_computed: int, tokens: int) -> int:
        """Tokens that a request reads in this step; 0 leaves it out.

        Args:
            request: running, or about to be admitted.
            n_computed: tokens that it has read.
            tokens: those that vLLM would let it read.
        """
        remaining = request.num_tokens + request.num_output_placeholders - n_computed
        if tokens < remaining and self._must_read_at_once(request):
            return 0  # it waits for a step that has room for all of it
        if not self._groups:
            return tokens
        if self._engine.is_running(request):
            return min(tokens, self._plan.tokens.get(request.request_id, tokens))
        if request.request_id in self._plan.arrivals:
            return tokens
        tokens = self._admit(request, remaining, min(tokens, self.tokens_left))
        self.tokens_left -= tokens
        return tokens

    def _must_read_at_once(self, request: Any) -> bool:
        """Whether a request cannot be read in parts, since vLLM draws its tokens with a seed on a CPU."""
        params = request.sampling_params
        return not self._can_rewind and params is not None and params.seed is not None and params.temperature > 0

    def _admit(self, request: Any, remaining: int, tokens: int) -> int:
        """Tokens for a waiting request that vLLM is about to admit; 0 if it has to wait."""
        others = self._engine.others(request)
        if any(self._engine.is_running(other) for other in others):
            return min(tokens, remaining - 1)  # it writes when the rest of its group does
        if not self._has_room(request, others):
            return 0
        if not others:
            return 0 if tokens < remaining and self._must_read_at_once(request) else tokens
        if any(other not in self._scheduler.waiting for other in others):
            return min(tokens, remaining - 1)
        return self._admit_first(request, others, remaining, tokens)

    def _has_room(self, request: Any, others: Sequence[Any]) -> bool:
        """Whether there is room for a request and the others of its group.

        Places and blocks are kept for requests that running ones wait for: two groups must not wait for each other.
        """
        awaited = self._awaited()
        n_running = len(self._scheduler.running) + len(awaited) + 1 + len(others)
        if n_running > self._scheduler.max_num_active_reqs:
            return False
        lora = self._scheduler.lora_config
        if lora and len(self.adapters([*self._scheduler.running, request])) > lora.max_loras:
            return False
        if (awaited or others) and self._scheduler.running:
            requests = [*awaited, request, *others]
            needed = sum(self._blocks.needed_to_admit(one) for one in requests) + self._blocks.reserve
            return needed <= self._blocks.free
        return True

    def _admit_first(self, request: Any, others: Sequence[Any], remaining: int, tokens: int) -> int:
        """Tokens for the first request of a waiting group: all of them if the whole group comes in in this step."""
        self._engine.move_to_front([request, *others])
        unread = {other.request_id: self._unread_waiting(other) for other in others}
        reads = {name: count for name, count in unread.items() if count is not None}
        fits = len(reads) == len(others) and tokens == remaining and remaining + sum(reads.values()) <= self.tokens_left
        if fits and max(reads.values()) <= (self.longest_read() or self.tokens_left):
            self._plan.arrivals.update(reads)
            for other in others:
                self._blocks.pin(other)
            self.tokens_left -= sum(reads.values())
            return tokens
        if remaining > 1:
            return min(tokens, remaining - 1)
        # One with a single token would write alone. It comes after those that have something to read before.
        self._engine.move_to_front([other for other in others if (unread[other.request_id] or 0) > 1])
        return 0

    def adapters(self, requests: Iterable[Any]) -> set[int]:
        """Numbers of the adapters that requests and their groups need, now or later.

        Adapters that are needed later count as well: two groups must not wait for each other's.
        """
        numbers: set[int] = set()
        for request in requests:
            members = [request]
            group = self._groups.of(request.request_id)
            if group is not None:
                members += self._engine.present(group.members)
                numbers.update(adapter.number for adapter in group.state.request.adapters)
            numbers.update(member.lora_request.lora_int_id for member in members if member.lora_request)
        return numbers - {0}
