"""The guided scheduler with a worker that computes nothing: thousands of steps without a model."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from textguide.guidance import APG, AWRS, CFG, BranchGuidance, Formula
from textguide.logits_processors.vllm_plugin import requests
from textguide.logits_processors.vllm_plugin.adapters import BASE, Adapter
from textguide.logits_processors.vllm_plugin.extras import OURS
from textguide.logits_processors.vllm_plugin.options import PROCESSOR
from textguide.logits_processors.vllm_plugin.scheduler import GuidedScheduler
from textguide.logits_processors.vllm_plugin.speculation import KEY

from .simulated_populations import follow
from .simulated_worker import Worker, log_prob, oracle

BLOCK = 4
GUIDANCES = (
    None,
    None,
    CFG(1.5),
    CFG(2.0, schedule="linear"),
    CFG(3.0, stop=0.4),
    CFG(2.0, renormalize=False),
    APG(2.0, start=0.3, stop=0.7),
    Formula("2*cond"),
    Formula("2*cond - 0.5*last - 0.5*P('x')"),
    Formula("2*cond - 0.5*last - 0.25*P('x') - 0.25*P('y')"),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "roomy": {"budget": 200, "places": 16, "blocks": 400, "longest": 60, "caching": False},
    "chunked": {"budget": 16, "places": 12, "blocks": 400, "longest": 60, "caching": False},
    "caching": {"budget": 200, "places": 16, "blocks": 400, "longest": 60, "caching": True},
    "chunked, caching": {"budget": 12, "places": 8, "blocks": 200, "longest": 60, "caching": True},
    "small cache": {"budget": 24, "places": 12, "blocks": 36, "longest": 60, "caching": False},
    "small cache, caching": {"budget": 40, "places": 12, "blocks": 40, "longest": 60, "caching": True},
    "two places": {"budget": 9, "places": 2, "blocks": 33, "longest": 60, "caching": True},
    "three places": {"budget": 5, "places": 3, "blocks": 33, "longest": 60, "caching": False},
    "two adapters": {"budget": 40, "places": 12, "blocks": 60, "longest": 60, "caching": True, "adapters": 2},
    "one adapter": {"budget": 16, "places": 12, "blocks": 400, "longest": 60, "caching": False, "adapters": 1},
}
ADAPTERS = [Adapter(f"adapter-{number}", number, "/nowhere") for number in range(1, 5)]
WAYS: dict[str, dict[str, Any]] = {
    "in turn": {},
    "ahead": {"ahead": True},
    "two stages": {"stages": 2},
    "ahead, unlucky": {"ahead": True, "unlucky": 0.02},
    "in turn, unlucky": {"unlucky": 0.02},
    "two stages, unlucky": {"stages": 2, "unlucky": 0.02},
}
"""How steps follow one another: after the last one has returned; one step ahead of it; in a pipeline. Unlucky engines
find no room in the cache although there is some, so that vLLM preempts requests in the middle of a step."""


class Simulation:
    """An engine whose model is a function of the request and of what it wrote.

    Args:
        model: folder with a config, of which only names are used.
        budget: tokens per step.
        places: ``max_num_seqs``.
        blocks: of the cache, four tokens each.
        longest: ``max_model_len``.
        caching: whether prefixes are cached.
        seed: of all that is random.
        ahead: whether a step is scheduled while the one before it is in flight.
        stages: of a pipeline; as many steps are in flight.
        unlucky: how often the cache has no room although there is some.
        adapters: how many adapters, of four, may run in a step; 0: there are none.
        together: how often a request is for texts that are resampled together.
        guesses: tokens that are guessed per step; 0: none.
    """

    def __init__(
        self,
        model: str,
        *,
        budget: int,
        places: int,
        blocks: int,
        longest: int,
        caching: bool,
        seed: int = 0,
        ahead: bool = False,
        stages: int = 1,
        unlucky: float = 0.0,
        adapters: int = 0,
        together: float = 0.0,
        guesses: int = 0,
    ) -> None:
        self.random = random.Random(seed)
        self.settings = {"budget": budget, "places": places, "blocks": blocks, "longest": longest}
        self.adapters = adapters
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
            lora_config=LoRAConfig(max_loras=adapters, max_lora_rank=8) if adapters else None,
        )
        self.config.scheduler_config.max_num_batched_tokens = budget  # vLLM raises small ones
        self.config.scheduler_config.max_num_scheduled_tokens = budget
        self.config.scheduler_config.async_scheduling = ahead  # the platform switches it off
        self.config.parallel_config.pipeline_parallel_size = stages
        if guesses:
            settings = {"num_speculative_tokens": guesses, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
            self.config.additional_config = {OURS: {KEY: settings}}
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
        self.worker = Worker(ahead, stages)
        self.depth = 2 if ahead else stages
        self.queue: deque[tuple[Any, Any]] = deque()
        self.answers: dict[str, list[int]] = {}
        self.log_probs: dict[str, list[float]] = {}
        self.finished: dict[str, Any] = {}
        self.expected: dict[str, tuple[requests.Request | None, int, frozenset[int]]] = {}
        self.populations: dict[str, requests.Request] = {}
        self.seeded: set[str] = set()
        self.preempted = self.steps = self.discarded = 0
        self.requests = self.answered = self.tokens = 0  # requests, the right answers, and their tokens
        self.chance = together
        if unlucky:
            self._spoil(unlucky)

    @property
    def wasted(self) -> int:
        """Tokens that main requests wrote without all of their group."""
        return self.worker.wasted

    def _spoil(self, chance: float) -> None:
        """Let vLLM find no room in the cache now and then, so that it preempts in the middle of a step."""
        allocate = self.scheduler.kv_cache_manager.allocate_slots
        self.scheduler.kv_cache_manager.allocate_slots = lambda *args, **kwargs: (
            None if self.random.random() < chance else allocate(*args, **kwargs)
        )

    def add(
        self,
        name: str,
        prompt: int,
        tokens: int,
        guidance: BranchGuidance | None,
        branches: Sequence[int],
        seeded: bool,
        measured: bool = False,
        stops: Sequence[int] = (),
        adapters: Sequence[Adapter] = (),
        **more: Any,
    ) -> None:
        """A request with prompts of these lengths; ``branches`` are those of its branch requests."""
        params = SamplingParams(
            max_tokens=tokens,
            temperature=1.0 if seeded else 0.0,
            seed=1 if seeded else None,
            ignore_eos=True,
            logprobs=0 if measured else None,
            stop_token_ids=list(stops),
        )
        if guidance is not None:
            prompts = tuple(tuple(7 + k % 5 for k in range(length)) for length in branches)
            readings = tuple((place, "") for place in range(1, len(branches) + 1))
            guided = requests.Request(guidance, prompts, readings, effect=measured, adapters=tuple(adapters))
            params.extra_args = {OURS: guided.to_dict()}
        shared = self.random.random() < 0.5
        ids = [k % 11 if shared else self.random.randrange(40) for k in range(prompt)]
        if seeded and guidance is None:
            self.seeded.add(name)
        self.answers[name] = []
        self.log_probs[name] = []
        self.requests += 1
        self.scheduler.add_request(Request(name, ids, params, None, block_hasher=self.hasher, **more))
        group = self.scheduler.groups.by_client.get(name)
        count = min(self.scheduler.requests[name].max_tokens, self.settings["longest"] - prompt)
        self.expected[name] = (None if group is None else group.state.request, count, frozenset(stops))

    def add_population(
        self, name: str, prompt: int, tokens: int, size: int, guidance: BranchGuidance | None, branches: Sequence[int]
    ) -> None:
        """A request for texts that are resampled together: as many requests as it has particles."""
        prompts = tuple(tuple(7 + k % 5 for k in range(length)) for length in branches)
        readings = tuple((place, "") for place in range(1, len(branches) + 1))
        guided = requests.Request(guidance, prompts, readings, population=AWRS({"named": "toys"}, size))
        ids = [k % 11 for k in range(prompt)]
        for number in range(size):
            params = SamplingParams(max_tokens=tokens, seed=number, extra_args={OURS: guided.to_dict()})
            front = f"{number}_{name}"
            self.answers[front] = []
            self.log_probs[front] = []
            self.expected[front] = (None, tokens, frozenset())
            self.scheduler.add_request(Request(front, ids, params, None, block_hasher=self.hasher))
        self.populations[name] = self.scheduler.groups.by_name[name].state.request

    def abort(self, name: str) -> None:
        """Abort a request, as when its client disconnects; those of a population are aborted together."""
        parent = name.partition("_")[2]
        names = [one for one in self.expected if one.partition("_")[2] == parent] if parent else [name]
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
        for one in names:
            for known in (self.expected, self.answers, self.log_probs):
                known.pop(one)

    def step(self) -> int:
        """Schedule a step, and take in the oldest one if no more may be in flight; the number of scheduled tokens.

        As vLLM's ``step`` and ``step_with_batch_queue``.
        """
        count = 0
        if self.scheduler.has_requests():
            scheduled = self.scheduler.schedule()
            count = sum(scheduled.num_scheduled_tokens.values())
            assert len(self.scheduler.running) <= self.settings["places"]
            assert count <= self.settings["budget"]
            stepping = [one for one in self.scheduler.running if one.request_id in scheduled.num_scheduled_tokens]
            assert len({one.lora_request.lora_int_id for one in stepping if one.lora_request}) <= self.adapters
            self.preempted += len(scheduled.preempted_req_ids or ())
            self.queue.append((scheduled, self.worker.run(scheduled)))
            self.steps += 1
            if len(self.queue) < self.depth and (count or self.scheduler.has_requests()):
                return count
        if self.queue:
            self._take(*self.queue.popleft())
        return count

    def _take(self, scheduled: Any, output: Any) -> None:
        for batch in self.scheduler.update_from_output(scheduled, output).values():
            for one in batch.outputs:
                assert one.request_id in self.expected, "a branch request's output, or one of an aborted request"
                self.answers[one.request_id] += one.new_token_ids
                if one.new_logprobs is not None:
                    self.log_probs[one.request_id] += one.new_logprobs.logprobs[:, 0].tolist()
                if one.finish_reason is not None:
                    self.finished[one.request_id] = one
                    self.discarded += ((one.kv_transfer_params or {}).get(OURS) or {}).get("discarded_steps", 0)

    def run(self, steps: int, requests: int | None = None) -> None:
        """Run random requests and aborts for ``steps``, or until ``requests`` have arrived, and then until all ended.

        Raises:
            AssertionError: something went wrong; the message says what.
        """
        draw = random.Random(self.random.random())
        n_arrived = 0
        n_idle = 0
        while True:
            busy = self.steps < steps if requests is None else n_arrived < requests
            if busy:
                n_arrived += self._arrive_some(n_arrived, draw)
                self._abort_sometimes(draw)
            n_idle = 0 if self.step() or not self.scheduler.requests else n_idle + 1
            assert n_idle < 20, self.describe()
            assert self.steps < steps + 20_000
            if not busy and not self.scheduler.has_requests() and not self.queue:
                break
            for done in [one for one in self.finished if one in self.expected]:
                self.check(done)
        self.check_answers()
        self.check_nothing_left()

    def _arrive_some(self, n_before: int, draw: random.Random) -> int:
        """Add a few requests, or none; how many."""
        count = 0
        if draw.random() < 0.5:
            repeats = "~" if self.scheduler.drafts else ""
            for _ in range(draw.choice((1, 1, 2, 6))):
                count += self._arrive(f"r{n_before + count}{repeats}", draw)
        return count

    def _abort_sometimes(self, draw: random.Random) -> None:
        if draw.random() < 0.05:
            alive = [one for one in self.expected if one not in self.finished]
            if alive:
                self.abort(draw.choice(alive))

    def _arrive(self, name: str, draw: random.Random) -> int:
        """Add a request, unless too many wait already; how many were added."""
        if len(self.scheduler.waiting) > 60:
            return 0
        guidance = draw.choice(GUIDANCES)
        if draw.random() < self.chance:
            return self._arrive_together(name, draw)
        prompt = draw.choice((1, 2, 5, 9, 30))
        tokens = draw.choice((1, 2, 6, 20, 50))
        count = 0 if guidance is None else min(len(guidance.branches), self.settings["places"] - 1)
        branches = [draw.choice((1, 1, 1, 4, 9, 25)) for _ in range(count)]
        # A group has to fit the cache by itself.
        longest = self.settings["longest"]
        while sum(-(-min(longest, n + tokens) // BLOCK) for n in (prompt, *branches)) >= self.settings["blocks"]:
            branches.pop()
        seeded = draw.random() < 0.3 and prompt <= self.settings["budget"] // 2
        stops = range(draw.choice((0, 0, 3)))
        measured = draw.random() < 0.3
        more: dict[str, Any] = {}
        if self.adapters:
            known = [BASE, *draw.sample(ADAPTERS, self.adapters)]  # those of one group fit a step
            more["adapters"] = [draw.choice(known) for _ in branches]
            more["lora_request"] = draw.choice(known).request(LoRARequest)
        self.add(name, prompt, tokens, guidance, branches, seeded, measured, stops, **more)
        return 1

    def _arrive_together(self, name: str, draw: random.Random) -> int:
        for _ in range(50):
            guidance = draw.choice(GUIDANCES)
            prompt = draw.choice((1, 5, 9, 30))
            tokens = draw.choice((1, 6, 20))
            branches = [draw.choice((1, 4, 9)) for _ in range(0 if guidance is None else len(guidance.branches))]
            size = draw.choice((2, 3, 5))
            settings = self.settings
            blocks = size * sum(-(-min(settings["longest"], n + tokens) // BLOCK) for n in (prompt, *branches))
            if (
                size * (1 + len(branches)) <= min(settings["places"], settings["budget"])
                and blocks < settings["blocks"]
            ):
                self.add_population(name, prompt, tokens, size, guidance, branches)
                return 1
        return 0

    def _check_particle(self, name: str, answer: list[int], finished: Any) -> None:
        number, _, parent = name.partition("_")
        request = self.populations[parent]
        texts, last, steps = follow(parent, request.particles, request.limit)
        assert answer == texts[int(number)], (name, answer, texts)
        assert finished.finish_reason.name in ("STOP", "LENGTH")
        report = finished.kv_transfer_params[OURS]
        assert report["log_weights"] == last["log_weights"]
        assert (report["deaths"], report["constraint_calls"]) == (last["deaths"], steps)

    def check(self, name: str) -> None:
        """Check the tokens of a finished request, their log-probabilities and its report against the plainest loop."""
        request, count, stops = self.expected.pop(name)
        answer = self.answers.pop(name)
        log_probs = self.log_probs.pop(name)
        finished = self.finished.pop(name)
        if finished.finish_reason.name == "ERROR":
            assert name in self.seeded, name  # one that a CPU cannot read in parts
            return
        if name.partition("_")[2]:
            self._check_particle(name, answer, finished)
            return
        expected, state = oracle(name, request, count, stops)
        assert answer == expected, (name, answer, expected)
        self.answered += 1
        self.tokens += len(answer)
        if request is None or state is None:
            return
        if request.draw.logprobs is not None:
            wanted = [log_prob(name, position) for position in range(len(answer))]
            assert all(abs(a - b) < 1e-3 for a, b in zip(log_probs, wanted, strict=True)), name
        ours = finished.kv_transfer_params[OURS]
        theirs = state.summary()
        for value in ("guided_steps", "branched_steps", "unguided_steps", "mean_kl", "max_kl"):
            assert abs(ours.get(value, 0) - theirs.get(value, 0)) < 1e-9, (name, value, ours, theirs)

    def check_answers(self) -> None:
        """Check that every request that was not aborted ended, and has the right answer."""
        for name in list(self.expected):
            assert name in self.finished, f"{name} never finished"
            self.check(name)

    def check_nothing_left(self) -> None:
        """Check that no request, group or block remains."""
        scheduler = self.scheduler
        assert not scheduler.requests
        assert not len(scheduler.groups)
        assert not scheduler.groups.by_client
        assert not scheduler.groups.by_internal
        assert not self.queue
        assert not scheduler.engine.incomplete
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # one means: no block

    def describe(self) -> str:
        """Which requests wait for which."""
        scheduler = self.scheduler

        def one(request: Request) -> str:
            group = scheduler.groups.of(request.request_id)
            others = [] if group is None else [other for other in group.members if other != request.request_id]
            seeded = " seeded" if scheduler.admission._must_read_at_once(request) else ""
            read = f"{request.num_computed_tokens}/{request.num_tokens}"
            return f"{request.request_id}({read}{seeded}{', with ' + ', '.join(others) if others else ''})"

        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        running, waiting = map(one, scheduler.running), map(one, scheduler.waiting)
        return f"nothing moves: {free} free; running {', '.join(running)}; waiting {', '.join(waiting)}"
