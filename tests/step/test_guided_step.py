"""One guided step: every branch of the function against plain loops, and the −inf rule around every rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from textguide.guidance import (
    APG,
    CFG,
    Branch,
    BranchGuidance,
    Contrast,
    ContrastiveDecoding,
    ExpertEnsemble,
    Formula,
    LMGuidance,
    Step,
    TokenPrior,
)
from textguide.guidance.algebra import log_softmax
from textguide.step.guided_step import (
    combine_branches,
    compare,
    guided_groups,
    guided_log_probs,
    guided_step,
    refuse_invalid,
)

from ..guidance import oracles

oracles.collect()

INF = math.inf


@dataclass(frozen=True)
class ZeroStar(Contrast):
    """CFG-Zero*, ``s·lu + γ (lc − s·lu)`` with the scale s of the projection of lc on lu: no guard against −inf."""

    eager: bool = field(default=True, kw_only=True)

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        cond, uncond = logp
        assert torch.isfinite(logp).all()
        share = (cond * uncond).sum(-1, keepdim=True) / uncond.square().sum(-1, keepdim=True)
        return share * uncond + scale * (cond - share * uncond)


def logits(branches: int = 2, rows: int = 3, size: int = 11, seed: int = 0) -> Tensor:
    return 3 * torch.randn(branches, rows, size, generator=torch.Generator().manual_seed(seed))


def test_plain_rows_keep_their_bits() -> None:
    cond = logits()[0]
    outcome = guided_step(cond, None, None, Step())
    assert torch.equal(outcome.scores, cond)
    assert outcome.scores.data_ptr() != cond.data_ptr()  # processors may write into it
    assert (outcome.log_probs, outcome.kl, outcome.valid, outcome.branches) == (None,) * 4


def test_cfg_equals_the_loop_and_scores_are_shifted() -> None:
    cond, uncond = logits()
    outcome = guided_step(cond, uncond[None], CFG(2.0), Step())
    for row in range(3):
        lc, lu = (x[row].log_softmax(-1).tolist() for x in (cond, uncond))
        mixed = oracles.mixed(lc, lu, 2.0)
        total = math.log(sum(map(math.exp, mixed)))
        expected = [value - total for value in mixed]
        assert outcome.log_probs is not None
        assert outcome.log_probs[row].tolist() == pytest.approx(expected, abs=1e-5)
        shift = math.log(sum(map(math.exp, cond[row].tolist())))
        assert outcome.scores[row].tolist() == pytest.approx([value + shift for value in expected], abs=1e-5)
        kl = sum(math.exp(g) * (g - c) for g, c in zip(expected, lc, strict=True))
        assert outcome.kl is not None
        assert float(outcome.kl[row]) == pytest.approx(kl, abs=1e-5)
        assert outcome.changed is not None
        assert bool(outcome.changed[row]) == (expected.index(max(expected)) != lc.index(max(lc)))
    assert outcome.valid is not None
    assert outcome.valid.all()


@pytest.mark.parametrize("guidance", [CFG(1.7), CFG(1.7, renormalize=False), APG(2.0), ZeroStar(2.0)], ids=repr)
def test_normalised_input_gives_the_same(guidance: BranchGuidance) -> None:
    cond, uncond = logits()
    one = guided_step(cond, uncond[None], guidance, Step(0.5))
    other = guided_step(
        log_softmax(cond), log_softmax(uncond)[None], guidance, Step(0.5), normalised=True, measure=False
    )
    torch.testing.assert_close(one.log_probs, other.log_probs)
    torch.testing.assert_close(other.scores, other.log_probs)
    assert other.kl is None


def test_greedy_takes_the_same_token_without_normalising() -> None:
    cond, uncond = logits(rows=40)
    exact = guided_step(cond, uncond[None], CFG(2.5), Step(), measure=False)
    fast = guided_step(cond, uncond[None], CFG(2.5), Step(), measure=False, greedy=True)
    assert torch.equal(fast.scores.argmax(-1), exact.scores.argmax(-1))
    assert fast.log_probs is None
    # A rule with statistics over the vocabulary may depend on where logits lie: it is normalised as always.
    apg = guided_step(cond, uncond[None], APG(2.5), Step(), measure=False, greedy=True)
    assert apg.log_probs is not None
    # A token that one branch forbids is compared by its conditional log-probability, which logits are not.
    uncond[:, 3] = -INF
    cond[:, 3] = cond.amax(-1) + 0.1
    moved = cond + torch.arange(40)[:, None]
    slow = guided_step(cond, uncond[None], CFG(2.5), Step(), measure=False)
    greedy = guided_step(moved, uncond[None], CFG(2.5), Step(), measure=False, greedy=True)
    assert torch.equal(greedy.scores.argmax(-1), slow.scores.argmax(-1))


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("wrong", [math.nan, INF])
def test_rows_that_hold_no_distribution_are_reported(wrong: float, greedy: bool) -> None:
    cond, uncond = logits()
    cond[1, 2] = wrong
    for measure in (True, False) if not greedy else (False,):
        outcome = guided_step(cond, uncond[None], CFG(1.5), Step(), measure=measure, greedy=greedy)
        assert outcome.valid is not None
        assert outcome.valid.tolist() == [True, False, True]
    cond[1] = -INF
    outcome = guided_step(cond, uncond[None], CFG(1.5), Step())
    assert outcome.valid is not None
    assert outcome.valid.tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"CFG.* for row 1, 2; use a smaller scale"):
        refuse_invalid(CFG(1.5), [1, 2])


def test_without_renormalising_scores_are_the_sums_of_the_rule() -> None:
    cond, uncond = logits()
    outcome = guided_step(cond, uncond[None], CFG(2.0, renormalize=False), Step())
    torch.testing.assert_close(outcome.scores, 2 * log_softmax(cond) - log_softmax(uncond))


def test_weighing_normalises_and_returns_the_normaliser() -> None:
    cond, uncond = logits()
    raw = guided_step(cond, uncond[None], CFG(2.0, renormalize=False), Step()).log_probs
    weighed = guided_step(cond, uncond[None], CFG(2.0, renormalize=False), Step(), weigh=True)
    assert raw is not None
    assert weighed.normaliser is not None
    assert weighed.normaliser.dtype == torch.float64
    torch.testing.assert_close(weighed.normaliser, raw.double().logsumexp(-1))
    torch.testing.assert_close(weighed.log_probs, raw.log_softmax(-1))


def test_only_some_rows_are_guided() -> None:
    cond, uncond = logits()
    rows = torch.tensor([True, False, True])
    some = guided_step(cond, uncond[None, rows], CFG(2.0), Step(torch.full((2, 1), 0.5)), rows=rows)
    every = guided_step(cond, uncond[None], CFG(2.0), Step())
    assert some.log_probs is not None
    assert every.log_probs is not None
    torch.testing.assert_close(some.log_probs[rows], every.log_probs[rows])
    torch.testing.assert_close(some.log_probs[1], cond[1].log_softmax(-1))
    assert some.kl is not None
    assert float(some.kl[1]) == 0.0
    assert some.guided_rows(torch.tensor([True, True, False])).tolist() == [True, False, False]


def test_what_may_be_written_is_ruled_out_after_the_rule() -> None:
    cond, uncond = logits()
    allowed = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    outcome = guided_step(cond, uncond[None], APG(2.0), Step(), allowed=allowed)
    whole = guided_step(cond, uncond[None], APG(2.0), Step()).log_probs
    assert whole is not None
    torch.testing.assert_close(outcome.log_probs, whole.masked_fill(~allowed, -INF).log_softmax(-1))
    torch.testing.assert_close(outcome.cond, log_softmax(cond).masked_fill(~allowed, -INF).log_softmax(-1))


def test_reweighting_sees_the_combined_distribution_and_other_rows_keep_their_bits() -> None:
    cond, uncond = logits()
    seen = []

    def reweight(log_probs: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(log_probs.clone())
        return (2 * log_probs).log_softmax(-1), torch.tensor([True, False, True])

    guided = guided_step(cond, uncond[None], CFG(2.0, renormalize=False), Step(), reweight=reweight)
    torch.testing.assert_close(seen[0].exp().sum(-1), torch.ones(3))
    assert guided.log_probs is not None
    torch.testing.assert_close(guided.log_probs[0], (2 * seen[0][0]).log_softmax(-1))
    plain = guided_step(cond, None, None, Step(), reweight=reweight)
    assert torch.equal(plain.scores[1], cond[1])
    torch.testing.assert_close(plain.scores[0].log_softmax(-1), (2 * cond[0]).log_softmax(-1))
    assert plain.kl is not None
    assert float(plain.kl[1]) == 0.0 < float(plain.kl[0])


def test_measuring_against_other_logits() -> None:
    cond, uncond = logits()
    outcome = compare(guided_step(cond, uncond[None], CFG(2.0), Step(), measure=False), uncond)
    assert outcome.log_probs is not None
    expected = (outcome.log_probs.exp() * (outcome.log_probs - uncond.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(outcome.kl, expected, atol=1e-5, rtol=1e-5)


# -- rows with a guidance each ---------------------------------------------------------------------------------------


def test_groups_equal_single_rows() -> None:
    guidances: list[BranchGuidance] = [
        CFG(1.5), CFG(2.0, schedule="linear"), APG(2.0), CFG(1.5, renormalize=False), APG(3.0, start=0.2, stop=0.9),
        APG(2.0, parallel=0.5), ContrastiveDecoding(), Formula("2*cond - P('x')"), CFG(3.0, max_scale=2.5), CFG(1.0),
        Formula("2*cond - P('x')"), CFG(2.0, start=0.9), CFG(2.0, stop=0.5),
    ]  # fmt: skip
    steps = [Step(progress) for progress in torch.linspace(0, 1, len(guidances)).tolist()]
    cond, uncond = logits(rows=len(guidances))
    found: dict[int, Tensor] = {}
    calls = 0
    for members, outcome in guided_groups(cond, [row[None] for row in uncond], guidances, steps):
        calls += 1
        found |= dict(zip(members, outcome.scores, strict=True))
    assert sorted(found) == list(range(len(guidances)))
    # CFG, CFG with renormalize off, APG, APG with another parallel part, two more rules, and rows that are not active.
    assert calls == 7
    for row, (guidance, step) in enumerate(zip(guidances, steps, strict=True)):
        alone = guided_step(cond[row : row + 1], uncond[None, row : row + 1], guidance, step)
        torch.testing.assert_close(found[row].log_softmax(-1), alone.scores[0].log_softmax(-1))


# -- the −inf rule ---------------------------------------------------------------------------------------------------


def test_a_rule_without_guards_never_sees_minus_infinity() -> None:
    cond, uncond = (x.log_softmax(-1) for x in logits(rows=4))
    cond[:2, 4] = uncond[1:, 6] = cond[3, 9] = -INF
    cond[2, 4] = torch.finfo(torch.float32).min
    guided = combine_branches(ZeroStar(2.0), torch.stack([cond, uncond]), Step())
    for row in range(4):
        both = [t for t in range(11) if cond[row, t] > -1e30 and uncond[row, t] > -1e30]
        alone = ZeroStar(2.0).mix(torch.stack([cond, uncond])[:, row : row + 1, both], 2.0, Step())[0]
        torch.testing.assert_close(guided[row, both], alone)
        for token in set(range(11)) - set(both):
            assert float(guided[row, token]) == float(cond[row, token])
    assert not guided_log_probs(ZeroStar(2.0), torch.stack([cond, uncond]), Step()).isnan().any()


@pytest.mark.parametrize("name", sorted(oracles.SETTINGS) or ["cfg"])
def test_every_rule_is_the_rule_on_the_tokens_that_are_left(name: str) -> None:
    """Tokens that all branches forbid might as well not be in the vocabulary."""
    guidance = oracles.SETTINGS[name]
    if not isinstance(guidance, BranchGuidance):
        pytest.skip("it combines no branches")
    if isinstance(guidance, TokenPrior) and guidance.share > 0:
        pytest.skip("its prior belongs to one vocabulary")
    count = 1 + len(guidance.branches)
    logp = logits(count, rows=2, size=9).log_softmax(-1)
    zeros = torch.zeros(count, 2)
    step = Step(0.5, (0, 1), 2, likelihoods=zeros, class_log_probs=zeros)
    forbidden = torch.full((count, 2, 12), -INF)
    places = [0, 2, 3, 4, 6, 7, 8, 9, 11]
    forbidden[..., places] = logp
    found = guided_log_probs(guidance, forbidden, step)
    torch.testing.assert_close(found[:, places], guided_log_probs(guidance, logp, step))
    assert torch.isneginf(found[:, [1, 5, 10]]).all()


def test_a_mixture_adds_what_the_others_forbid() -> None:
    logp = logits().log_softmax(-1)
    logp[1, :, 3] = -INF
    ensemble = ExpertEnsemble(("other",), prior=(0.25, 0.75), updated=False)
    guided = guided_log_probs(ensemble, logp, Step())
    expected = (0.25 * logp[0].exp() + 0.75 * logp[1].exp()).log().log_softmax(-1)
    torch.testing.assert_close(guided, expected)
    logp[0, :, 3] = -INF
    assert torch.isneginf(guided_log_probs(ensemble, logp, Step())[:, 3]).all()


def test_a_factor_forbids() -> None:
    logp = logits(3).log_softmax(-1)
    logp[2, :, 5] = -INF
    guided = guided_log_probs(LMGuidance(1.0), logp, Step())
    assert torch.isneginf(guided[:, 5]).all()
    assert torch.isfinite(guided[:, [0, 1, 2, 3, 4, 6]]).all()


@dataclass(frozen=True)
class Unguarded(BranchGuidance):
    """Divides by the other branch: infinite if that is 0."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch(),)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        return logp[0] / (logp[1] - logp[1])


def test_a_broken_rule_is_seen() -> None:
    cond, uncond = logits()
    outcome = guided_step(cond, uncond[None], Unguarded(), Step())
    assert outcome.valid is not None
    assert not outcome.valid.any()
