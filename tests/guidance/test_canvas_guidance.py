"""What guidances share that ask a predictor about canvases: fields, identity, places; runs are in tests/diffusion."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from textguide import CAIF, CFG
from textguide.guidance import TFG, Composed, DiscreteClassifier, Guidance, ParticleGibbs, Step, as_guidance, split
from textguide.guidance.places import PLACES, check_place
from textguide.guidance.spec import parse

KINDS = (DiscreteClassifier, TFG, ParticleGibbs)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        *((kind, {"predictor": 3}, "predictor=3 does not evaluate texts") for kind in KINDS),
        *((kind, {"predictor": " "}, "predictor=' ' does not evaluate texts") for kind in KINDS),
        *((kind, {"target": True}, "target=True must be the name") for kind in KINDS),
        *((kind, {"weight": math.nan}, "weight=nan") for kind in KINDS),
        *((kind, {"include_prompt": 1}, "include_prompt=1") for kind in KINDS),
        *((kind, {"schedule": "sudden"}, "schedule='sudden'") for kind in KINDS[:2]),
        *((kind, {"start": 0.6, "stop": 0.5}, r"start=0\.6 and stop=0\.5") for kind in KINDS[:2]),
        (DiscreteClassifier, {"taylor": "yes"}, "taylor='yes'"),
        (DiscreteClassifier, {"top_k": 0}, "top_k=0"),
        (TFG, {"samples": -1}, "samples=-1"),
        (TFG, {"mean_strength": math.inf}, "mean_strength=inf"),
        (TFG, {"iterations": 0}, "iterations=0"),
        (ParticleGibbs, {"particles": 1}, "particles=1"),
        (ParticleGibbs, {"iterations": 0}, "iterations=0"),
        (ParticleGibbs, {"ess_threshold": 1.5}, r"ess_threshold=1\.5 must be a number in"),
    ],
)
def test_bad_fields_are_named(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"predictor": "sentiment", "target": "positive", **fields})


@pytest.mark.parametrize("kind", KINDS)
def test_identity_and_text(kind: Any) -> None:
    guidance = kind("sentiment", "positive", 2, include_prompt=False)
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert parse(f"{kind.name}:predictor=sentiment,target=positive,weight=2,include_prompt=false") == guidance
    assert guidance.fingerprint != kind("sentiment", "negative", 2, include_prompt=False).fingerprint
    assert kind(test_neutral, weight=1.0).to_dict()["predictor"].startswith("python:")
    both = as_guidance([guidance, CFG(1.5), CAIF("sentiment", "positive")])
    assert isinstance(both, Composed)
    assert split(both).canvas == guidance
    with pytest.raises(ValueError, match="two guidances with a predictor of canvases"):
        as_guidance([guidance, TFG("sentiment", "positive")])


def test_neutral() -> None:
    for kind in KINDS:
        assert kind("sentiment", "positive", 0).is_neutral
        assert not kind("sentiment", "positive").is_neutral
    assert TFG("sentiment", "positive", samples=0).is_neutral
    assert not TFG("sentiment", "positive", 0.0, mean_strength=1.0).is_neutral
    assert split(as_guidance([CFG(1.0), TFG("sentiment", "positive", 0)])) == split(None)


def test_weight_over_progress() -> None:
    guidance = TFG("sentiment", "positive", 4, schedule="linear", start=0.25, stop=0.75)
    assert guidance.is_timed
    assert [guidance.share_at(Step(s)) for s in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 0.0]
    at = guidance.share_at(Step(torch.tensor([[0.0], [0.5]])))
    assert isinstance(at, torch.Tensor)
    assert at[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_they_act_on_canvases_alone(kind: Any) -> None:
    guidance = kind("sentiment", "positive")
    assert [place.name for place in PLACES if place.reason(guidance) is None] == ["lm_eval", "diffusion"]
    with pytest.raises(ValueError, match=r"no masks to fill; use textguide\.diffusion\.generate"):
        check_place(guidance, "generate")
