"""Guided captioning on every family: all ways in agree with each other and with the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from textguide import CFG, guided_decoding, reference_captioning
from textguide.captioning import Captioning
from textguide.captioning.generation import Encoder
from textguide.captioning.images import noised

from . import models

NEW = 6
PROMPTS = ("describe it", "a red dog is on", "cat")
PROMPTED = ("llava", "idefics3", "smolvlm", "paligemma", "qwen2_vl")
KINDS = ("blank", "noise", "text", "image")


def image_rows(name: str, rows: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """The inputs of ``generate`` for some of three images with prompts of unlike length."""
    model, processor = models.build(name)
    if name == "qwen2_vl":
        return models.qwen_inputs(rows)
    encoder = Encoder(model, processor)
    texts = [f"{encoder.placeholder} {PROMPTS[row]}" for row in rows] if name in PROMPTED else None
    return encoder([models.picture(row) for row in rows], encoder.texts(texts, len(rows)))


def other_pixels(name: str) -> torch.Tensor:
    """Pixel values of one more image."""
    pixels = image_rows(name, (0,))["pixel_values"]
    return torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5))


def unpadded(inputs: dict[str, Any]) -> dict[str, Any]:
    """One row of inputs without its padding."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return dict(inputs)
    keep = mask[0].bool()
    return {
        k: v[:, keep] if v.dim() == 2 and v.shape == mask.shape else v
        for k, v in inputs.items()
        if k != "attention_mask"
    }


def oracle_inputs(name: str, row: int) -> dict[str, Any]:
    model, _ = models.build(name)
    inputs = unpadded(image_rows(name, (row,)))
    if name == "git":
        inputs["input_ids"] = torch.tensor([[models.BOS]])
    if name == "blip":
        inputs["input_ids"] = torch.tensor([[model.config.text_config.bos_token_id]])
    if name == "blip_2":
        inputs["input_ids"] = torch.tensor([[models.IMAGE] * 4 + [models.BOS]])
    return inputs


def conditions(name: str, row: int, kind: str) -> list[dict[str, Any]]:
    inputs = oracle_inputs(name, row)
    if kind == "text":
        hidden = [models.IMAGE, models.VISION_START, models.VISION_END, models.FAKE, models.GLOBAL]
        return [inputs, reference_captioning.without_image(inputs, hidden)]
    pixels = inputs["pixel_values"]
    if kind == "noise":
        changed = noised(pixels[None])[0] if name == "qwen2_vl" else noised(pixels)
    else:
        changed = torch.zeros_like(pixels) if kind == "blank" else other_pixels(name)
    return [inputs, {**inputs, "pixel_values": changed}]


def decode(name: str, guidance: Any, kind: Any = "blank", rows: tuple[int, ...] = (0, 1, 2), **options: Any) -> Any:
    """Through ``model.generate(custom_generate=…)`` with everything that can be said."""
    model, processor = models.build(name)
    inputs = image_rows(name, rows)
    unconditional = other_pixels(name) if kind == "image" else kind
    how = Captioning(unconditional, captioner=model, inputs=inputs)
    decoding = guided_decoding(
        guidance, captioning=how, log_probs=True, warn=False, tokenizer=getattr(processor, "tokenizer", None), **options
    )
    model.generate(**inputs, max_new_tokens=NEW, do_sample=False, custom_generate=decoding)
    return decoding.last


@pytest.fixture(params=models.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_oracle_alone_and_in_a_batch(name: str, kind: str) -> None:
    if name == "vision_encoder_decoder" and kind == "text":
        with pytest.raises(ValueError, match="nothing but an image; use 'blank'"):
            decode(name, CFG(2.5), kind)
        return
    guidance = CFG(2.5, schedule="linear") if kind == "blank" else CFG(2.5)
    laws: list[list[torch.Tensor]] = [[], [], []]

    def keep(view: Any) -> None:
        for row, law in zip(view.samples, view.guided, strict=True):
            laws[row].append(law)

    out = decode(name, guidance, kind, observer=keep)
    texts = out.sequences[:, -NEW:].tolist()
    for row in range(3):
        model, _ = models.build(name)
        tokens, expected = reference_captioning.generate(model, conditions(name, row, kind), guidance, NEW)
        assert texts[row] == tokens
        torch.testing.assert_close(
            torch.stack(laws[row]).double(), torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=1e-4
        )
        alone = decode(name, guidance, kind, (row,))
        assert alone.sequences[0, -NEW:].tolist() == tokens
        torch.testing.assert_close(alone.log_probs[0], out.log_probs[row], atol=1e-3, rtol=1e-4)
    assert len({tuple(text) for text in texts}) > 1
