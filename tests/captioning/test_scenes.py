"""The bundled models of drawn scenes, what they were trained on, and what they can do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image, ImageDraw

import textguide
from textguide import CFG, LMGuidance, captioning
from textguide.captioning import loading
from textguide.eval.captions import judge
from textguide.guidance import as_guidance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    folder = str(ROOT / "scripts" / "train")
    sys.path.insert(0, folder)
    try:
        import scenes as module
    finally:
        sys.path.remove(folder)
    return module


def test_no_scene_of_one_split_is_in_another(scenes: ModuleType) -> None:
    keys = {
        split: {scene.key for (scene, _), _ in zip(scenes.scenes(split, seed), range(1500), strict=False)}
        for split, seed in (("train", 0), ("train", 1999), ("dual", 0), ("validation", 0), ("test", 0))
        if split
    }
    for split, found in keys.items():
        assert all(not found & others for name, others in keys.items() if name != split)
    # The split is a function of the content, so it holds for every scene that any seed draws.
    for (scene, _), _ in zip(scenes.scenes("train", 7), range(300), strict=False):
        assert scene.split == "train"


def test_captions_are_true_but_for_few_errors_and_mostly_short(scenes: ModuleType) -> None:
    lengths, wrong, named = [], 0, 0
    for (scene, chance), _ in zip(scenes.scenes("train", 3), range(800), strict=False):
        text = scenes.caption(scene, chance).split()
        lengths.append(len(text))
        for shape in scenes.SHAPES:
            if shape in text:
                named += 1
                wrong += all(thing.shape != shape for thing in scene.things)
    assert sorted(lengths)[400] <= 6
    assert max(lengths) >= 15
    assert 0 < wrong / named < 0.06
    assert scenes.caption(scene, chance, 4).count(" ") > scenes.caption(scene, chance, 0).count(" ")


def test_the_bundled_models_say_how_they_came_about() -> None:
    assert captioning.bundled() == ["drawn-scenes", "drawn-scenes-dual"]
    for name in captioning.bundled():
        folder = loading.BUNDLED / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
        facts = json.loads((folder / "training.json").read_text())
        model, processor = captioning.load(name)
        assert facts["parameters"] == sum(p.numel() for p in model.parameters())
        assert facts["vocabulary"] == len(processor.tokenizer)
        assert str(facts["steps"]) in (folder / "README.md").read_text()
    with pytest.raises(
        textguide.support.errors.ModelUnavailableError, match="bundled: drawn-scenes, drawn-scenes-dual"
    ):
        captioning.load("no-such-captioner")


def test_guidance_makes_captions_longer_and_easier_to_find(scenes: ModuleType) -> None:
    model, processor = captioning.load("drawn-scenes")
    eyes = judge.DualEncoder(*captioning.load("drawn-scenes-dual"))
    images = [scenes.picture(s, c) for (s, c), _ in zip(scenes.scenes("test", 11), range(60), strict=False)]
    seen = eyes.images(images)
    found = {}
    for scale in (1.0, 2.0):
        texts = textguide.caption(model, processor, images, CFG(scale)).texts
        found[scale] = (
            sum(len(text.split()) for text in texts),
            int((judge.ranks(seen, eyes.texts(texts)) <= 5).sum()),
        )
    assert found[2.0][0] > found[1.0][0]
    assert found[2.0][1] > found[1.0][1]


def test_the_drawing_of_the_guide_is_described_rightly() -> None:
    """The colours of ``docs/guides/caption.md``, and every other one that the captioner knows."""
    model, processor = captioning.load("drawn-scenes")
    colours = ("blue", "red", "green", "orange", "purple")
    drawings = []
    for colour in colours:
        drawing = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(drawing).ellipse((5, 5, 27, 27), fill=colour)
        drawings.append(drawing)
    plain = textguide.caption(model, processor, drawings, max_new_tokens=16).texts
    guided = textguide.caption(model, processor, drawings, CFG(2.0), max_new_tokens=16).texts
    for colour, before, after in zip(colours, plain, guided, strict=True):
        true = {"a circle", f"a {colour} circle", f"an {colour} circle"}
        assert {before, after} <= true
    assert (plain[0], guided[0]) == ("a circle", "a blue circle")


def test_the_example_of_the_page_is_described_rightly() -> None:
    from textguide.playground.examples import EXAMPLES
    from textguide.playground.images import HOME

    example = EXAMPLES["caption"][0]
    model, processor = captioning.load("drawn-scenes")
    scene = Image.open(HOME / f"{example['scene']}.png")
    plain = textguide.caption(model, processor, scene, max_new_tokens=24).texts
    guided = textguide.caption(model, processor, scene, as_guidance(example["guidance"]), max_new_tokens=24).texts
    # A green triangle above an orange diamond, looked at by a person.
    assert plain == ["a triangle and a diamond"]
    assert guided == ["a green triangle and an orange diamond"]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_shapes_and_colours_are_seen_and_places_are_not(scenes: ModuleType, scale: float) -> None:
    """What ``docs/guides/caption.md`` states, so that nobody trusts the rest."""
    model, processor = captioning.load("drawn-scenes")
    drawn = [(s, scenes.picture(s, c)) for (s, c), _ in zip(scenes.scenes("test", 9), range(100), strict=False)]
    texts = textguide.caption(model, processor, [image for _, image in drawn], CFG(scale), max_new_tokens=32).texts
    shapes = []
    colours = []
    for (scene, _), text in zip(drawn, texts, strict=True):
        words = text.split()
        shapes += [any(thing.shape == word for thing in scene.things) for word in words if word in scenes.SHAPES]
        colours += [any(thing.colour == word for thing in scene.things) for word in words if word in scenes.COLOURS]
    assert sum(shapes) / len(shapes) > 0.98
    assert sum(colours) / len(colours) > 0.98


@pytest.mark.real_model
def test_a_mapped_vocabulary_gives_what_a_shared_one_gives(scenes: ModuleType) -> None:
    language_model, tokenizer = textguide.load("smollm2")
    model, processor = captioning.load("drawn-scenes")
    image = next(scenes.picture(s, c) for s, c in scenes.scenes("test", 0))
    guidance = LMGuidance(alpha=3.0, prompt="a dog on a street\na red bus\n")
    out = textguide.caption(model, processor, image, guidance, language_model=(language_model, tokenizer))
    assert out.texts[0]
    ids = tokenizer(out.texts[0]).input_ids
    assert len(ids) == len(out.new_tokens[0]) - 1
    assert torch.isfinite(out.log_likelihood).all()
