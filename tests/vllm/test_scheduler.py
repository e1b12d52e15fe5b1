"""The guided scheduler under load, without a model: groups write together, nothing is left over, nothing hangs."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from textguide.guidance import CFG
from textguide.logits_processors.vllm_plugin import step_result
from textguide.logits_processors.vllm_plugin.admission import Admission
from textguide.logits_processors.vllm_plugin.engine_requests import EngineRequests
from textguide.logits_processors.vllm_plugin.scheduler import GuidedAsyncScheduler, GuidedScheduler
from textguide.models import bundled

from .simulation import SETTINGS, WAYS, Simulation


@pytest.fixture(scope="module")
def folder():
    return str(bundled.folder())


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", list(SETTINGS))
def test_random_requests(folder, name, way):
    simulation = Simulation(folder, **SETTINGS[name], **WAYS[way], seed=len(name) + len(way))
    try:
        assert (type(simulation.scheduler) is GuidedAsyncScheduler) == way.startswith("ahead")
        simulation.run(steps=20_000, requests=70)
        if name.startswith("small cache"):
            assert simulation.preempted
        if "unlucky" not in way:
            assert simulation.wasted == simulation.discarded == 0
    finally:
        simulation.scheduler.shutdown()


def late(messages_of):
    """The worker's messages arrive with the output of the next step."""
    waiting = [{}]

    def wrong(output):
        waiting.append(messages_of(output))
        return waiting.pop(0)

    return wrong


def rewind(self, names, step):
    for request in self.present(names):
        request.num_computed_tokens -= 1
        request.num_output_placeholders = max(0, request.num_output_placeholders - 1)


def deliver(self, request, timestamp, drop_stale_output=False):
    group = self.groups.of(request.request_id)
    AsyncScheduler._preempt_request(self, request, timestamp, drop_stale_output)
    if group is not None:
        self.engine.incomplete.add(group.name)


def run_on(must_wait):
    """A part of a group that wrote without the rest is scheduled again before the scheduler knows."""

    def wrong(self, request):
        members = [request, *self._engine.others(request)]
        differs = len({one.num_output_placeholders for one in members}) > 1
        return must_wait(self, request) and not differs

    return wrong


def still_ahead(self, names, step):
    for request in self.present(names):
        request.num_computed_tokens -= 1


RUN_ON = (Admission, "must_wait", run_on(Admission.must_wait))
FAULTS = {
    "nothing waits for steps in flight": ("ahead", (Admission, "must_wait", lambda self, request: False)),
    "messages come late": ("in turn", (step_result, "messages_of", late(step_result.messages_of))),
    "discarded tokens stay in flight": ("ahead, unlucky", (EngineRequests, "take_back", still_ahead)),
    "steps in flight are not cancelled": ("ahead, unlucky", RUN_ON, (EngineRequests, "take_back", rewind)),
    "steps in flight write after a preemption": ("ahead, unlucky", (GuidedScheduler, "_preempt_request", deliver)),
    "places are given to more adapters than fit": ("adapters", (Admission, "adapters", lambda *_: set())),
    "no token is discarded": ("two stages, unlucky", (EngineRequests, "take_back", lambda *_: None)),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_are_found(folder, monkeypatch, fault):
    way, *places = FAULTS[fault]
    for place in places:
        monkeypatch.setattr(*place)
    with pytest.raises((AssertionError, IndexError)):
        run_seeds(folder, way, 6)


def test_steps_in_flight_are_cancelled(folder, monkeypatch):
    monkeypatch.setattr(*RUN_ON)
    run_seeds(folder, "ahead, unlucky", 2)


def run_seeds(folder, way, seeds):
    if way == "adapters":
        for seed in range(seeds):
            Simulation(folder, **SETTINGS["two adapters"], seed=seed).run(steps=300)
        return
    for seed in range(seeds):
        for name in ("roomy", "chunked, caching", "small cache"):
            simulation = Simulation(folder, **SETTINGS[name], **WAYS[way], seed=seed)
            simulation.run(steps=300)
            if "unlucky" not in way:
                assert simulation.wasted == simulation.discarded == 0


def test_what_cannot_be_guided_ends_with_an_error(folder):
    simulation = Simulation(folder, **SETTINGS["roomy"])
    try:
        simulation.add("in instalments", 5, 6, CFG(1.5), (1,), False, resumable=True)
        simulation.add("fine", 5, 6, CFG(1.5), (1,), False)
        for _ in range(20):
            simulation.step()
            if not simulation.scheduler.requests:
                break
        assert simulation.finished["in instalments"].finish_reason.name == "ERROR"
        assert simulation.answers["in instalments"] == []
        assert len(simulation.answers["fine"]) == 6
        simulation.check_nothing_left()
    finally:
        simulation.scheduler.shutdown()


@pytest.mark.parametrize("way", ["in turn", "ahead", "two stages"])
def test_a_prefix_cache_can_be_reset_under_load(folder, way):
    simulation = Simulation(folder, **SETTINGS["caching"], **WAYS[way])
    try:
        for number in range(12):
            simulation.add(f"r{number}", 9, 12, CFG(1.5) if number % 2 else None, (5, 5, 1)[: number % 4], False)
        for turn in range(200):
            simulation.step()
            if turn in (3, 8):
                assert simulation.scheduler.reset_prefix_cache(reset_running_requests=True)
            if not simulation.scheduler.has_requests() and not simulation.queue:
                break
        simulation.check_answers()
        simulation.check_nothing_left()
        assert simulation.wasted == 0
    finally:
        simulation.scheduler.shutdown()
