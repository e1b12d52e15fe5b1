"""The guided scheduler with a worker that computes nothing: thousands of steps without a model."""

from __future__ import annotations

import random
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from textguide.guidance import BranchGuidance
from textguide.logits_processors.vllm_plugin import requests
from textguide.logits_processors.vllm_plugin.engine import PROCESSOR
from textguide.logits_processors.vllm_plugin.extras import OURS
from textguide.logits_processors.vllm_plugin.scheduler import GuidedScheduler

BLOCK = 4
WORDS = 50
ALONE = WORDS - 1  # what a request writes beside which not all of its group stood


class Simulation:
    """An engine whose model is a function of the request and the position.

    Args:
        model: folder with a config, which gives names and nothing else.
        budget: tokens a step.
        places: ``max_num_seqs``.
        blocks: of the cache, four tokens each.
        longest: ``max_model_len``.
        caching: whether prefixes are cached.
    """

    def __init__(
        self, model: str, *, budget: int, places: int, blocks: int, longest: int, caching: bool, seed: int = 0
    ) -> None:
        self.random = random.Random(seed)
        self.longest = longest
        model_config = ModelConfig(
            model=model, dtype="float32", max_model_len=longest, logits_processors=[PROCESSOR], seed=0
        )
        scheduler_config = SchedulerConfig(
            max_model_len=longest,
            is_encoder_decoder=False,
            max_num_batched_tokens=budget,
            max_num_seqs=places,
            enable_chunked_prefill=True,
            async_scheduling=False,
        )
        cache_config = CacheConfig(block_size=BLOCK, enable_prefix_caching=caching)
        cache_config.num_gpu_blocks = blocks
        self.config = VllmConfig(
            model_config=model_config,
            scheduler_config=scheduler_config,
            cache_config=cache_config,
            device_config=DeviceConfig("cpu"),
        )
        self.config.scheduler_config.max_num_batched_tokens = budget  # vLLM raises small ones
        self.config.scheduler_config.max_num_scheduled_tokens = budget
        self.config.scheduler_config.async_scheduling = False
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        self.scheduler = GuidedScheduler(
            vllm_config=self.config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
            ),
            structured_output_manager=StructuredOutputManager(self.config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            log_stats=True,
        )
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256) if caching else None
        self.worker: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, list[int]] = {}
        self.finished: dict[str, Any] = {}
        self.asked: dict[str, tuple[BranchGuidance | None, int]] = {}
        self.seeded: set[str] = set()
        self.preempted = 0
        self.steps = 0
        self.wasted = 0

    def add(
        self,
        name: str,
        prompt: int,
        tokens: int,
        guidance: BranchGuidance | None,
        branches: tuple[int, ...],
        seeded: bool,
        **more: Any,
    ) -> None:
        """A request with prompts of these lengths; ``branches`` are those of its branch requests."""
        params = SamplingParams(
            max_tokens=tokens,
            temperature=1.0 if seeded else 0.0,
            seed=1 if seeded else None,
            ignore_eos=True,
        )
        if guidance is not None:
            prompts = tuple(tuple(7 + k % 5 for k in range(length)) for length in branches)
            readings = tuple((place, "") for place in range(1, len(branches) + 1))
            params.extra_args = {OURS: requests.Request(guidance, prompts, readings).to_dict()}
        shared = self.random.random() < 0.5
        ids = [k % 11 if shared else self.random.randrange(40) for k in range(prompt)]
        self.asked[name] = (guidance, tokens)
        if seeded and guidance is None:
            self.seeded.add(name)
        self.answers[name] = []
        self.scheduler.add_request(Request(name, ids, params, None, block_hasher=self.hasher, **more))

    def abort(self, name: str) -> None:
        """The client went away."""
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        self.asked.pop(name)
        self.answers.pop(name)

    def word(self, name: str, position: int) -> int:
        """What guidance makes the most likely token at a position, and what a plain request writes."""
        return hash((name, position)) % ALONE

    def step(self) -> int:
        """Schedule, pretend to run, take in what was written; how many tokens were scheduled."""
        scheduled = self.scheduler.schedule()
        counts = scheduled.num_scheduled_tokens
        assert len(self.scheduler.running) <= self.config.scheduler_config.max_num_seqs
        for name in scheduled.finished_req_ids:
            self.worker.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            assert new.req_id not in self.worker
            ours = (new.sampling_params.extra_args or {}).get(OURS)
            self.worker[new.req_id] = {
                "prompt": list(new.prompt_token_ids),
                "written": [],
                "read": new.num_computed_tokens,
                "group": ours["group"] if ours else None,
                "place": ours["place"] if ours else None,
            }
        cached = scheduled.scheduled_cached_reqs
        for k, name in enumerate(cached.req_ids):
            state = self.worker[name]
            del state["written"][cached.num_output_tokens[k] :]  # what was thrown away, as vLLM's runner trims it
            assert len(state["written"]) == cached.num_output_tokens[k]
            resumed = name in cached.resumed_req_ids
            if not resumed:
                assert cached.num_computed_tokens[k] <= state["read"]
            state["read"] = cached.num_computed_tokens[k]
        writing = {}
        for name, count in counts.items():
            state = self.worker[name]
            state["read"] += count
            known = len(state["prompt"]) + len(state["written"])
            assert state["read"] <= known
            if state["read"] == known:
                writing[name] = state
        sampled, order = [], list(counts)
        beside: dict[str, set[int]] = {}
        for state in writing.values():
            if state["group"]:
                beside.setdefault(state["group"], set()).add(state["place"])
        for name in order:
            if name not in writing:
                sampled.append([])
                continue
            state = writing[name]
            if state["group"] is None:
                token = self.word(name, len(state["written"]))
            else:
                main = self.worker[state["group"]]
                group = self.scheduler.groups.of(state["group"])
                position = len(main["written"])
                size = 1 + len(group.state.request.prompts)
                alone = group.state.wants_branches(position) and len(beside[state["group"]]) < size
                self.wasted += alone
                token = ALONE if alone else self.word(state["group"], position)
            sampled.append([token])
        for name, tokens in zip(order, sampled, strict=True):  # after all have looked at one another
            self.worker[name]["written"] += tokens
        output = ModelRunnerOutput(
            req_ids=order, req_id_to_index={name: k for k, name in enumerate(order)}, sampled_token_ids=sampled
        )
        self.preempted += len(scheduled.preempted_req_ids or ())
        for batch in self.scheduler.update_from_output(scheduled, output).values():
            for one in batch.outputs:
                assert one.request_id in self.asked, "a branch request's output, or one of an aborted request"
                self.answers[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    self.finished[one.request_id] = one
        self.steps += 1
        return sum(counts.values())

    def check_answers(self) -> None:
        """Every request that was not aborted got its tokens."""
        for name, (_, tokens) in self.asked.items():
            assert name in self.finished, f"{name} never finished"
            answer = self.answers[name]
            if self.finished[name].finish_reason.name == "ERROR":
                assert name in self.seeded, name  # one that a CPU cannot read in parts
                continue
            assert answer == [self.word(name, k) for k in range(len(answer))], name
            assert len(answer) == tokens or self.finished[name].finish_reason.name != "STOP"

    def check_nothing_left(self) -> None:
        """No request, no group, no block."""
        scheduler = self.scheduler
        assert not scheduler.requests
        assert not len(scheduler.groups)
        assert not scheduler.groups.by_branch
        assert not scheduler._broken
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # one stands for no block

    def describe(self) -> str:
        """Who waits for whom."""
        scheduler = self.scheduler

        def one(request: Request) -> str:
            group = scheduler.groups.of(request.request_id)
            others = [] if group is None else [other for other in group.members if other != request.request_id]
            seeded = " seeded" if scheduler._is_seeded(request) else ""
            read = f"{request.num_computed_tokens}/{request.num_tokens}"
            return f"{request.request_id}({read}{seeded}{', with ' + ', '.join(others) if others else ''})"

        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        running, waiting = map(one, scheduler.running), map(one, scheduler.waiting)
        return f"nothing moves: {free} free; running {', '.join(running)}; waiting {', '.join(waiting)}"
