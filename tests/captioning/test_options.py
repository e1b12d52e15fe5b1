"""What generate and caption share with images: speculation, stop texts, and the reader that is handed in."""

from __future__ import annotations

import pytest
import torch

import textguide
import textguide.captioning
from textguide import CFG, GuidedDecoding, guided_decoding

from . import models
from .test_families import image_rows


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(2)]


@pytest.mark.parametrize("name", ["git", "blip", "idefics3"])
def test_speculation_writes_the_same_and_is_reported(name: str) -> None:
    model, processor = models.build(name)
    plain = textguide.caption(model, processor, pictures(), CFG(2.0), max_new_tokens=8)
    for way in ("caption", "generate"):
        options = {"max_new_tokens": 8, "speculation": "both"}
        out = (
            textguide.caption(model, processor, pictures(), CFG(2.0), **options)
            if way == "caption"
            else textguide.generate(model, processor, None, CFG(2.0), images=pictures(), **options)
        )
        assert out.new_tokens == plain.new_tokens
        assert out.speculation is not None


def test_stop_texts_end_captions() -> None:
    model, processor = textguide.captioning.load("drawn-scenes")
    plain = textguide.caption(model, processor, pictures(), CFG(2.0), max_new_tokens=8)
    first = plain.texts[0].split()[0]
    out = textguide.caption(model, processor, pictures()[:1], CFG(2.0), max_new_tokens=8, stop=first)
    assert out.texts == [first]
    again = textguide.generate(model, processor, None, CFG(2.0), images=pictures()[:1], max_new_tokens=8, stop=first)
    assert again.texts == [first]


def test_a_model_that_sees_is_never_guided_without_a_reader() -> None:
    model, _ = models.build("git")
    inputs = image_rows("git")
    options = {"max_new_tokens": 3, "do_sample": False}
    with pytest.raises(ValueError, match=r"captioning=None does not define what the other branch sees"):
        model.generate(**inputs, **options, custom_generate=GuidedDecoding(CFG(2.0)))
    model.generate(**inputs, **options, custom_generate=guided_decoding(CFG(2.0), warn=False))
