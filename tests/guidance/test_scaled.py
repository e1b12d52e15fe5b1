"""What guidances with a scale share: a step means the same wherever its progress comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from textguide.guidance import CFG, BranchGuidance, Contrast, CorrSynth, DynamicCFG, Scaled, Step, algebra, schedules
from textguide.step.guided_step import guided_log_probs

from . import oracles

oracles.collect()
SCHEDULES = ("constant", "linear", "cosine", "cosine-decreasing", "v-shape", "sine", "clamp-linear:0.5")
PROGRESS = sorted({float(Fraction(i, horizon)) for horizon in (7, 8, 9, 10, 31) for i in range(horizon + 1)})


@dataclass(frozen=True)
class TwoKnobs(Contrast):
    """A rule whose second knob still acts at γ = 1, and that says no more than its formula."""

    push: float = field(default=0.5, kw_only=True)

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        return algebra.extrapolate(logp[0], logp[1], scale) * (1.0 + self.push)


def guidances() -> Iterator[tuple[str, BranchGuidance]]:
    """Every setting of every method, and with a scale every schedule, window and γ = 1 of it."""
    for name, found in {**oracles.SETTINGS, "cfg": CFG(1.5), "two-knobs": TwoKnobs(1.5)}.items():
        assert isinstance(found, BranchGuidance)
        yield name, found
        if isinstance(found, Scaled):
            for schedule in SCHEDULES:
                yield f"{name}-{schedule}", replace(found, schedule=schedule)
            yield f"{name}-at-1", replace(found, scale=1.0)
            yield f"{name}-window", replace(found, start=1 / 3, stop=0.6, schedule="linear", max_scale=None)
            yield f"{name}-bounds", replace(found, min_scale=1.0, max_scale=1.5, schedule="linear")


CASES = dict(guidances())


def log_probs(branches: int) -> Tensor:
    logits = 2 * torch.randn(branches + 1, len(PROGRESS), 40, generator=torch.Generator().manual_seed(1))
    logits[0, :, 3] = float("-inf")
    logits[-1, :, 7] = float("-inf")
    return logits.log_softmax(-1)


def told(guidance: Any, progress: Any, rows: slice = slice(None)) -> Step:
    """A step with all that a guidance may ask for, of some of as many rows as ``PROGRESS`` has."""
    generator = torch.Generator().manual_seed(2)
    size = (1 + len(guidance.branches), len(PROGRESS))
    likelihoods = -torch.rand(*size, generator=generator).double()
    class_log_probs = -torch.rand(len(getattr(guidance, "classes", ())), len(PROGRESS), generator=generator)
    return Step(progress, likelihoods=likelihoods[:, rows], class_log_probs=class_log_probs[:, rows])


@pytest.mark.parametrize("case", CASES)
def test_a_step_means_the_same_alone_and_among_others(case: str) -> None:
    """Generation asks at one progress, scoring at many; where ``active`` says no, the rule leaves no trace."""
    guidance = CASES[case]
    logp = log_probs(len(guidance.branches))
    together = guided_log_probs(guidance, logp, told(guidance, torch.tensor(PROGRESS)[:, None]))
    for row, progress in enumerate(PROGRESS):
        step = told(guidance, progress, slice(row, row + 1))
        alone = guided_log_probs(guidance, logp[:, row : row + 1], step)[0]
        torch.testing.assert_close(together[row], alone, atol=2e-5, rtol=2e-5)
        if not guidance.active(step):
            plain = algebra.log_softmax(logp[0, row]) if guidance.renormalize else logp[0, row]
            assert torch.equal(alone, plain)
            assert torch.equal(together[row], plain)
        assert not (guidance.is_neutral and guidance.active(step))


@pytest.mark.parametrize("case", CASES)
def test_the_lowest_number_stands_for_a_token_that_cannot_come(case: str) -> None:
    """Some models write it in place of −inf: two of them must not leave float32, nor their difference be a score."""
    guidance = CASES[case]
    lowest, forbidden = log_probs(len(guidance.branches)), log_probs(len(guidance.branches))
    lowest[:, :, 9:13], forbidden[:, :, 9:13] = torch.finfo(torch.float32).min, float("-inf")
    lowest[-1, :, 5:8], forbidden[-1, :, 5:8] = torch.finfo(torch.float32).min, float("-inf")
    step = told(guidance, 0.4)
    expected = guided_log_probs(guidance, forbidden.log_softmax(-1), step).softmax(-1)
    torch.testing.assert_close(guided_log_probs(guidance, lowest.log_softmax(-1), step).softmax(-1), expected)
    assert not expected.isnan().any()


def test_a_second_knob_is_not_off_at_scale_one() -> None:
    guidance = TwoKnobs(1.0)
    assert not guidance.is_neutral
    assert guidance.active(Step(0.5))
    logp = log_probs(1)
    both = (logp > algebra.FORBIDDEN).all(0)  # what one branch forbids keeps its conditional log-probability
    expected = algebra.log_softmax(torch.where(both, 1.5 * logp[0], logp[0]))
    torch.testing.assert_close(guided_log_probs(guidance, logp, Step(0.5)), expected)
    torch.testing.assert_close(guided_log_probs(guidance, logp, Step(torch.full((len(PROGRESS), 1), 0.5))), expected)
    assert not replace(guidance, start=0.6).active(Step(0.5))


@pytest.mark.parametrize("stop", [1 / 3, 0.33333333, 0.333333343])
def test_a_window_closes_at_the_same_token_in_both(stop: float) -> None:
    """Progress 1/3 is another number in float32; what lies within a millionth of a corner is inside."""
    logp = log_probs(1)[:, :1]
    guidance = CFG(2.0, stop=stop)
    alone = guided_log_probs(guidance, logp, Step.at(3, 10))
    assert torch.equal(guided_log_probs(guidance, logp, Step(torch.tensor([[3 / 9]]))), alone)
    assert not torch.equal(alone, logp[0])


def test_the_grid_is_cut_at_the_same_value_in_both() -> None:
    # γ(1/3) of a cosine is 2 up to rounding, and 2 is a value of the grid.
    guidance = DynamicCFG(3.0, scales=[2.0], budget=1e9, schedule="cosine")
    logp = log_probs(1)[:, :1]
    alone = guided_log_probs(guidance, logp, Step(1 / 3))
    torch.testing.assert_close(guided_log_probs(guidance, logp, Step(torch.tensor([[1 / 3]]))), alone)
    torch.testing.assert_close(alone, guided_log_probs(CFG(2.0), logp, Step()))


def test_rows_at_different_places_of_a_group() -> None:
    guidance: Any = CorrSynth(1.7, schedule="linear")
    logp = log_probs(0)[:, :2]
    step = Step(torch.tensor([[0.25], [0.75]]), (0, 1), 2)
    together = guided_log_probs(guidance, logp, step)
    for row, progress in enumerate((0.25, 0.75)):
        torch.testing.assert_close(together[row], guided_log_probs(guidance, logp, Step(progress, (0, 1), 2))[row])


@pytest.mark.parametrize("bounds", [{}, {"min_scale": 0.7}, {"max_scale": 1.2}, {"max_scale": 1.0}])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 0.1, 0.7, 1.0, 1.1, 1.5, 3.3, 1e6])
def test_a_fixed_scale_is_the_schedule_s_value_bit_for_bit(scale: float, bounds: dict[str, float]) -> None:
    guidance = CFG(scale, **bounds)  # type: ignore[arg-type]
    low, high = bounds.get("min_scale", float("-inf")), bounds.get("max_scale", float("inf"))
    for progress in PROGRESS:
        expected = min(max(schedules.scale_at("constant", scale, progress), low), high)
        assert guidance.scale_at(Step(progress)) == expected
        assert guidance.active(Step(progress)) == (expected != 1.0)
