"""Which adapter and which images each branch request gets, without vLLM."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from textguide.guidance import CFG, ContrastiveDecoding, Formula, InstructionContrastive
from textguide.logits_processors.vllm_plugin import adapters, adapters_on_cpu, images
from textguide.logits_processors.vllm_plugin.adapters import BASE, Adapter
from textguide.logits_processors.vllm_plugin.arguments import parse
from textguide.logits_processors.vllm_plugin.request_guidance import RequestPrompt
from textguide.logits_processors.vllm_plugin.requests import Limits, Request

TUNED, OTHER, THIRD = (Adapter(name, number, f"/{name}") for number, name in enumerate(("tuned", "other", "third"), 1))
NAMED = {one.name: one for one in (BASE, TUNED, OTHER, THIRD)}
IMAGE = 9


class Tokenizer:
    bos_token_id = 1

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[ord(c) for c in text])


LIMITS = Limits(Tokenizer(), vocabulary=200, longest=64, adapters=NAMED, most_adapters=2)
GIVEN = RequestPrompt((5, 6, 7), adapter=TUNED)


def asked(given: RequestPrompt = GIVEN, limits: Limits = LIMITS, **extra: Any) -> Request:
    request = parse(SimpleNamespace(extra_args=extra, logprobs=None), limits, given)
    assert request is not None
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    return request


def test_by_default_all_run_with_the_requests_adapter() -> None:
    for extra in (
        {"guidance_scale": 2.0},
        {"guidance": "cfg:scale=2"},
        {"guidance_scale": 2.0, "negative_prompt": "x"},
    ):
        assert asked(**extra).adapters == ()
    shared = asked(guidance=Formula("2*cond - M('tuned', 'x') - P('x') + M('tuned')").to_json())
    assert (shared.prompts, shared.adapters) == (((120,),), ())
    assert shared.readings == ((1, ""), (1, ""), (0, ""))  # the request itself runs with it


def test_the_negative_branch_runs_with_another() -> None:
    request = asked(negative_lora="base")
    assert (request.guidance, request.prompts, request.adapters) == (CFG(1.5), (GIVEN.ids,), (BASE,))
    request = asked(negative_lora="other", negative_prompt="x", guidance_scale=2)
    assert (request.prompts, request.adapters) == (((120,),), (OTHER,))
    assert asked(negative_lora="tuned", negative_prompt="x").adapters == ()
    base = replace(GIVEN, adapter=BASE)
    assert asked(base, negative_lora="tuned").adapters == (TUNED,)


def test_branches_name_adapters_as_models() -> None:
    request = asked(guidance=Formula("2*cond - M('base') - M('other') + M('base', 'x') + P('x')").to_json())
    assert request.prompts == (GIVEN.ids, GIVEN.ids, (120,), (120,))
    assert request.adapters == (BASE, OTHER, BASE, TUNED)
    assert request.readings == ((1, ""), (2, ""), (3, ""), (4, ""))
    assert asked(guidance=ContrastiveDecoding(amateur="base").to_json()).adapters == (BASE,)


@pytest.mark.parametrize(
    ("extra", "limits", "named"),
    [
        ({"negative_lora": "nobody"}, LIMITS, "'nobody' is not an adapter of this engine; those are base, tuned"),
        ({"negative_lora": 3}, LIMITS, "negative_lora=3 is not an adapter"),
        ({"negative_lora": "tuned"}, LIMITS, "negative_lora='tuned' is the adapter of the request itself"),
        ({"negative_lora": "base"}, Limits(Tokenizer()), "this engine serves no adapters; start it with them"),
        ({"negative_lora": "base", "guidance": "cfg"}, LIMITS, "guidance and negative_lora exclude each other"),
        ({"negative_lroa": "base"}, LIMITS, "'negative_lroa' is not an argument of guidance; use negative_lora"),
        ({"guidance": "contrastive"}, LIMITS, "--lora-modules amateur=FOLDER"),
        ({"guidance": "formula:cond + M('other') - M('third')"}, LIMITS, "run with 3 adapters, and max_loras is 2"),
    ],
)
def test_what_cannot_run_is_named(extra: dict[str, Any], limits: Limits, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        asked(limits=limits, **extra)


def test_adapters_are_those_that_the_server_has_now() -> None:
    config = SimpleNamespace(
        lora_config=SimpleNamespace(max_loras=3),
        instance_id="here",
        additional_config={"textguide": {"adapters": {"started": "/s"}}},
    )

    class Served:
        def __init__(self, config: Any) -> None:
            self.engine_client = SimpleNamespace(vllm_config=config)
            self.lora_requests: dict[str, Any] = {}

    adapters.remember_adapters(Served)
    adapters.remember_adapters(Served)
    served, elsewhere = Served(config), Served(SimpleNamespace(instance_id="elsewhere"))
    held = SimpleNamespace(lora_name="tuned", lora_int_id=1, lora_path="/tuned", is_3d_lora_weight=False)
    served.lora_requests["tuned"] = elsewhere.lora_requests["foreign"] = held
    found = adapters.adapters_of(config)
    assert list(found) == ["base", "started", "tuned"]
    assert found["tuned"] == TUNED
    assert found["started"].number == adapters.FIRST_NUMBER
    del served.lora_requests["tuned"]
    assert "tuned" not in adapters.adapters_of(config)
    del served, elsewhere
    gc.collect()
    assert list(adapters.adapters_of(config)) == ["base", "started"]
    assert adapters.most_of(config) == 3
    assert adapters.adapters_of(SimpleNamespace(lora_config=None)) == {}
    assert adapters.most_of(SimpleNamespace(lora_config=None)) is None


def test_an_engine_takes_its_adapters_by_name(tmp_path: Path) -> None:
    for name, rank in (("a", 4), ("b", 40)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
    folders = {name: str(tmp_path / name) for name in "ab"}
    assert adapters.with_adapters({}, folders) == {"max_loras": 2, "max_lora_rank": 64, "enable_lora": True}
    assert adapters.with_adapters({"max_loras": 1, "seed": 3}, folders)["max_loras"] == 1
    for wrong, named in (({"a": str(tmp_path)}, "has no LoRA adapter"), ({"base": folders["a"]}, "cannot be the name")):
        with pytest.raises(ValueError, match=named):
            adapters.with_adapters({}, wrong)


# -- images ------------------------------------------------------------------------------------------------------------


def prompt(**found: Any) -> dict[str, Any]:
    places = {"image": [SimpleNamespace(offset=1, length=3)], **found}
    return {"prompt_token_ids": [5, IMAGE, IMAGE, IMAGE, 6], "mm_placeholders": places}


def config(kind: str = "llava") -> Any:
    return SimpleNamespace(hf_config=SimpleNamespace(model_type=kind, image_token_index=IMAGE))


IDS = (5, IMAGE, IMAGE, IMAGE, 6)
SEEN = RequestPrompt(IDS, images=images.images_of(prompt(), config(), Tokenizer()))


@pytest.mark.parametrize(
    ("extra", "prompts", "sees"),
    [
        ({"guidance_scale": 2}, (IDS,), ("blank",)),
        ({"guidance_scale": 2, "negative_image": "text"}, ((5, 6),), ("",)),
        ({"negative_image": "blank"}, (IDS,), ("blank",)),
        ({"guidance_scale": 2, "negative_prompt": "x"}, ((120,),), ("",)),
        ({"guidance": "cfg:scale=2"}, (IDS,), ("blank",)),
        ({"guidance": "cfg:scale=2", "negative_image": "text"}, ((5, 6),), ("",)),
        ({"guidance": "formula:2*cond - 0.5*last - 0.5*P('x')"}, (IDS, (120,)), ("blank", "")),
        ({"guidance": "formula:2*cond"}, (), ()),
        ({"guidance": "formula:2*cond - last", "guidance_branch_token_ids": [[7]]}, ((7,),), ("",)),
        ({"negative_lora": "tuned"}, (IDS,), ("same",)),
        ({"negative_lora": "tuned", "negative_image": "text"}, ((5, 6),), ("",)),
        ({"guidance": "formula:2*cond - M('tuned')"}, (IDS,), ("same",)),
    ],
)
def test_what_branches_see(extra: dict[str, Any], prompts: Any, sees: Any) -> None:
    request = asked(SEEN, **extra)
    assert (request.prompts, request.sees) == (prompts, sees)


def test_requests_without_images_see_none() -> None:
    assert asked(guidance_scale=2).sees is None
    assert images.images_of(prompt(image=[]) | {"mm_placeholders": {}}, config(), None) is None
    assert images.images_of("text", config(), None) is None


@pytest.mark.parametrize(
    ("given", "extra", "named"),
    [
        (GIVEN, {"negative_image": "blank"}, "negative_image='blank': this request has no image"),
        (SEEN, {"negative_image": "none"}, "negative_image='none' must be one of blank, text"),
        (SEEN, {"guidance": InstructionContrastive(2.0).to_json()}, "which has an image"),
        (SEEN, {"guidance": CFG(2.0, negative_system="Be long.").to_json()}, "which has an image"),
    ],
)
def test_what_cannot_see_is_named(given: RequestPrompt, extra: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        asked(given, **extra)


def test_what_was_not_tried_is_refused() -> None:
    with pytest.raises(ValueError, match="video in the prompt: it was only tested with images"):
        images.images_of(prompt(video=[1]), config(), None)
    with pytest.raises(ValueError, match=r"images of a model of kind 'phi3_v': it was tested with llava"):
        images.images_of(prompt(), config("phi3_v"), None)


@dataclass(frozen=True)
class Feature:
    """vLLM's ``MultiModalFeatureSpec``."""

    data: Any
    identifier: str
    mm_hash: str | None = None


@dataclass(frozen=True)
class Part:
    data: Any


def test_blank_images_are_one_image_a_size() -> None:
    def feature(name: str, size: int) -> Feature:
        return Feature({"pixel_values": Part(torch.ones(3, size)), "sizes": Part([size])}, name)

    given = [feature("a", 4), feature("b", 4), feature("c", 5)]
    model = SimpleNamespace(model_type="llava")
    assert images.shown(given, images.SAME, model) == given
    assert images.shown(given, images.NONE, model) == []
    one, other, third = images.shown(given, images.BLANK, model)
    assert one.identifier == other.identifier == one.mm_hash
    assert len({one.identifier, third.identifier, "a"}) == 3
    assert torch.equal(one.data["pixel_values"].data, torch.zeros(3, 4))
    assert one.data["sizes"].data == [4]
    assert given[0].data["pixel_values"].data.sum() == 12  # the request's own are as they were
    assert images.can_be_shown(given, ["blank"])
    for without in (Feature(None, "a"), Feature({"image_embeds": Part(torch.ones(3))}, "a")):
        assert not images.can_be_shown([without], ["same", "blank"])
        assert images.can_be_shown([without], ["same", ""])


def test_rows_without_an_adapter_have_none_on_a_cpu() -> None:
    def shrink(inputs: Any, weights: Any, output: Any, slots: Any, scaling: float = 1.0) -> None:
        output[:] = scaling * torch.einsum(
            "bi,bri->br", inputs, weights[slots]
        )  # as vLLM's, which takes the last of −1

    def of_sequences(inputs: Any, weights: Any, output: Any, starts: Any, lengths: Any, slots: Any, *rest: Any) -> None:
        shrink(inputs, weights, output, torch.repeat_interleave(slots, lengths), rest[-1])

    inputs, weights = torch.randn(5, 4), torch.randn(2, 3, 4)
    slots, lengths = torch.tensor([1, -1, 0]), torch.tensor([2, 2, 1])
    every = torch.repeat_interleave(slots, lengths)
    expected = torch.stack(
        [torch.zeros(3) if s < 0 else 2.0 * weights[s] @ x for x, s in zip(inputs, every, strict=True)]
    )
    for kind, given in (
        (adapters_on_cpu.by_token(shrink), (every, 2.0)),
        (adapters_on_cpu.by_sequence(of_sequences), (None, lengths, slots, 3, 2, 5, 2.0)),
    ):
        output = torch.ones(5, 3)
        kind(inputs, weights, output, *given)
        torch.testing.assert_close(output, expected)
