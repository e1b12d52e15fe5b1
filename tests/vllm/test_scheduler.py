"""The guided scheduler under load, without a model: nothing is written alone, nothing is left behind, nothing hangs."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

from textguide.guidance import APG, CFG, Formula
from textguide.models import bundled

from .simulation import BLOCK, Simulation

GUIDANCES = (
    None,
    None,
    CFG(1.5),
    CFG(2.0, schedule="linear"),
    CFG(3.0, stop=0.4),
    APG(2.0, start=0.3, stop=0.7),
    Formula("2*cond"),
    Formula("2*cond - 0.5*last - 0.5*P('x')"),
    Formula("2*cond - 0.5*last - 0.25*P('x') - 0.25*P('y')"),
)
SETTINGS = {
    "roomy": {"budget": 200, "places": 16, "blocks": 400, "longest": 60, "caching": False},
    "chunked": {"budget": 16, "places": 12, "blocks": 400, "longest": 60, "caching": False},
    "caching": {"budget": 200, "places": 16, "blocks": 400, "longest": 60, "caching": True},
    "chunked, caching": {"budget": 12, "places": 8, "blocks": 200, "longest": 60, "caching": True},
    "small cache": {"budget": 24, "places": 12, "blocks": 36, "longest": 60, "caching": False},
    "small cache, caching": {"budget": 40, "places": 12, "blocks": 40, "longest": 60, "caching": True},
    "two places": {"budget": 9, "places": 2, "blocks": 33, "longest": 60, "caching": True},
    "three places": {"budget": 5, "places": 3, "blocks": 33, "longest": 60, "caching": False},
}


@pytest.fixture(scope="module")
def folder():
    return str(bundled.folder())


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_thousand_moves(folder, name, seed):
    settings = SETTINGS[name]
    simulation = Simulation(folder, **settings, seed=seed)
    draw = random.Random(seed)
    born, idle = 0, 0
    try:
        while born < 300 or simulation.scheduler.requests:
            if born < 300 and draw.random() < 0.5:
                for _ in range(draw.choice((1, 1, 2, 6))):
                    guidance = draw.choice(GUIDANCES)
                    prompt, tokens = draw.choice((1, 2, 5, 9, 30)), draw.choice((1, 2, 6, 20))
                    count = 0 if guidance is None else min(len(guidance.branches), settings["places"] - 1)
                    branches = [draw.choice((1, 1, 1, 4, 9, 25)) for _ in range(count)]
                    # A group has to fit the cache by itself.
                    while sum(-(-min(60, n + tokens) // BLOCK) for n in (prompt, *branches)) >= settings["blocks"]:
                        branches.pop()
                    seeded = draw.random() < 0.3 and prompt <= settings["budget"] // 2
                    simulation.add(f"r{born}", prompt, tokens, guidance, tuple(branches), seeded)
                    born += 1
            if draw.random() < 0.05:
                alive = [one for one in simulation.asked if one not in simulation.finished]
                if alive:
                    simulation.abort(draw.choice(alive))
            idle = 0 if simulation.step() or not simulation.scheduler.requests else idle + 1
            assert idle < 20, simulation.describe()
            assert simulation.steps < 20_000
        simulation.step()
        simulation.check_answers()
        simulation.check_nothing_left()
        if "cache" in name and "small" in name:
            assert simulation.preempted
        assert simulation.wasted == 0
    finally:
        simulation.scheduler.shutdown()


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


def test_a_prefix_cache_can_be_reset_under_load(folder):
    simulation = Simulation(folder, **SETTINGS["caching"])
    try:
        for number in range(12):
            simulation.add(f"r{number}", 9, 12, CFG(1.5) if number % 2 else None, (5, 5, 1)[: number % 4], False)
        for turn in range(200):
            simulation.step()
            if turn in (3, 8):
                assert simulation.scheduler.reset_prefix_cache(reset_running_requests=True)
            if not simulation.scheduler.requests:
                break
        simulation.check_answers()
        simulation.check_nothing_left()
        assert simulation.wasted == 0
    finally:
        simulation.scheduler.shutdown()
