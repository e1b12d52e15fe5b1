"""A-CFG's mathematics: which positions are masked again, the scale, the fields."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide import ACFG
from textguide.guidance import Guidance, Step, scale_from_weight
from textguide.guidance.acfg import Remasked, remask, remask_count
from textguide.guidance.places import PLACES
from textguide.guidance.spec import parse
from textguide.reference import diffusion
from textguide.step.guided_step import guided_log_probs


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 100))
def test_count_is_the_ceiling(filled: int, percent: int) -> None:
    found = remask_count(percent / 100, torch.tensor(filled))
    assert int(found) == math.ceil(Fraction(percent, 100) * filled)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=12), st.data())
def test_selection_is_the_oracles(cells: list[tuple[float, bool]], data: Any) -> None:
    ratio = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]))
    confidence = torch.tensor([[c for c, _ in cells]])
    filled = torch.tensor([[f for _, f in cells]])
    logps = [[math.log(c)] for c, _ in cells]
    expected = diffusion.remasked(logps, [j for j, (_, f) in enumerate(cells) if f], ratio)
    assert remask(confidence, filled, ratio)[0].nonzero()[:, 0].tolist() == expected


def test_combine_is_the_paper_with_w_plus_one() -> None:
    logp = torch.log_softmax(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), -1)
    found = guided_log_probs(ACFG(scale_from_weight(0.5)), logp, Step())
    expected = torch.log_softmax(logp[1] + 1.5 * (logp[0] - logp[1]), -1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_scale_over_progress() -> None:
    guidance = ACFG(3.0, schedule="linear", start=0.25)
    assert [guidance.scale_at(Step(s)) for s in (0.0, 0.25, 0.5, 1.0)] == [1.0, 2.0, 3.0, 5.0]
    found = guidance.scale_at(Step(torch.tensor([[0.0], [0.5]])))
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [[1.0], [3.0]]


def test_registered_and_neutral() -> None:
    guidance = ACFG(2.0, 0.5, "generated")
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert parse("acfg:scale=2,remask_ratio=0.5,remask_scope=generated") == guidance
    assert ACFG(1.0).is_neutral
    assert ACFG(2.0, 0.0).is_neutral
    assert not guidance.is_neutral


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remask_ratio": 1.2}, r"remask_ratio=1.2 must be a number in \[0, 1\]"),
        ({"remask_ratio": -0.1}, "remask_ratio=-0.1"),
        ({"remask_scope": "both"}, "remask_scope='both' must be one of all, generated, prompt"),
        ({"scale": float("nan")}, "scale=nan must be a finite number"),
        ({"schedule": "x"}, "schedule='x' is unknown"),
        ({"one_pass": 1}, "one_pass=1 must be True or False"),
        ({"start": 0.5, "stop": 0.2}, "start=0.5 and stop=0.2"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACFG(**fields)


def test_its_branch_is_a_canvas() -> None:
    guidance = ACFG(2.0, 0.5, "prompt", one_pass=True)
    (branch,) = guidance.branches
    assert branch.edit == Remasked(0.5, "prompt", True)
    assert [place.name for place in PLACES if place.reason(guidance) is None] == ["lm_eval", "diffusion"]
    with pytest.raises(ValueError, match=r"has no masks to fill; use textguide\.diffusion"):
        branch.edit.apply([5], None, lambda _: [])
