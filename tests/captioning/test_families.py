"""Guided captioning on every family: all ways in agree with each other and with the oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, EAGer, FeynmanKac, LMGuidance, guided_decoding
from textguide.captioning import Captioning, VocabularyMap, families
from textguide.captioning.generation import Encoder
from textguide.captioning.images import noised
from textguide.engine.branch_inputs import is_vision_encoder_decoder
from textguide.engine.model_views import part
from textguide.forward import row_batch
from textguide.forward.own_lengths import OwnLengthsCache
from textguide.guidance import (
    ContextAware,
    DoLa,
    Guidance,
    IndependentCondition,
    InstructionContrastive,
    S2Guidance,
    Step,
    TokenPerturbation,
)
from textguide.reference import captioning
from textguide.step.guided_step import guided_log_probs

from ..guidance import oracles
from . import models

oracles.collect()
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
        return [inputs, captioning.without_image(inputs, hidden)]
    pixels = inputs["pixel_values"]
    if kind == "noise":
        changed = noised(pixels[None])[0] if name == "qwen2_vl" else noised(pixels)
    else:
        changed = families.blank(models.build(name)[0], pixels) if kind == "blank" else other_pixels(name)
    return [inputs, {**inputs, "pixel_values": changed}]


def decode(
    name: str, guidance: Any, kind: Any = "blank", rows: tuple[int, ...] = (0, 1, 2), new: int = NEW, **options: Any
) -> Any:
    """Through ``model.generate(custom_generate=…)`` with everything that can be said."""
    model, processor = models.build(name)
    inputs = image_rows(name, rows)
    unconditional = other_pixels(name) if kind == "image" else kind
    how = Captioning(unconditional, captioner=model, inputs=inputs)
    options = {"tokenizer": getattr(processor, "tokenizer", None), **options}
    decoding = guided_decoding(guidance, captioning=how, log_probs=True, warn=False, **options)
    model.generate(**inputs, max_new_tokens=new, do_sample=False, custom_generate=decoding)
    return decoding.last


@pytest.fixture(params=models.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_oracle_alone_and_in_a_batch(name: str, kind: str) -> None:
    if name == "vision_encoder_decoder" and kind == "text":
        with pytest.raises(ValueError, match="only reads images; use 'blank'"):
            decode(name, CFG(2.5), kind)
        return
    guidance = CFG(2.5, schedule="linear") if kind == "blank" else CFG(2.5)
    distributions: list[list[torch.Tensor]] = [[], [], []]

    def keep(view: Any) -> None:
        for row, distribution in zip(view.samples, view.guided, strict=True):
            distributions[row].append(distribution)

    out = decode(name, guidance, kind, observer=keep)
    texts = out.sequences[:, -NEW:].tolist()
    for row in range(3):
        model, _ = models.build(name)
        tokens, expected = captioning.generate(model, conditions(name, row, kind), guidance, NEW)
        assert texts[row] == tokens
        torch.testing.assert_close(
            torch.stack(distributions[row]).double(), torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=1e-4
        )
        alone = decode(name, guidance, kind, (row,))
        assert alone.sequences[0, -NEW:].tolist() == tokens
        torch.testing.assert_close(alone.log_probs[0], out.log_probs[row], atol=1e-3, rtol=1e-4)
    firsts = torch.stack([distribution[0] for distribution in distributions])
    assert (firsts[0] - firsts[1]).abs().max() > 1e-3  # what is seen matters


@pytest.mark.parametrize("kind", ["blank", "text"])
def test_rows_may_keep_their_own_lengths(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same texts if no row of a pass is padded to another one, in the models that allow it."""
    if name == "vision_encoder_decoder" and kind == "text":
        pytest.skip("it only reads images")
    padded = decode(name, CFG(2.5), kind)
    made = []
    start = OwnLengthsCache.__init__

    def count(cache: Any, *parts: Any) -> None:
        made.append(cache)
        start(cache, *parts)

    monkeypatch.setattr(row_batch, "LEAST_PADDING", 1)
    monkeypatch.setattr(OwnLengthsCache, "__init__", count)
    own = decode(name, CFG(2.5), kind)
    assert torch.equal(own.sequences, padded.sequences)
    torch.testing.assert_close(own.log_probs, padded.log_probs, atol=1e-3, rtol=1e-4)
    if kind == "text" and name in PROMPTED and name != "paligemma":  # it reads prompts in both directions
        assert made  # the branches have prompts of other lengths than those with an image


def test_scale_one_is_bit_equal_to_plain_generate_in_one_pass(name: str) -> None:
    model, _ = models.build(name)
    inputs = image_rows(name)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    with Count(model) as plain_calls:
        plain = model.generate(**inputs, **options, output_scores=True)
    for guidance in (None, CFG(1.0)):
        with Count(model) as calls:
            guided = model.generate(**inputs, **options, output_scores=True, custom_generate=guided_decoding(guidance))
        assert torch.equal(plain.sequences, guided.sequences)
        assert all(torch.equal(a, b) for a, b in zip(plain.scores, guided.scores, strict=True))
        assert calls == plain_calls


def test_the_vision_encoder_runs_once_an_image_and_one_pass_a_step(name: str) -> None:
    with Count(models.build(name)[0]) as calls:
        decode(name, CFG(2.0), "blank")
    # Three images (for Qwen2-VL their patches), and one or three blank ones where prompts differ; nothing later on.
    seen = sum(calls.images)
    per_image = 16 if name == "qwen2_vl" else 1
    assert seen == (6 if name in PROMPTED else 4) * per_image
    assert calls.steps[-(NEW - 1) :] == [6] * (NEW - 1)


def test_from_inside_generate_blank_is_the_same(name: str) -> None:
    model, _ = models.build(name)
    inputs = image_rows(name)
    how = Captioning(captioner=model) if name in ("blip", "blip_2") else None
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    if name in ("idefics3", "smolvlm", "qwen2_vl"):
        with pytest.raises(ValueError, match=r"pass captioning=Captioning\(inputs=inputs\)"):
            model.generate(**inputs, **options, custom_generate=guided_decoding(CFG(2.5)))
        how = Captioning(inputs=inputs)
    out = model.generate(**inputs, **options, custom_generate=guided_decoding(CFG(2.5), captioning=how))
    assert out[:, -NEW:].tolist() == decode(name, CFG(2.5)).sequences[:, -NEW:].tolist()
    if name == "blip":
        with pytest.raises(ValueError, match="inner part of a captioner"):
            model.generate(**inputs, **options, custom_generate=guided_decoding(CFG(2.5)))


def test_caption_and_generate_give_the_same(name: str) -> None:
    model, processor = models.build(name)
    if processor is None:
        pytest.skip("the processor of Qwen2-VL needs torchvision for its videos")
    texts = [f"{Encoder(model, processor).placeholder} {text}" for text in PROMPTS] if name in PROMPTED else None
    images = [models.picture(row) for row in range(3)]
    out = textguide.caption(model, processor, images, CFG(2.5), prompts=texts, max_new_tokens=NEW)
    expected = decode(name, CFG(2.5)).sequences[:, -NEW:].tolist()
    assert out.new_tokens == expected
    batched = textguide.caption(model, processor, images, CFG(2.5), prompts=texts, max_new_tokens=NEW, batch_size=2)
    assert batched.new_tokens == expected
    seen = textguide.caption(
        model, processor, images, CFG(2.5), prompts=texts, max_new_tokens=NEW, unconditional=models.picture(9)
    )
    assert seen.new_tokens != expected
    if texts is not None:
        through = textguide.generate(model, processor, texts, CFG(2.5), images=images, max_new_tokens=NEW)
        assert through.new_tokens == expected
    several = textguide.caption(
        model, processor, images, CFG(2.5), prompts=texts, max_new_tokens=NEW, num_return_sequences=2, do_sample=True,
        seed=0,
    )  # fmt: skip
    assert len(several.texts) == 6


def test_language_model_guidance_equals_the_oracle(name: str) -> None:
    model, _ = models.build(name)
    words = models.tokenizer()
    language_model = models.language_model()
    guidance = LMGuidance(alpha=2.0, prompt=[33, 35, 8, 30, 8])
    inputs = image_rows(name)
    how = Captioning(captioner=model, inputs=inputs, language_model=(language_model, words))
    decoding = guided_decoding(guidance, captioning=how, log_probs=True, warn=False, tokenizer=words)
    distributions: list[torch.Tensor] = []
    decoding.observer = lambda view: distributions.append(view.guided)
    model.generate(**inputs, max_new_tokens=NEW, do_sample=False, custom_generate=decoding)
    size = model.config.get_text_config(decoder=True).vocab_size
    tokens = VocabularyMap.between(words, size, words, models.VOCAB)
    index = tokens.index.tolist()
    assert index[models.NEWLINE] == -1
    assert tokens.ends == (models.EOS, models.NEWLINE)

    def text(written: Any) -> Any:
        return captioning.text_log_probs(language_model, list(guidance.prompt), written, index, models.EOS, tokens.ends)

    for row in range(3):
        found, expected = captioning.generate(model, conditions(name, row, "blank"), guidance, NEW, text)
        assert decoding.last is not None
        assert decoding.last.sequences[row, -NEW:].tolist() == found
        got = torch.stack([distribution[row] for distribution in distributions]).double()
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=1e-4)


OTHERS = [Guidance.registry[name] for name in ("annealed", "apg", "beta-cfg", "contrastive", "dynamic", "nag")]


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.name)
@pytest.mark.parametrize("name", ["vision_encoder_decoder", "llava"])
def test_other_guidances_act_on_what_is_seen(name: str, method: Any) -> None:
    model, _ = models.build(name)
    guidance = method()
    # A second captioner: the same one with weights of its own where the guidance runs another model.
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.8)
    named = {branch.model: other for branch in guidance.branches if branch.model}
    out = decode(name, guidance, models=named)
    for row in range(3):
        seen, blank = conditions(name, row, "blank")
        written: list[int] = []
        for step in range(NEW):
            distributions = [captioning.next_log_probs(model, seen, written)]
            for branch in guidance.branches:
                owner, inputs = (other, seen) if branch.model else (model, blank)
                distributions.append(captioning.next_log_probs(owner, inputs, written))
            distribution = guided_log_probs(guidance, torch.tensor(distributions)[:, None], Step.at(step, NEW))[0]
            written.append(int(distribution.argmax()))
        assert out.sequences[row, -NEW:].tolist() == written


HIDDEN = {models.IMAGE, models.VISION_START, models.VISION_END, models.FAKE, models.GLOBAL}
EDITS = {
    "instruction": InstructionContrastive(2.0, instruction=[20, 21]),
    "shuffled": TokenPerturbation(2.0),
    "unrelated": IndependentCondition(2.0, prompt=[22, 23, 24]),
    "context": ContextAware(2.0, context=("it", "red dog", "cat")),
}


def edited(name: str, guidance: Any, row: int) -> dict[str, Any]:
    """The inputs of one row with the change made by hand, token by token."""
    inputs = oracle_inputs(name, row)
    ids = inputs["input_ids"][0].tolist()
    last = max(place for place, token in enumerate(ids) if token in HIDDEN)
    text = [token for token in ids if token not in HIDDEN]
    if guidance.name == "instruction-contrastive":
        new = [*ids[: last + 1], 20, 21, *ids[last + 1 :]]
    elif guidance.name == "context-aware":
        lost = models.tokenizer()(guidance.context[row]).input_ids
        start = next(n for n in range(last, len(ids)) if ids[n : n + len(lost)] == lost)
        kept = ids[last + 1 : start] + ids[start + len(lost) :]
        new = ids[: last + 1] + (kept or ids[-1:])
    else:
        changed = guidance.branches[0].edit.apply(text, None, list)
        assert len(changed) == len(text)
        new = [token if token in HIDDEN else changed.pop(0) for token in ids]
    out = {**inputs, "input_ids": torch.tensor([new])}
    for side in ("token_type_ids", "mm_token_type_ids"):
        if side in inputs:
            values = inputs[side][0].tolist()
            behind = len(new) - last - 1
            out[side] = torch.tensor([values[: last + 1] + [values[-1]] * behind])
    return out


@pytest.mark.parametrize("setting", EDITS)
@pytest.mark.parametrize("name", PROMPTED)
def test_edits_change_the_text_around_the_image(name: str, setting: str) -> None:
    model, _ = models.build(name)
    guidance = EDITS[setting]
    if name == "qwen2_vl" and setting == "context":  # whose prompts are other tokens
        lasts = [oracle_inputs(name, row)["input_ids"][0, -1:] for row in range(3)]
        guidance = ContextAware(2.0, context=tuple(map(models.tokenizer().decode, lasts)))
    tokenizer = {} if models.build(name)[1] is not None else {"tokenizer": models.tokenizer()}
    out = decode(name, guidance, **tokenizer)
    for row in range(3):
        seen = [oracle_inputs(name, row), edited(name, guidance, row)]
        assert out.sequences[row, -NEW:].tolist() == captioning.generate(model, seen, guidance, NEW)[0]


@pytest.mark.parametrize("method", [DoLa(exits=(1,)), DoLa(beta=1.5, alpha=0.0, exits=(1,)), S2Guidance(2.0, drop=0.5)])
@pytest.mark.parametrize("name", ["llava", "smolvlm", "paligemma", "qwen2_vl", "git"])
def test_parts_of_the_model_see_the_image(name: str, method: Any) -> None:
    model, _ = models.build(name)
    out = decode(name, method)
    for row in range(3):
        seen, blank = conditions(name, row, "blank")
        written: list[int] = []
        for step in range(NEW):
            distributions = [captioning.next_log_probs(model, seen, written)]
            for branch in method.branches:
                reader = model if branch.view is None else part(model, branch.view)
                inputs = seen if branch.same_prompt else blank
                distributions.append(captioning.next_log_probs(reader, inputs, written))
            distribution = guided_log_probs(method, torch.tensor(distributions)[:, None], Step.at(step, NEW))[0]
            written.append(int(distribution.argmax()))
        assert out.sequences[row, -NEW:].tolist() == written


@pytest.mark.parametrize("ess_threshold", [0.0, 1.0], ids=["weighed", "moved"])
def test_particles_of_the_product_move_with_their_images(name: str, ess_threshold: float) -> None:
    """Every row says what the oracle says of it; without resampling its weight is the product of its normalisers."""
    model, processor = models.build(name)
    inputs = image_rows(name)
    how = Captioning("blank", captioner=model, inputs=inputs)
    product = FeynmanKac(4, ess_threshold=ess_threshold)
    tokenizer = getattr(processor, "tokenizer", None) or models.tokenizer()
    decoding = guided_decoding(
        [CFG(2.0), product], captioning=how, log_probs=True, warn=False, tokenizer=tokenizer,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    # A token that stands for an image cannot be read again as text.
    options: dict[str, Any] = {"num_return_sequences": 4, "suppress_tokens": sorted(HIDDEN), "top_k": 0}
    model.generate(**inputs, max_new_tokens=NEW, do_sample=True, custom_generate=decoding, **options)
    last = decoding.last
    assert last is not None
    assert last.population is not None
    assert last.log_probs is not None
    assert last.population.log_weights is not None
    for row in range(12):
        tokens = last.sequences[row, -NEW:].tolist()[: last.lengths[row]]
        weight = 0.0
        for step, token in enumerate(tokens):
            seen = conditions(name, row // 4, "blank")
            cond, uncond = (torch.tensor(captioning.next_log_probs(model, one, tokens[:step])) for one in seen)
            scores = uncond + 2.0 * (cond - uncond)
            weight += float(scores.logsumexp(-1))
            assert float(last.log_probs[row, step]) == pytest.approx(float(scores.log_softmax(-1)[token]), abs=1e-4)
        if not ess_threshold:
            assert float(last.population.log_weights[row]) == pytest.approx(weight, abs=1e-4)


def test_captions_fork_as_texts_do() -> None:
    """A row for every branch; what is shared with the row that it forked from is the same."""
    model, processor = models.build("git")
    guidance = [CFG(2.0), EAGer(entropy_threshold=0.5, max_branches=3)]
    pictures = [models.picture(row) for row in range(2)]
    out = textguide.caption(model, processor, pictures, guidance, max_new_tokens=NEW, temperature=1.0, seed=0)
    assert len(out.texts) == 6
    assert out.origins is not None
    forked = [(row, origin) for row, origin in enumerate(out.origins) if origin is not None]
    assert forked
    for row, (first, shared) in forked:
        assert row // 3 == first // 3
        assert out.new_tokens[row][:shared] == out.new_tokens[first][:shared]


def test_what_does_not_work_with_images_is_refused() -> None:
    for method, message in (
        ("dola", "needs a decoder-only transformer"),
        ("token-perturbation", "captions without a prompt, and this guidance changes the prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            decode("vision_encoder_decoder", Guidance.registry[method]())
    model, _ = models.build("vision_encoder_decoder")
    inputs = image_rows("vision_encoder_decoder")
    for how, message in (
        (Captioning("noise"), "'noise' needs the pixels, which this model's generate does not pass on"),
        (Captioning(torch.zeros(1, 3, 8, 8)), r"shape \(1, 3, 8, 8\); this run has \(3, 3, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, max_new_tokens=3, custom_generate=guided_decoding(CFG(2.0), captioning=how))
    with pytest.raises(ValueError, match="must be one of blank, text, noise, or pixel values"):
        Captioning("grey")
    with pytest.raises(ValueError, match="needs a text-only model"):
        decode("vision_encoder_decoder", LMGuidance())


class Count:
    """Counts what a captioner's parts are called with while it is entered."""

    def __init__(self, model: Any) -> None:
        self.images: list[int] = []
        self.steps: list[int] = []
        inner = {"blip": "text_decoder", "blip-2": "language_model"}.get(model.config.model_type)
        self.decoder = model if inner is None else getattr(model, inner)
        core = getattr(model, "git", getattr(model, "model", model))
        names = ("encoder", "image_encoder", "vision_model", "vision_tower", "visual")
        holder = model if hasattr(model, "vision_model") or is_vision_encoder_decoder(model) else core
        self.vision = next(
            getattr(holder, name) for name in names[:: 1 if holder is model else -1] if hasattr(holder, name)
        )

    def __enter__(self) -> Count:
        def seen(_: Any, args: Any, kwargs: Any) -> None:
            pixels = next((kwargs[k] for k in ("pixel_values", "hidden_states") if k in kwargs), None)
            self.images.append(len(args[0] if pixels is None else pixels))

        def step(_: Any, args: Any, kwargs: Any) -> None:
            ids = kwargs.get("decoder_input_ids", kwargs.get("input_ids"))
            self.steps.append(len(kwargs["inputs_embeds"] if ids is None else ids))

        self.hooks = [
            self.vision.register_forward_pre_hook(seen, with_kwargs=True),
            self.decoder.register_forward_pre_hook(step, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Count) and (self.images, self.steps) == (other.images, other.steps)
