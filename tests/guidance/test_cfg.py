"""CFG: its fields, its identity, and its mathematics against the oracle."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textguide import CFG, Guidance
from textguide.guidance import Branch, Message, Step, scale_from_weight, weight_from_scale
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

CHAT = [{"role": "system", "content": "be dull"}, {"role": "user", "content": "hi"}]

# Another value than the default for every field; a new field must be added here.
OTHER: dict[str, Any] = {
    "scale": 2.0,
    "negative_prompt": "dull",
    "negative_system": "be dull",
    "schedule": "linear",
    "renormalize": False,
    "skip_threshold": 0.1,
    "min_scale": 0.5,
    "max_scale": 3.0,
    "start": 0.25,
    "stop": 0.75,
    "distilled": "adapter",
}


@pytest.mark.parametrize("name", ["scale", "skip_threshold", "min_scale", "max_scale", "start", "stop"])
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, True, "1.5", [1.5], 1j, pytest.param(10**400, id="huge")]
)
def test_numbers_must_be_finite(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        CFG(**{name: value})
    assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["scale", "start", "stop"])
def test_required_numbers_refuse_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=None"):
        CFG(**{name: None})


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"skip_threshold": -0.1}, ["skip_threshold=-0.1"]),
        ({"start": 0.7, "stop": 0.2}, ["start=0.7", "stop=0.2"]),
        ({"start": -0.1}, ["start=-0.1"]),
        ({"stop": 1.1}, ["stop=1.1"]),
        ({"min_scale": 3, "max_scale": 2}, ["min_scale=3.0", "max_scale=2.0"]),
        ({"negative_prompt": "a", "negative_system": "b"}, ["negative_prompt", "negative_system"]),
        ({"negative_prompt": 7}, ["negative_prompt=7"]),
        ({"negative_prompt": []}, ["negative_prompt=[]"]),
        ({"negative_system": 7}, ["negative_system=7"]),
        ({"schedule": "sudden"}, ["schedule='sudden'", "cosine"]),
        ({"schedule": None}, ["schedule=None"]),
        ({"schedule": "linear:2"}, ["schedule='linear:2'"]),
        ({"renormalize": "no"}, ["renormalize='no'"]),
        ({"renormalize": None}, ["renormalize=None"]),
    ],
)
def test_errors_name_argument_and_value(fields: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        CFG(**fields)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_edges_of_the_allowed_ranges() -> None:
    edge = CFG(scale=-1.0, start=0.5, stop=0.5, min_scale=2, max_scale=2, negative_prompt="")
    assert edge.scale_at(Step(0.5)) == 2.0
    assert edge.scale_at(Step(0.4)) == 1.0
    assert CFG(start=0, stop=0).active(Step(0.0))
    assert not CFG(start=0, stop=0).active(Step(0.1))


def test_every_field_is_covered_here() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(CFG)}


def test_equality_and_hash() -> None:
    assert CFG(2) == CFG(2.0)
    assert hash(CFG(2)) == hash(CFG(2.0))
    assert CFG(2) != CFG(2.5)
    as_lists = CFG(negative_prompt=[[1, 2], [3]])
    as_tensors = CFG(negative_prompt=[torch.tensor([1, 2]), torch.tensor([3])])
    assert as_lists == as_tensors
    assert len({as_lists, as_tensors, CFG()}) == 2
    assert CFG(0.0) == CFG(-0.0)
    assert CFG(0.0).fingerprint == CFG(-0.0).fingerprint
    with pytest.raises(dataclasses.FrozenInstanceError):
        CFG().scale = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "negative",
    [
        None,
        "text",
        "",
        "ünïcode “quotes” \n",
        [1, 2, 3],
        [[1, 2], [3]],
        ["one", "two"],
        CHAT,
        [CHAT, CHAT[:1]],
        ["text", [4, 5], CHAT],
    ],
)
def test_json_round_trip(negative: Any) -> None:
    guidance = CFG(2.5, negative, schedule="clamp-linear:0.5", start=0.1, max_scale=4)
    text = guidance.to_json()
    again = Guidance.from_json(text)
    assert again == guidance
    assert again.to_json() == text
    assert again.fingerprint == guidance.fingerprint
    assert hash(again) == hash(guidance)
    assert json.loads(text) == guidance.to_dict()
    assert guidance.to_dict()["method"] == "cfg"


@pytest.mark.filterwarnings("ignore:skip_threshold")
def test_round_trip_of_every_field() -> None:
    for name, value in OTHER.items():
        guidance = CFG(**{name: value})
        assert guidance != CFG()
        assert Guidance.from_dict(guidance.to_dict()) == guidance


def test_from_dict_leaves_its_argument_alone() -> None:
    values = CFG(2.0).to_dict()
    Guidance.from_dict(values)
    assert values == CFG(2.0).to_dict()


@pytest.mark.parametrize("method", ["nonsense", None, 3])
def test_unknown_method(method: Any) -> None:
    with pytest.raises(ValueError, match="cfg") as caught:
        Guidance.from_dict({"method": method})
    assert f"method={method!r}" in str(caught.value)


def test_unknown_and_missing_fields() -> None:
    with pytest.raises(ValueError, match=r"'strength'.*scale"):
        Guidance.from_dict({"method": "cfg", "strength": 2})
    with pytest.raises(ValueError, match="method=None"):
        Guidance.from_dict({"scale": 2})
    assert Guidance.from_dict({"method": "cfg"}) == CFG()


@pytest.mark.filterwarnings("ignore:skip_threshold")
def test_fingerprint_differs_with_every_field() -> None:
    prints = {CFG().fingerprint} | {CFG(**{name: value}).fingerprint for name, value in OTHER.items()}
    assert len(prints) == 1 + len(OTHER)
    # A text and its ids, one prompt and one row of it, are different requests.
    negatives = ["1", [1], [[1]], ["1", "1"], [{"role": "1", "content": "1"}]]
    assert len({CFG(negative_prompt=n).fingerprint for n in negatives}) == len(negatives)


def test_fingerprint_is_the_one_in_files_already_written() -> None:
    # A change here invalidates every cache and results file of every user: make it on purpose or not at all.
    assert CFG().fingerprint == "3ea1d05b563a95e9"
    with pytest.warns(DeprecationWarning, match=r"skip_threshold=0\.25 is ignored"):  # read from old files, and kept
        every = CFG(
            2.5, ["ä", [4, 5], CHAT], schedule="clamp-linear:0.5", renormalize=False, skip_threshold=0.25,
            min_scale=0.5, max_scale=4.0, start=0.1, stop=0.9,
        )  # fmt: skip
    assert every.fingerprint == "f4586c076a56f210"


def test_branches() -> None:
    assert CFG().branches == (Branch(),)
    assert CFG(negative_prompt=[1, 2]).branches == (Branch(prompt=(1, 2)),)
    assert CFG(negative_system="dull").branches == (Branch(system="dull"),)
    assert CFG(negative_prompt=CHAT).branches[0].prompt == (
        Message("system", "be dull"),
        Message("user", "hi"),
    )


SETTINGS = [
    CFG(1.5),
    CFG(0.0),
    CFG(3.0, start=0.25, stop=0.75),
    CFG(3.0, schedule="linear"),
    CFG(3.0, schedule="cosine-decreasing", min_scale=1.25, max_scale=2.5),
    CFG(3.0, schedule="sine", min_scale=2.0),
    CFG(3.0, schedule="powered-cosine:3", max_scale=2.0, start=0.5),
    CFG(1.0, min_scale=2.0, stop=0.5),
    CFG(-1.0, schedule="clamp-cosine:0.5"),
]
GRID = [i / 16 for i in range(17)]


@pytest.mark.parametrize("guidance", SETTINGS, ids=str)
def test_scale_at_equals_the_oracle(guidance: CFG) -> None:
    tensor = guidance.scale_at(Step(torch.tensor(GRID)[:, None]))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (len(GRID), 1)
    for progress, from_tensor in zip(GRID, tensor[:, 0].tolist(), strict=True):
        expected = decoding.cfg_scale(guidance, progress)
        value = guidance.scale_at(Step(progress))
        assert isinstance(value, float)
        assert value == pytest.approx(expected, abs=2e-6)
        assert from_tensor == pytest.approx(expected, abs=1e-5)
        assert guidance.active(Step(progress)) is (value != 1.0)


def test_window_ends_are_inside_and_outside_is_off() -> None:
    guidance = CFG(3.0, start=0.25, stop=0.75, min_scale=2.0)
    active = [guidance.active(Step(s)) for s in (0.0, 0.249, 0.25, 0.5, 0.75, 0.751, 1.0)]
    assert active == [False, False, True, True, True, False, False]
    # A lower bound does not reach outside the window.
    assert guidance.scale_at(Step(0.0)) == 1.0
    assert guidance.scale_at(Step(torch.tensor([[0.0], [0.5]]))).flatten().tolist() == [1.0, 3.0]  # type: ignore[union-attr]


def test_a_schedule_that_passes_one_is_inactive_there() -> None:
    assert not CFG(3.0, schedule="linear").active(Step(0.0))
    assert CFG(3.0, schedule="linear").active(Step(0.5))
    assert not CFG(3.0, max_scale=1.0).active(Step(0.5))


def test_neutral_means_one_at_every_step() -> None:
    assert CFG(1.0).is_neutral
    assert CFG(1.0, schedule="cosine", min_scale=0.5).is_neutral
    assert not CFG(1.0, min_scale=1.5).is_neutral
    assert not CFG(1.0, max_scale=0.5).is_neutral
    assert not CFG(1.5).is_neutral


def test_step_at_runs_from_zero_to_one() -> None:
    assert [Step.at(i, 5).progress for i in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert Step.at(0, 1).progress == 0.0
    assert Step.at(3, 1).progress == 0.0


def _distributions(seed: int, rows: int = 3, size: int = 11) -> torch.Tensor:
    """Two branches in which some tokens are forbidden in one or both."""
    scores = torch.randn(2, rows, size, generator=torch.Generator().manual_seed(seed)) * 3
    scores[0, :, 1] = -math.inf
    scores[1, :, 2] = -math.inf
    scores[:, :, 3] = -math.inf
    return torch.log_softmax(scores, -1)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("guidance", SETTINGS, ids=str)
def test_combine_equals_the_oracle(guidance: CFG, renormalize: bool) -> None:
    guidance = dataclasses.replace(guidance, renormalize=renormalize)
    logp = _distributions(1)
    before = logp.clone()
    for progress in (0.0, 0.4, 1.0):
        guided = guided_log_probs(guidance, logp, Step(progress))
        assert guided.shape == logp.shape[1:]
        assert guided.dtype == torch.float32
        for row in range(logp.shape[1]):
            expected = decoding.cfg(guidance, logp[:, row].double().tolist(), progress)
            torch.testing.assert_close(guided[row], torch.tensor(expected), atol=2e-5, rtol=1e-5)
        if renormalize:
            torch.testing.assert_close(guided.exp().sum(-1), torch.ones(3))
    assert torch.equal(logp, before)


@pytest.mark.parametrize("guidance", SETTINGS, ids=str)
def test_combine_with_progress_a_row(guidance: CFG) -> None:
    logp = _distributions(2)
    progress = torch.tensor([[0.0], [0.5], [1.0]])
    together = guided_log_probs(guidance, logp, Step(progress))
    for row in range(3):
        alone = guided_log_probs(guidance, logp[:, row : row + 1], Step(float(progress[row])))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_scale_one_gives_the_very_bits() -> None:
    logp = _distributions(3)
    assert torch.equal(guided_log_probs(CFG(1.0, renormalize=False), logp, Step()), logp[0])


def test_forbidden_tokens_stay_forbidden_and_nothing_becomes_nan() -> None:
    for scale in (-2.0, 0.0, 0.5, 1.0, 1.5, 20.0):
        guided = guided_log_probs(CFG(scale), _distributions(4), Step())
        assert not guided.isnan().any()
        assert guided[:, [1, 3]].isneginf().all()
        assert guided[:, [0, 2, 4, 5, 6]].isfinite().all()


@given(st.floats(-100, 100))
def test_weights_and_scales_convert(weight: float) -> None:
    assert scale_from_weight(weight) == weight + 1
    assert weight_from_scale(scale_from_weight(weight)) == pytest.approx(weight, abs=1e-12)


def test_no_weight_is_scale_one() -> None:
    assert scale_from_weight(0) == 1.0
    assert weight_from_scale(1) == 0.0
    for convert, name in ((scale_from_weight, "weight"), (weight_from_scale, "scale")):
        with pytest.raises(ValueError, match=f"{name}=nan"):
            convert(math.nan)


def test_prints_what_it_is() -> None:
    assert repr(CFG(2.0)).startswith("CFG(scale=2.0, ")
