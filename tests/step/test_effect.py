"""The report on what guidance did, against plain loops."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from textguide import CFG
from textguide.guidance import Branch, BranchGuidance, Step
from textguide.step.effect import Effect, EffectMeter, join, warn_if_none
from textguide.step.guided_step import StepOutcome, guided_step
from textguide.support.errors import GuidanceHadNoEffectWarning


def steps(count: int = 4, rows: int = 3, size: int = 9) -> list[tuple[Tensor, Tensor]]:
    """Guided and conditional distributions; some tokens are forbidden."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for _ in range(count):
        scores = torch.randn(2, rows, size, generator=generator) * 2
        scores[:, :, 4] = -math.inf
        guided, cond = torch.log_softmax(scores, -1)
        out.append((guided, cond))
    return out


def kl(p: list[float], q: list[float]) -> float:
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if a != -math.inf)


def loop(pairs: list[tuple[Tensor, Tensor]], keep: list[list[int]]) -> tuple[list[float], int]:
    kls, changed = [], 0
    for (guided, cond), rows in zip(pairs, keep, strict=True):
        for row in rows:
            g, c = guided[row].tolist(), cond[row].tolist()
            kls.append(kl(g, c))
            changed += g.index(max(g)) != c.index(max(c))
    return kls, changed


@dataclass(frozen=True)
class Given(BranchGuidance):
    """A rule whose scores are the log-probabilities of its branch."""

    renormalize = False

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch(same_prompt=True),)

    def combine(self, logp: torch.Tensor, step: Step) -> torch.Tensor:
        return logp[1]

    def factors(self, branches: int) -> tuple[int, ...]:
        return (1,)


def measured(guided: torch.Tensor, cond: torch.Tensor) -> StepOutcome:
    """A step that moved ``cond`` to ``guided``."""
    return guided_step(cond, guided[None], Given(), Step(), normalised=True)


def test_meter_equals_a_loop() -> None:
    pairs = steps()
    meter = EffectMeter(2, "cpu")
    for guided, cond in pairs:
        meter.add(measured(guided, cond))
    for unguided in (torch.ones(2), torch.tensor([1, 0, 1, 1, 0])):
        meter.add(guided_step(torch.zeros(len(unguided), 4), None, None, Step()), unguided.bool())
    kls, changed = loop(pairs, [[0, 1, 2]] * 4)
    assert changed > 0
    effect = meter.summary()
    assert effect.mean_kl == pytest.approx(sum(kls) / 12, abs=1e-5)
    assert effect.max_kl == pytest.approx(max(kls), abs=1e-5)
    assert effect.top_changed == pytest.approx(changed / 12)
    assert effect.guided_steps == 12
    assert effect.unguided_steps == 5
    assert effect.extra_passes == 24


def test_weights_leave_rows_out() -> None:
    pairs = steps()
    keep = [[0, 2], [1], [], [0, 1, 2]]
    meter = EffectMeter(1, "cpu")
    for (guided, cond), rows in zip(pairs, keep, strict=True):
        meter.add(measured(guided, cond), torch.tensor([row in rows for row in range(3)]))
    kls, changed = loop(pairs, keep)
    effect = meter.summary()
    assert effect.guided_steps == effect.extra_passes == 6
    assert effect.mean_kl == pytest.approx(sum(kls) / 6, abs=1e-5)
    assert effect.max_kl == pytest.approx(max(kls), abs=1e-5)
    assert effect.top_changed == pytest.approx(changed / 6)


def test_a_row_left_out_may_hold_anything() -> None:
    guided = torch.log_softmax(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), -1)
    cond = torch.tensor([[math.log(0.5)] * 2, [0.0, -math.inf]])
    meter = EffectMeter(1, "cpu")
    meter.add(measured(guided, cond), torch.tensor([True, False]))
    effect = meter.summary()
    assert effect.mean_kl == pytest.approx(kl(guided[0].tolist(), cond[0].tolist()), abs=1e-5)
    assert math.isfinite(effect.max_kl)


def test_unnormalised_distributions_are_measured_as_what_is_sampled() -> None:
    ((guided, cond),) = steps(1)
    exact, shifted = EffectMeter(1, "cpu"), EffectMeter(1, "cpu")
    exact.add(measured(guided, cond))
    shifted.add(measured(guided + 7.0, cond))
    assert shifted.summary().mean_kl == pytest.approx(exact.summary().mean_kl, abs=1e-5)


def test_summary_may_be_asked_for_at_any_time() -> None:
    (first, second) = steps(2)
    meter = EffectMeter(1, "cpu")
    assert meter.summary() == Effect()
    meter.add(measured(*first))
    before = meter.summary()
    assert meter.summary() == before
    meter.add(measured(*second))
    assert meter.summary().guided_steps == 6


def test_join_equals_one_meter_over_all() -> None:
    pairs = steps(6)
    whole, parts = EffectMeter(2, "cpu"), [EffectMeter(2, "cpu") for _ in range(3)]
    for number, (guided, cond) in enumerate(pairs):
        rows = slice(0, 1 + number % 3)
        for meter in (whole, parts[number // 2]):
            meter.add(measured(guided[rows], cond[rows]))
    for part, unguided in zip(parts, (1, 2, 3), strict=True):
        for meter in (part, whole):
            meter.add(guided_step(torch.zeros(unguided, 4), None, None, Step()), torch.ones(unguided).bool())
    joined, expected = join([part.summary() for part in parts]), whole.summary()
    for name, value in expected.to_dict().items():
        found = getattr(joined, name)
        assert found == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name


def test_join_of_nothing() -> None:
    assert join([]) == Effect()
    assert join([Effect(), Effect()]) == Effect()


def test_prints_one_line() -> None:
    assert str(Effect()) == "no guidance"
    assert str(Effect(unguided_steps=5)) == "no guidance"
    effect = Effect(0.1234, 2.5, 0.25, 40, 10, 40)
    assert str(effect) == (
        "KL 0.123 nats per token (largest 2.50), top token changed at 25% of 40 steps, 40 extra passes"
    )


def test_goes_to_json() -> None:
    effect = EffectMeter(1, "cpu").summary()
    assert Effect(**json.loads(json.dumps(effect.to_dict()))) == effect


def test_warns_where_guidance_did_nothing() -> None:
    with pytest.warns(GuidanceHadNoEffectWarning, match="no step fell into its window"):
        warn_if_none(Effect(unguided_steps=9), CFG(1.5))
    with pytest.warns(GuidanceHadNoEffectWarning, match=r"scale=1\.5.*same next-token distribution"):
        warn_if_none(Effect(guided_steps=9, max_kl=1e-7), CFG(1.5))


@pytest.mark.parametrize(
    ("effect", "guidance"),
    [(Effect(), None), (Effect(), CFG(1.0)), (Effect(1e-4, 1e-3, 0.0, guided_steps=9), CFG(1.5))],
)
def test_does_not_warn_otherwise(effect: Effect, guidance: CFG | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_none(effect, guidance)


@pytest.mark.parametrize(
    ("effect", "text"),
    [
        (Effect(inside="vector × 2 after layer 3", inside_steps=4, moved=0.256),
         "vector × 2 after layer 3 at 4 steps, hidden states moved by 26% of their length"),
        (Effect(0.1, 0.2, 0.5, 4, extra_passes=4, guided_positions=10),
         "KL 0.100 nats per position (largest 0.20), top token changed at 50% of 10 positions in 4 steps, "
         "4 extra passes"),
        (Effect(sampler="awrs", sampled_steps=7), "7 tokens drawn with awrs"),
    ],
)  # fmt: skip
def test_prints_every_kind_of_change(effect: Effect, text: str) -> None:
    assert str(effect) == text


def test_join_adds_changes_inside() -> None:
    one = Effect(inside="a vector", inside_steps=1, moved=0.4)
    two = Effect(inside="a vector", inside_steps=3, moved=0.2, sampler="awrs", sampled_steps=3)
    joined = join([one, two])
    assert joined.moved == pytest.approx(0.25)
    assert (joined.inside, joined.inside_steps, joined.sampler, joined.sampled_steps) == ("a vector", 4, "awrs", 3)


def test_reports_of_older_files_are_read() -> None:
    names = ("mean_kl", "max_kl", "top_changed", "guided_steps", "unguided_steps", "extra_passes", "reweighed_steps")
    assert Effect(**dict.fromkeys(names, 1)).guided_positions == 0
