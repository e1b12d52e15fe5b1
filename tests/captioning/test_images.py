"""Reading images of every kind, and saying what is wrong with the others."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import textguide
from textguide import CFG, captioning
from textguide.captioning import read_image, read_images
from textguide.captioning.images import noised

from . import models


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "I;16", "I", "F", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    source = models.picture(1)
    image = Image.fromarray((np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)) if mode == "I;16" else source
    image = image.convert(mode) if mode != "I;16" else image
    read = read_image(image)
    assert (read.mode, read.size) == ("RGB", (32, 32))
    assert len(set(np.asarray(read).flatten().tolist())) > 1
    if mode == "RGB":
        assert np.array_equal(np.asarray(read), np.asarray(source))


def test_transparent_parts_are_white_and_palettes_may_be_transparent() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert np.asarray(read_image(clear)).min() == 255
    palette = Image.new("P", (4, 4), 3)
    palette.info["transparency"] = 3
    assert np.asarray(read_image(palette)).min() == 255


def test_photographs_are_turned() -> None:
    image = Image.new("RGB", (40, 20), (9, 9, 9))
    exif = image.getexif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    assert read_image(Image.open(stream)).size == (20, 40)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    short = tmp_path / "short.png"
    models.picture(1, (200, 200)).save(short)
    short.write_bytes(short.read_bytes()[:2000])
    jpeg = tmp_path / "short.jpg"
    models.picture(1, (200, 200)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:5000])
    for path in (text, short, jpeg, tmp_path / "missing.png", tmp_path):
        with pytest.raises(ValueError, match=rf"image='.*{path.name}' cannot be read as an image \(.+\)"):
            read_image(path)
    with pytest.raises(ValueError, match=r"images\[1\] is None; every row needs an image"):
        read_images([models.picture(0), None])
    with pytest.raises(ValueError, match="images is empty"):
        read_images([])
    for wrong in (3, object(), np.zeros((4, 4, 3)), np.zeros((2, 2, 7), dtype=np.uint8)):
        with pytest.raises(ValueError, match="and not an image"):
            read_image(wrong)


def test_arrays_and_one_image_alone() -> None:
    array = np.asarray(models.picture(2))
    for given in (array, torch.tensor(array), models.picture(2)):
        (read,) = read_images(given)
        assert np.array_equal(np.asarray(read), array)


def test_noise_depends_on_the_image_alone() -> None:
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    together = noised(pixels)
    assert torch.equal(together[1:2], noised(pixels[1:2]))
    assert not torch.equal(together[0] - pixels[0], together[1] - pixels[1])
    assert abs(float(noised(torch.randn(4, 3, 64, 64)).std()) - 1) < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5000, 4000)])
def test_tiny_and_large_images_are_captioned(size: tuple[int, int]) -> None:
    model, processor = models.build("vision_encoder_decoder")
    image = Image.new("RGB", size, (10, 200, 30))
    out = textguide.caption(model, processor, image, CFG(2.0), max_new_tokens=4)
    assert len(out.new_tokens[0]) == 4


def test_a_processor_of_another_model_is_refused() -> None:
    model, _ = models.build("vision_encoder_decoder")
    image = models.picture(0)
    with pytest.raises(ValueError, match="lacks an image processor or a tokenizer"):
        textguide.caption(model, models.tokenizer(), image)
    with pytest.raises(ValueError, match="token ids up to 1196 and the model 48 tokens; it does not belong"):
        textguide.caption(model, models.build("paligemma")[1], image)
    _, scenes = captioning.load("drawn-scenes")
    with pytest.raises(ValueError, match="does not belong to the model"):
        textguide.caption(model, scenes, image)


def test_prompts_are_checked() -> None:
    model, processor = models.build("llava")
    images = [models.picture(0), models.picture(1)]
    with pytest.raises(ValueError, match=r"prompts\[1\]='a dog' must contain the image's placeholder '<image>' once"):
        textguide.caption(model, processor, images, prompts=["<image> it", "a dog"])
    with pytest.raises(ValueError, match="2 texts, one for each image; there are 1"):
        textguide.caption(model, processor, images, prompts=["<image>"])
    eyes, looks = models.build("vision_encoder_decoder")
    with pytest.raises(ValueError, match="does not accept prompts"):
        textguide.caption(eyes, looks, images, prompts="a")
    for arguments, message in (
        ({"unconditional": "grey"}, "unconditional='grey' cannot be read as an image"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        given: dict[str, Any] = arguments
        with pytest.raises(ValueError, match=message):
            textguide.caption(eyes, looks, images, CFG(2.0), **given)


def test_guidance_by_the_same_image_warns() -> None:
    model, processor = models.build("vision_encoder_decoder")
    image = models.picture(0)
    with pytest.warns(textguide.support.errors.GuidanceHadNoEffectWarning):
        textguide.caption(model, processor, image, CFG(2.0), unconditional=image, max_new_tokens=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        textguide.caption(model, processor, image, CFG(2.0), max_new_tokens=3)
