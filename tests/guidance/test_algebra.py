"""Arithmetic on log-probabilities against plain loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from textguide.guidance import (
    ACFG,
    APG,
    CAIF,
    CFG,
    NAG,
    AnnealedCFG,
    BetaCFG,
    ContrastiveDecoding,
    DExperts,
    Guidance,
    LMGuidance,
    Step,
    algebra,
)
from textguide.step.guided_step import combine_branches, guided_log_probs

INF = math.inf
# Scores of tokens; −inf forbids one.
SCORES = st.one_of(st.floats(-30, 30), st.just(-INF))


@st.composite
def distributions(draw: st.DrawFn, branches: int = 2) -> Tensor:
    """Normalised float64 log-probabilities (branches, V), each with at least one allowed token."""
    size = draw(st.integers(1, 8))
    rows = []
    for _ in range(branches):
        row = draw(st.lists(SCORES, min_size=size, max_size=size))
        row[draw(st.integers(0, size - 1))] = draw(st.floats(-5, 5))
        rows.append(row)
    return torch.log_softmax(torch.tensor(rows, dtype=torch.float64), -1)


def mixed(cond: float, uncond: float, scale: float) -> float:
    if cond == -INF or uncond == -INF:
        return cond
    return uncond + scale * (cond - uncond)


@given(distributions(), st.floats(-10, 10))
def test_extrapolate_equals_a_loop(logp: Tensor, scale: float) -> None:
    cond, uncond = logp.tolist()
    expected = [mixed(c, u, scale) for c, u in zip(cond, uncond, strict=True)]
    found = combine_branches(CFG(scale), logp[:, None], Step())[0].tolist()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(distributions())
def test_scale_one_is_cond_to_the_bit(logp: Tensor) -> None:
    logp = logp.float().clamp(min=-50.0)
    assert torch.equal(algebra.extrapolate(logp[0], logp[1], 1.0), logp[0])
    ones = torch.ones_like(logp[0])
    assert torch.equal(algebra.extrapolate(logp[0], logp[1], ones), logp[0])


def test_a_scale_a_row() -> None:
    cond, uncond = torch.log_softmax(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), -1)
    scales = torch.tensor([[1.0], [0.0], [2.5]])
    together = algebra.extrapolate(cond, uncond, scales)
    for row, scale in enumerate([1.0, 0.0, 2.5]):
        torch.testing.assert_close(together[row], algebra.extrapolate(cond[row], uncond[row], scale))


def test_extrapolate_leaves_its_input_alone() -> None:
    cond, uncond = torch.randn(2, 4)
    before = cond.clone(), uncond.clone()
    algebra.extrapolate(cond, uncond, 3.0)
    assert torch.equal(cond, before[0])
    assert torch.equal(uncond, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_log_softmax_is_float32(dtype: torch.dtype) -> None:
    logits = (torch.randn(2, 50, generator=torch.Generator().manual_seed(1)) * 20).to(dtype)
    logits[0, 3] = -INF
    logp = algebra.log_softmax(logits)
    assert logp.dtype == torch.float32
    # The arithmetic is done in float32 too, not in the input's dtype and cast afterwards.
    torch.testing.assert_close(logp, torch.log_softmax(logits.double(), -1).float(), atol=1e-5, rtol=1e-6)
    assert logp[0, 3] == -INF


def kl_loop(p: list[float], q: list[float]) -> float:
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a == -INF:
            continue
        if b == -INF:
            return INF
        total += math.exp(a) * (a - b)
    return total


@given(distributions())
def test_kl_equals_a_loop(logp: Tensor) -> None:
    value = float(algebra.kl_divergence(logp[0], logp[1]))
    expected = kl_loop(*logp.tolist())
    assert value == expected or value == pytest.approx(max(expected, 0.0), rel=1e-9, abs=1e-12)
    assert value >= 0
    assert float(algebra.kl_divergence(logp[0], logp[0])) == 0.0


@given(distributions())
def test_kl_in_float32_is_never_negative_or_nan(logp: Tensor) -> None:
    p, q = logp.float()
    for value in (algebra.kl_divergence(p, q), algebra.kl_divergence(p, p)):
        assert value >= 0
    assert algebra.kl_divergence(p, p) == 0


def test_kl_of_forbidden_tokens() -> None:
    half = math.log(0.5)
    p = torch.tensor([[half, half, -INF], [half, -INF, half], [0.0, -INF, -INF]])
    q = torch.tensor([[half, -INF, half], [half, -INF, half], [half, half, -INF]])
    assert algebra.kl_divergence(p, q).tolist() == pytest.approx([INF, 0.0, math.log(2)])


def test_kl_where_a_probability_is_too_small_for_its_dtype() -> None:
    # exp(−200) is 0 in float32, and 0 · inf would be a NaN.
    p = torch.tensor([0.0, -200.0])
    assert algebra.kl_divergence(p, torch.tensor([0.0, -INF])) == INF
    assert algebra.kl_divergence(p, torch.tensor([0.0, -300.0])) == 0.0


def test_kl_keeps_leading_dimensions() -> None:
    p, q = torch.log_softmax(torch.randn(2, 3, 4, 7, dtype=torch.float64), -1)
    value = algebra.kl_divergence(p, q)
    assert value.shape == (3, 4)
    assert float(value[1, 2]) == pytest.approx(kl_loop(p[1, 2].tolist(), q[1, 2].tolist()))


@given(distributions(branches=1))
def test_entropy_equals_a_loop(logp: Tensor) -> None:
    expected = -sum(math.exp(x) * x for x in logp[0].tolist() if x != -INF)
    assert float(algebra.entropy(logp[0])) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert algebra.entropy(logp).shape == (1,)


def test_entropy_of_known_distributions() -> None:
    logp = torch.tensor([[0.0, -INF, -INF, -INF], [-math.log(4)] * 4, [math.log(0.5), math.log(0.5), -INF, -INF]])
    assert algebra.entropy(logp).tolist() == pytest.approx([0.0, math.log(4), math.log(2)])


@given(distributions(branches=1), st.floats(0.01, 1.0))
def test_plausibility_equals_a_loop(logp: Tensor, alpha: float) -> None:
    row = logp[0].tolist()
    top = max(map(math.exp, row))
    mask = algebra.plausibility_mask(logp[0], alpha).tolist()
    for x, kept in zip(row, mask, strict=True):
        share = math.exp(x) / top
        if not math.isclose(share, alpha, rel_tol=1e-9):  # on the edge rounding decides
            assert kept is (share > alpha)
    assert mask[row.index(max(row))] is True


def test_plausibility_by_hand() -> None:
    logp = torch.log(torch.tensor([[0.5, 0.3, 0.06, 0.04, 0.1, 0.0]]))
    assert algebra.plausibility_mask(logp, 0.1).tolist() == [[True, True, True, False, True, False]]
    assert algebra.plausibility_mask(logp, 1.0).tolist() == [[True, False, False, False, False, False]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: CFG(3e38),
        lambda: CFG(-1.1e6),
        lambda: CFG(1.5, max_scale=1e7),
        lambda: CFG(1.5, schedule="clamp-linear:1e30"),
        lambda: ACFG(1e20),
        lambda: APG(2.0, parallel=1e9),
        lambda: AnnealedCFG(2.0, line=[(0, 1e9)]),
        lambda: DExperts(1e9),
        lambda: ContrastiveDecoding(beta=1e9),
        lambda: LMGuidance(1e9),
        lambda: CAIF("sentiment", "positive", 1e9),
    ],
)
def test_factors_that_leave_float32_are_refused(make: Callable[[], Guidance]) -> None:
    with pytest.raises(ValueError, match=r"is outside ±1e\+06|must contain pairs|at most 1000"):
        make()


def test_the_largest_factor_stays_in_float32() -> None:
    logp = (50 * torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    for guidance in (CFG(1e6, schedule="linear"), CFG(-1e6), APG(1e6), NAG(1e6), AnnealedCFG(1e6), BetaCFG(1e6)):
        for progress in (0.1, 0.5, 1.0):
            guided = guided_log_probs(guidance, logp, Step(progress))
            assert torch.isfinite(guided).all()
