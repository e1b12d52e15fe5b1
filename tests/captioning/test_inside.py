"""Guidances that change the image, or the model inside, on models that see images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import textguide
from textguide import guided_decoding
from textguide.captioning import Captioning, VocabularyMap
from textguide.captioning.generation import Encoder
from textguide.captioning.images import noised
from textguide.guidance import VCD, Formula, Steering, Step
from textguide.guidance.edits import NoisedImage
from textguide.reference import captioning
from textguide.step.guided_step import guided_log_probs

from ..guidance import oracles
from . import models
from .test_families import NEW, PROMPTS, decode, image_rows, oracle_inputs

oracles.collect()
VECTOR = tuple(0.5 * (-1) ** n * (n % 5) for n in range(32))


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("guidance", [VCD(), VCD(0.7, 0.0, 250)], ids=["usual", "all"])
def test_the_image_under_noise_equals_the_oracle(name: str, guidance: VCD) -> None:
    model, _ = models.build(name)
    out = decode(name, guidance)
    share = NoisedImage(guidance.steps).share
    for row in range(3):
        seen = oracle_inputs(name, row)
        pixels = seen["pixel_values"]
        changed = noised(pixels[None], share)[0] if name == "qwen2_vl" else noised(pixels, share)
        tokens, _ = captioning.generate(model, [seen, {**seen, "pixel_values": changed}], guidance, NEW)
        assert out.sequences[row, -NEW:].tolist() == tokens


@pytest.mark.parametrize("name", ["llava", "idefics3", "paligemma", "qwen2_vl"])
@pytest.mark.parametrize("guidance", [Steering(VECTOR, 0, 2.0), Steering(VECTOR, (0, 1), 1.0, scale=1.7)])
def test_steering_equals_the_oracle(name: str, guidance: Steering) -> None:
    model, _ = models.build(name)
    inner = model.model.text_model if name in ("idefics3", "smolvlm") else model.model.language_model
    out = decode(name, guidance)

    def distribution(seen: dict[str, Any], written: list[int], places: Any) -> list[float]:
        def add(_: Any, __: Any, output: Any) -> Any:
            moved = torch.tensor(VECTOR) * guidance.strength
            return (output[0] + moved, *output[1:]) if isinstance(output, tuple) else output + moved

        hooks = [inner.layers[place].register_forward_hook(add) for place in places]
        found = captioning.next_log_probs(model, seen, written)
        for hook in hooks:
            hook.remove()
        return found

    changed = False
    for row in range(3):
        seen, written = oracle_inputs(name, row), []
        for step in range(NEW):
            plain = distribution(seen, written, ())
            logps = [distribution(seen, written, guidance.layers), plain][: 1 + len(guidance.branches)]
            guided = guided_log_probs(guidance, torch.tensor(logps)[:, None], Step.at(step, NEW))[0]
            changed = changed or int(guided.argmax()) != max(range(len(plain)), key=plain.__getitem__)
            written.append(int(guided.argmax()))
        assert out.sequences[row, -NEW:].tolist() == written
    assert changed


def test_caption_takes_both() -> None:
    model, processor = models.build("llava")
    texts = [f"{Encoder(model, processor).placeholder} {text}" for text in PROMPTS]
    images = [models.picture(row) for row in range(3)]
    for guidance in (VCD(), Steering(VECTOR, 0, 2.0)):
        out = textguide.caption(model, processor, images, guidance, prompts=texts, max_new_tokens=NEW)
        assert out.new_tokens == decode("llava", guidance).sequences[:, -NEW:].tolist()
    through = textguide.generate(model, processor, texts, "vcd", images=images, max_new_tokens=NEW)
    assert through.new_tokens == decode("llava", VCD()).sequences[:, -NEW:].tolist()


def test_two_branches_of_the_text_model_keep_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models.build("llava")
    words, text_model = models.tokenizer(), models.language_model()
    monkeypatch.setattr(models, "WORDS", models.WORDS[::-1])
    others = models.tokenizer()  # the same words with other numbers
    guidance = Formula("cond + 0.9*M('language_model', 'red dog') - 0.4*M('language_model', 'cat')")
    inputs = image_rows("llava")
    how = Captioning(captioner=model, inputs=inputs, language_model=(text_model, others))
    decoding = guided_decoding(guidance, captioning=how, warn=False, tokenizer=words)
    size = model.config.get_text_config(decoder=True).vocab_size
    tokens = VocabularyMap.between(words, size, others, models.VOCAB)
    unknown = (tokens.index < 0).nonzero()[:, 0].tolist()  # what the text model cannot read
    options = {"suppress_tokens": unknown, "custom_generate": decoding}
    written = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)
    for row in range(3):
        found: list[int] = []
        for step in range(NEW):
            logps = [captioning.next_log_probs(model, oracle_inputs("llava", row), found)]
            for prompt in ("red dog", "cat"):
                ids = others(prompt).input_ids
                logps.append(
                    captioning.text_log_probs(text_model, ids, found, tokens.index.tolist(), models.EOS, tokens.ends)
                )
            combined = guided_log_probs(guidance, torch.tensor(logps)[:, None], Step.at(step, NEW))[0]
            combined[unknown] = -torch.inf
            found.append(int(combined.argmax()))
        assert written[row, -NEW:].tolist() == found
