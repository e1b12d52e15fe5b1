"""CAIF: its fields, its identity, and its mathematics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from textguide import CAIF, CFG, Guidance
from textguide.guidance import Composed, Step, TokenReweighting, as_guidance, split, with_scale
from textguide.guidance.spec import label, parse
from textguide.guidance.text_reweighting import reweigh


class Named:
    """Enough of a classifier for a field."""

    name = "toy"

    def log_prob(self, texts: Any) -> Any: ...

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "toy"}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"classifier": 3}, ["classifier=3", "FunctionClassifier"]),
        ({"classifier": {"kind": "toy"}}, ["classifier={'kind': 'toy'}"]),
        ({"target": None}, ["target=None"]),
        ({"target": True}, ["target=True"]),
        ({"weight": math.nan}, ["weight=nan"]),
        ({"weight": "5"}, ["weight='5'"]),
        ({"top_k": 0}, ["top_k=0"]),
        ({"top_k": 2.5}, ["top_k=2.5"]),
        ({"every": 0}, ["every=0"]),
        ({"every": None}, ["every=None"]),
        ({"entropy_threshold": -1}, ["entropy_threshold=-1"]),
        ({"entropy_threshold": math.inf}, ["entropy_threshold=inf"]),
        ({"include_prompt": "no"}, ["include_prompt='no'"]),
        ({"schedule": "sudden"}, ["schedule='sudden'"]),
        ({"start": 0.6, "stop": 0.5}, ["start=0.6", "stop=0.5"]),
    ],
)
def test_errors_name_argument_and_value(fields: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        CAIF(**{"classifier": "sentiment", "target": "positive", **fields})
    for part in parts:
        assert part in str(caught.value)


def test_identity() -> None:
    guidance = CAIF("sentiment", "positive", -3, top_k=None, schedule="linear")
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert hash(guidance) == hash(CAIF("sentiment", "positive", -3.0, top_k=None, schedule="linear"))
    others = [
        CAIF("sentiment", "negative", -3, top_k=None, schedule="linear"),
        CAIF("sentiment", "positive", 3, top_k=None, schedule="linear"),
        CAIF(Named(), "positive", -3, top_k=None, schedule="linear"),
    ]
    assert len({guidance.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert isinstance(guidance, TokenReweighting)
    assert others[2].to_dict()["classifier"] == {"kind": "toy"}


def test_neutral_and_weight_over_progress() -> None:
    assert CAIF("sentiment", "positive", 0).is_neutral
    assert not CAIF("sentiment", "positive", 1).is_neutral
    guidance = CAIF("sentiment", "positive", 4, schedule="linear", start=0.25, stop=0.75)
    assert [guidance.weight_at(Step(s)) for s in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 2.0, 4.0, 6.0, 0.0]
    places = torch.tensor([[0.0], [0.5], [1.0]])
    at = guidance.weight_at(Step(places))
    assert isinstance(at, torch.Tensor)
    assert at[:, 0].tolist() == [0.0, 4.0, 0.0]


def test_reweigh_is_the_formula_on_the_candidates() -> None:
    logp = torch.log_softmax(torch.tensor([[1.0, 0.5, -1.0, 2.0, 0.0]]), -1)
    logp[0, 4] = -torch.inf
    candidates = torch.tensor([[3, 0, 4]])
    bonus = torch.tensor([[-1.0, 0.5, torch.inf]])
    weighed = reweigh(logp, candidates, bonus)[0].exp()
    weights = [logp[0, 3].exp() * math.exp(-1.0), logp[0, 0].exp() * math.exp(0.5)]
    assert weighed[3].item() == pytest.approx((weights[0] / sum(weights)).item(), abs=1e-6)
    assert weighed[[1, 2, 4]].tolist() == [0, 0, 0]
    assert weighed.sum().item() == pytest.approx(1.0, abs=1e-6)
    forbidden = reweigh(logp, candidates[:, :2], torch.tensor([[-torch.inf, 0.0]]))[0].exp()
    assert forbidden.tolist() == pytest.approx([1, 0, 0, 0, 0])


def test_composition() -> None:
    caif, other = CAIF("sentiment", "positive", 2), CAIF("sentiment", "negative", -1)
    both = as_guidance([caif, CFG(2.0), other])
    assert isinstance(both, Composed)
    assert both.parts == (CFG(2.0), caif, other)
    assert Guidance.from_json(both.to_json()) == both
    parts = split(both)
    assert (parts.branching, parts.reweighting, parts.sampling) == (CFG(2.0), (caif, other), None)
    assert split(as_guidance([CFG(1.0), CAIF("sentiment", "positive", 0)])) == split(None)
    assert as_guidance([caif]) is caif
    assert as_guidance([]) is None
    assert as_guidance([both, CAIF("x", 0)]).parts[-1] == CAIF("x", 0)  # type: ignore[union-attr]
    assert with_scale(both, 3.0) == as_guidance([CFG(3.0), caif, other])
    with pytest.raises(ValueError, match="scale"):
        with_scale(caif, 2.0)
    with pytest.raises(ValueError, match="their own branches"):
        as_guidance([CFG(2.0), CFG(3.0)])
    with pytest.raises(ValueError, match="'hot'"):
        as_guidance([caif, "hot"])


def test_named_in_text() -> None:
    text = "cfg:scale=2 + caif:classifier=sentiment,target=positive,weight=-3"
    assert parse(text) == as_guidance([CFG(2.0), CAIF("sentiment", "positive", -3)])
    assert label(parse(text)) == "cfg 2 + caif classifier=sentiment target=positive weight=-3"
    assert "toy" in label(CAIF(Named(), "positive"))
    with pytest.raises(ValueError, match="target"):
        parse("caif:classifier=sentiment")
