"""Steering: a vector inside the model, as the conditional pass and against the model as it is."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import steering
from textguide.guidance import Guidance, Steering
from textguide.guidance.spec import as_guidance
from textguide.guidance.views import Steered, VectorFile
from textguide.reference import decoding

from ..architectures import VOCAB, Tokenizer, build
from .oracles import mixed, oracle, settings

VECTOR = tuple(random.Random(4).uniform(-2.0, 2.0) for _ in range(32))
"""As wide as the models of the matrix."""
IDS = [5, 9, 33, 7]


@oracle("steering")
def steered(guidance: Steering, logps: list[list[float]], s: float) -> list[float]:
    if len(logps) == 1:
        return decoding.normalized(logps[0])
    scale = decoding.cfg_scale(guidance, s)  # type: ignore[arg-type]
    scores = logps[0] if scale == 1.0 else mixed(logps[0], logps[1], scale)
    return decoding.normalized(scores) if guidance.renormalize else scores


settings(
    Steering(VECTOR, strength=0.0, scale=2.0),
    Steering(VECTOR, 0, 1.5),
    Steering(VECTOR, (0, 0.5), -0.7, scale=2.0),
    Steering(VECTOR, 0.5, scale=1.8, schedule="linear", start=0.3, stop=0.8),
)


def trained(model: Any, seed: int = 0) -> steering.SteeringVector:
    rng = random.Random(seed)
    texts = [[rng.randrange(3, VOCAB) for _ in range(rng.choice((3, 5)))] for _ in range(10)]
    return steering.train(model, None, texts[:5], texts[5:], batch_size=2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox", "opt", "bloom", "mamba", "jamba"])
def test_a_vector_is_the_difference_of_means_behind_every_layer(name: str) -> None:
    model = build(name)
    layers = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    rng = random.Random(0)
    texts = [[rng.randrange(3, VOCAB) for _ in range(rng.choice((3, 5)))] for _ in range(10)]
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, out: Any) -> None:
        kept.append((out[0] if isinstance(out, tuple) else out)[0, -1])

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    sums = torch.zeros(2, len(layers), 32)
    for number, text in enumerate(texts):
        kept.clear()
        with torch.no_grad():
            model(torch.tensor([text]))
        sums[number // 5] += torch.stack(kept)
    for hook in hooks:
        hook.remove()
    found = steering.train(model, None, texts[:5], texts[5:], batch_size=2)
    torch.testing.assert_close(found.directions, (sums[0] - sums[1]) / 5, atol=1e-3, rtol=1e-4)
    assert not layers[0]._forward_hooks


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_recurrent_models_are_steered(name: str) -> None:
    model, prompts = build(name), [IDS, [8], [30, 31, 5, 6, 44, 2]]
    guidance = Steering(VECTOR, (0, 1), 0.8, scale=1.5)
    out = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=6)
    plain = textguide.generate(model, Tokenizer(), prompts, max_new_tokens=6)
    assert out.new_tokens != plain.new_tokens
    for row, prompt in enumerate(prompts):
        tokens, _ = decoding.generate(model, prompt, guidance, [prompt], 6)
        assert out.new_tokens[row] == tokens
    scored = textguide.score(model, Tokenizer(), prompts, out.new_tokens, guidance, horizon=6)
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=1e-3, rtol=0)


def test_the_model_of_the_user_stays_as_it_was() -> None:
    model = build("llama")
    with torch.no_grad():
        before = model(torch.tensor([IDS])).logits
        changed = textguide.generate(model, Tokenizer(), [IDS], Steering(VECTOR, 0, 5.0), max_new_tokens=4)
        plain = textguide.generate(model, Tokenizer(), [IDS], max_new_tokens=4)
        assert torch.equal(model(torch.tensor([IDS])).logits, before)
    assert changed.new_tokens != plain.new_tokens
    assert all(not module._forward_hooks for module in model.modules())


def test_plain_and_steered_are_scored_side_by_side() -> None:
    model = build("llama")
    guided = Steering(VECTOR, 0, 1.5)
    context, text = [IDS, IDS[:2]], [[8, 12, 4], [7, 7]]
    both = textguide.score(model, Tokenizer(), context, text, settings=[guided, None, Steering(VECTOR, 0, 0.0)])
    for number, one in enumerate((guided, None, None)):
        alone = textguide.score(model, Tokenizer(), context, text, one)
        torch.testing.assert_close(both.log_likelihood[number], alone.log_likelihood[0])
    assert (both.log_likelihood[0] != both.log_likelihood[1]).all()
    with pytest.raises(ValueError, match="must share their branches"):
        textguide.score(model, Tokenizer(), context, text, settings=[guided, Steering(VECTOR, 1, 1.5)])


def test_scales_with_and_without_a_branch_are_scored_side_by_side() -> None:
    model, context, text = build("llama"), [IDS, IDS[:2]], [[8, 12, 4], [7, 7]]
    together = textguide.score(model, Tokenizer(), context, text, Steering(VECTOR, 0, 1.5), scales=[1.0, 2.0, 0.0])
    for number, scale in enumerate((1.0, 2.0, 0.0)):
        alone = textguide.score(model, Tokenizer(), context, text, Steering(VECTOR, 0, 1.5, scale=scale))
        torch.testing.assert_close(together.log_likelihood[number], alone.log_likelihood[0])
    plain = textguide.score(model, Tokenizer(), context, text)
    torch.testing.assert_close(together.log_likelihood[2], plain.log_likelihood[0])


def test_one_pass_where_the_scale_is_one() -> None:
    assert Steering(VECTOR, 0).branches == ()
    assert len(Steering(VECTOR, 0, scale=1.5).branches) == 1
    assert len(Steering(VECTOR, 0, min_scale=2.0).branches) == 1
    model = build("llama")
    out = textguide.generate(model, Tokenizer(), [IDS], Steering(VECTOR, 0), max_new_tokens=4)
    assert out.effect.extra_passes == 0


def test_files(tmp_path: Path) -> None:
    model = build("llama")
    vector = trained(model)
    saved = vector.save(tmp_path / "V")
    assert steering.load(tmp_path / "V") == vector == saved
    texts = [
        textguide.generate(model, Tokenizer(), [IDS], guidance, max_new_tokens=6).new_tokens
        for guidance in (
            Steering(vector, 0, 3.0),
            Steering(saved, 0, 3.0),
            Steering(tmp_path / "V", 0, 3.0),
            as_guidance(f"steering:vector={tmp_path / 'V'},layers=0,strength=3"),
            Guidance.from_json(Steering(saved, 0, 3.0).to_json()),
        )
    ]
    assert texts == [texts[0]] * 5
    assert Steering(saved).vector == VectorFile(str(tmp_path / "V"), vector.fingerprint)
    assert Steering(saved) == Guidance.from_json(Steering(saved).to_json())
    assert Steering(vector).fingerprint != Steering(trained(model, 1)).fingerprint
    trained(model, 1).save(tmp_path / "V")
    with pytest.raises(ValueError, match=r"has been trained again since"):
        textguide.generate(model, Tokenizer(), [IDS], Steering(saved), max_new_tokens=2)
    (tmp_path / "V" / "steering.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        steering.load(tmp_path / "V")
    with pytest.raises(ValueError, match=r"has no steering\.safetensors"):
        steering.load(tmp_path / "W")


def test_the_vector_that_comes_along() -> None:
    assert steering.load("smollm2-positive").directions.shape == (30, 576)
    with pytest.raises(ValueError, match=r"belongs to smollm2 \(30 layers, width 576\), and this is another Llama"):
        textguide.generate(build("llama"), Tokenizer(), [IDS], Steering("smollm2-positive"), max_new_tokens=2)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    vector = dataclasses.replace(trained(build("llama")), model_name="tiny-llama").save(tmp_path / "V")
    for other in (build("llama", 1), build("gpt2")):
        with pytest.raises(ValueError, match=r"V' belongs to tiny-llama \(2 layers, width 32\), and this is another"):
            textguide.generate(other, Tokenizer(), [IDS], Steering(vector), max_new_tokens=2)
    with pytest.raises(ValueError, match="vector has 3 numbers, and LlamaForCausalLM has a width of 32"):
        textguide.generate(build("llama"), Tokenizer(), [IDS], Steering((1.0, 2.0, 3.0)), max_new_tokens=2)
    with pytest.raises(ValueError, match="layers=2 is not one of the model's 2 layers"):
        textguide.generate(build("llama"), Tokenizer(), [IDS], Steering(VECTOR, 2), max_new_tokens=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vector": None}, "vector=None must be a folder"),
        ({"vector": [1.0, float("nan")]}, "vector=nan must be a finite number"),
        ({"vector": {"folder": None, "fingerprint": "a"}}, "is not saved in a folder"),
        ({"layers": ()}, "does not contain a layer"),
        ({"layers": -1}, "layers=-1 must be a number from 0"),
        ({"layers": 1.5}, "layers=1.5 must be a number from 0"),
        ({"layers": "a-b"}, "layers='a-b' must be a number, or two"),
        ({"strength": float("inf")}, "strength=inf must be a finite number"),
    ],
)
def test_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Steering(**{"vector": VECTOR, **fields})


def test_layers_are_numbers_shares_and_ranges() -> None:
    assert Steering(VECTOR, "3-5").layers == (3, 4, 5)
    assert Steering(VECTOR, "7").layers == (7,)
    assert Steered(VECTOR, (0.5, 0.99, 2)).places(30) == [2, 15, 29]


def test_texts_that_train_nothing() -> None:
    with pytest.raises(ValueError, match=r"negative=\[\] must be a list"):
        steering.train(build("llama"), None, [IDS], [])
    with pytest.raises(ValueError, match="positive='abc' must be a list"):
        steering.train(build("llama"), Tokenizer(), "abc", ["abd"])
    with pytest.raises(ValueError, match="needs a decoder-only transformer"):
        steering.train(build("t5"), None, [IDS], [IDS])


@pytest.mark.parametrize(
    "options",
    [{"speculation": "prompt-lookup"}, {"cache_implementation": "static"}, {"batch_size": 1}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize(
    "guidance", [Steering(VECTOR, 0, 1.5), Steering(VECTOR, 0, 1.0, scale=2.0)], ids=["alone", "cfg"]
)
def test_options_of_a_run_change_nothing(guidance: Steering, options: dict[str, Any]) -> None:
    model, prompts = build("llama"), [IDS, [5, 9, 5, 9, 5], [8]]
    plain = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=12)
    end = plain.new_tokens[0][3]
    for more in ({}, {"eos_token_id": end}):
        expected = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=12, **more).new_tokens
        other = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=12, **options, **more)
        assert other.new_tokens == expected
