"""Requests come and go: what vLLM's scheduler knows of guided requests and their branch requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from . import images, requests
from .extras import OURS
from .groups import Group, Groups
from .plan import Plan, too_large
from .refusals import refuse
from .request_state import Report
from .startup import refusing
from .totals import Totals

MAIN = requests.MAIN


class Grouped(Scheduler):
    """vLLM's scheduler with branch requests beside every guided request that needs them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with refusing():
            refuse(self.vllm_config, self)
        self.groups = Groups()
        self.totals = Totals()
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

    def add_request(self, request: Request) -> None:
        """Take a request in; a guided one gets branch requests as soon as its guidance is active."""
        params = request.sampling_params
        ours = (params.extra_args or {}).get(OURS) if params is not None else None
        if not isinstance(ours, dict) or request.request_id in self.requests:
            super().add_request(request)
            return
        self.totals.taken += 1
        asked = requests.Request.from_dict(ours)
        if (
            request.prompt_token_ids is None
            or self._cannot_be_shown(request, asked)
            or request.resumable
            or self._too_large(request, asked)
        ):
            # Prompts as embeddings, with images that no check has seen, or in instalments.
            self._fail(request.request_id)
            super().add_request(request)
            return
        asked = dataclasses.replace(asked, draw=requests.Draw.of(params), horizon=request.max_tokens)
        # A branch request must not reach the end of what the engine can hold before the user's request does.
        longest = max(map(len, asked.prompts), default=0)
        request.max_tokens = max(1, min(request.max_tokens, self.max_model_len - longest))
        limit = min(request.max_tokens, self.max_model_len - request.num_prompt_tokens)
        self._take_in(request, Report(dataclasses.replace(asked, limit=limit), stops=bool(params.stop)))

    def _take_in(self, request: Request, state: Report) -> None:
        """A guided request that can be served."""
        request.sampling_params = state.parameters(request.sampling_params, request.request_id, MAIN)
        group = self.groups.add(request.request_id, state)
        Scheduler.add_request(self, request)
        if state.wants_branches(0):
            self._spawn(group, request)

    def _cannot_be_shown(self, request: Request, asked: requests.Request) -> bool:
        features = request.mm_features
        return bool(features) and (asked.sees is None or not images.can_be_shown(features, asked.sees))

    def _too_large(self, request: Request, asked: requests.Request) -> bool:
        prompts = (request.num_prompt_tokens, *map(len, asked.prompts))
        lengths = [min(self.max_model_len, prompt + request.max_tokens) for prompt in prompts] * asked.particles
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
            self._drop(group)
        return [request for request in finished if request.request_id not in branches]

    def _spawn(self, group: Group, main: Request) -> None:
        """Give a group its branch requests: their prompts are those of the branches and what was written so far."""
        state: Report = group.state
        asked: requests.Request = state.request
        names = self.groups.spawn(group, len(asked.prompts))
        branches = [
            self._derived(
                main,
                asked,
                name,
                prompt,
                main.output_token_ids,
                state.parameters(main.sampling_params, group.main, n),
                n,
            )
            for n, (name, prompt) in enumerate(zip(names, asked.prompts, strict=True), start=1)
        ]
        for branch in branches:
            Scheduler.add_request(self, branch)
        if main.status == RequestStatus.RUNNING:  # resumed in the middle: in front of those that wait
            self._to_front(branches)

    def _derived(
        self,
        main: Request,
        asked: requests.Request,
        name: str,
        prompt: Iterable[int],
        text: Iterable[int],
        params: Any,
        place: int = MAIN,
    ) -> Request:
        """A request that goes on from ``text`` behind ``prompt``: at ``place`` beside a client's request, or for it."""
        adapters, sees = ((), None) if place == MAIN else (asked.adapters, asked.sees)
        config = self.vllm_config.model_config.hf_config
        request = Request(
            request_id=name,
            prompt_token_ids=[*prompt, *text],
            sampling_params=params,
            pooling_params=None,
            client_index=main.client_index,
            arrival_time=main.arrival_time,
            lora_request=adapters[place - 1].request(LoRARequest) if adapters else main.lora_request,
            cache_salt=main.cache_salt,
            priority=main.priority,
            block_hasher=main._block_hasher,
            mm_features=images.shown(main.mm_features, sees[place - 1], config) if sees else None,
        )
        request.max_tokens = self.max_model_len
        return request

    def _dismiss(self, group: Group) -> None:
        """Take a group's branch requests away."""
        branches = self.groups.dismiss(group)
        if branches:
            Scheduler.finish_requests(self, branches, RequestStatus.FINISHED_ABORTED)
        self._broken.discard(group.main)

    def _drop(self, group: Group) -> None:
        """A group is gone."""
        self.groups.drop(group)
        self.totals.end(group.state)

    def _fail(self, name: str) -> None:
        """End a request with an error: vLLM's own way to do that."""
        self.totals.failed += 1
        self.grammar_compile_error_reqs.add(name)

    def _to_front(self, waiting: Iterable[Request]) -> None:
        """Put waiting requests in front of all others, in this order."""
        for request in reversed(list(waiting)):
            self.waiting.remove_request(request)
            self.waiting.prepend_request(request)

    def _unread(self, request: Request) -> int:
        """Tokens that a running request reads before it writes one; those count that steps in flight will write."""
        return int(request.num_tokens + request.num_output_placeholders - request.num_computed_tokens)

    def _sampled(self, names: Iterable[str], scheduled: Any, output: Any) -> dict[str, list[int]]:
        """What requests wrote in a step that they had a part in; the lists are the engine's own."""
        counts, sampled = scheduled.num_scheduled_tokens, output.sampled_token_ids
        tokens: dict[str, list[int]] = {}
        for name in names:
            request = self.requests.get(name)
            if name in counts and request is not None and sampled and not request.num_stale_output_tokens:
                tokens[name] = sampled[output.req_id_to_index[name]]
        return tokens

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
