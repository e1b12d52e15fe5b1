"""Effective sample size, resampling, evidence, expectations."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.reference import smc as reference
from textguide.smc import particles
from textguide.smc.population import Corrected

from .statistics import chi_square

WEIGHTS = st.lists(st.one_of(st.floats(-30, 5), st.just(-math.inf)), min_size=1, max_size=9).filter(
    lambda w: max(w) > -math.inf
)


@settings(max_examples=80, deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 999))
def test_against_the_oracles(weights: list[float], seed: int) -> None:
    log_weights = torch.tensor([weights], dtype=torch.float64)
    assert particles.effective_sample_size(log_weights).item() == pytest.approx(reference.ess(weights))
    assert particles.log_evidence(log_weights).item() == pytest.approx(reference.log_mean_exp(weights))
    rng = random.Random(seed)
    count = len(weights)
    uniforms = [rng.random() for _ in range(count)]
    points = [(i + u) / count for i, u in enumerate(uniforms)]
    picked = particles.stratified(log_weights, torch.tensor([uniforms], dtype=torch.float64))[0].tolist()
    assert picked == reference.resampled(weights, points)
    points = [(i + uniforms[0]) / count for i in range(count)]
    picked = particles.systematic(log_weights, torch.tensor([uniforms[:1]], dtype=torch.float64))[0].tolist()
    assert picked == reference.resampled(weights, points)


@pytest.mark.parametrize("scheme", particles.RESAMPLING)
def test_resampling_is_unbiased_and_low_in_variance(scheme: str) -> None:
    weights = [0.05, 0.5, 0.0, 0.25, 0.2]
    log_weights = torch.tensor(weights, dtype=torch.float64).log().expand(2000, -1).clone()
    ancestors = particles.resample(log_weights, torch.Generator().manual_seed(0), scheme)
    counts = torch.stack([(ancestors == k).sum(-1) for k in range(5)], -1).double()
    for k, weight in enumerate(weights):
        expected = 5 * weight
        assert counts[:, k].mean().item() == pytest.approx(expected, abs=0.06)
        assert (counts[:, k] - expected).abs().max() < (1 if scheme == "systematic" else 2)
    assert not bool((ancestors == 2).any())
    # Multinomial resampling would spread more.
    assert counts[:, 1].var() < 5 * 0.25


def test_survivors_keep_their_places() -> None:
    ancestors = torch.tensor([[0, 0, 3, 3], [1, 2, 3, 0]])
    kept = particles.in_place(ancestors)
    assert kept[0].sort().values.tolist() == [0, 0, 3, 3]
    assert kept[0, 0] == 0
    assert kept[0, 3] == 3
    assert kept[1].tolist() == [0, 1, 2, 3]


def test_dead_particles_have_no_weight_and_dead_populations_no_distribution() -> None:
    dead = torch.full((2, 3), -math.inf, dtype=torch.float64)
    dead[0, 1] = -700.0
    assert particles.effective_sample_size(dead).tolist() == [1.0, 0.0]
    assert particles.normalized(dead).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert particles.log_evidence(dead).tolist() == [pytest.approx(-700 - math.log(3)), -math.inf]
    assert particles.expectation(dead[0], [math.nan, 4.0, math.nan]) == 4.0
    assert particles.weighted_sample(dead[0], "abc") == "b"
    for call in (particles.expectation, particles.weighted_sample):
        with pytest.raises(ValueError, match="every particle is dead"):
            call(dead[1], [1.0, 2.0, 3.0])


def test_copies_of_one_particle_are_one_ancestor() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Corrected(8, 4, 0.9, "stratified", generator, frozenset())
    assert rows.outcome().ancestors.tolist() == [4, 4]
    rows.log_weights[:4] = torch.tensor([-60.0, -60.0, 0.0, -60.0])  # the second population keeps equal weights
    copy = rows.fork()
    assert rows.resample().tolist() == [2, 2, 2, 2, 4, 5, 6, 7]
    assert rows.outcome().ess.tolist() == [4.0, 4.0]  # only weights are compared
    assert rows.outcome().ancestors.tolist() == [1, 4]
    assert copy.outcome().ancestors.tolist() == [4, 4]
    rows.log_weights[4:6] = -math.inf
    assert rows.outcome().ancestors.tolist() == [1, 2]


def test_weighted_samples_follow_the_weights() -> None:
    log_weights = torch.tensor([0.1, 0.6, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = [particles.weighted_sample(log_weights, "abc", generator) for _ in range(1000)]
    assert chi_square({c: drawn.count(c) for c in "abc"}, {"a": 0.1, "b": 0.6, "c": 0.3}, 1000) > 1e-3
    assert particles.expectation(log_weights, [1.0, 2.0, 3.0]) == pytest.approx(2.2)
