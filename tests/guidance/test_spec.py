"""What may be passed as ``guidance=``: objects, text, dicts, and lists of these, in every way in."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import textguide
from textguide import CAIF, CFG
from textguide.guidance import Composed, Guidance, as_guidance

from ..architectures import Tokenizer, build

CLASSIFIER = CAIF("sentiment", "positive", 2.0)
BOTH = Composed((CFG(2.0), CLASSIFIER))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cfg:scale=2.0", CFG(2.0)),
        ("cfg", CFG()),
        ("plain", None),
        (" None ", None),
        (CFG(2.0).to_dict(), CFG(2.0)),
        (CFG(2.0).to_json(), CFG(2.0)),
        (BOTH.to_dict(), BOTH),
        ("cfg:scale=2.0 + caif:classifier=sentiment,target=positive,weight=2.0", BOTH),
        (["cfg:scale=2.0", CLASSIFIER], BOTH),
        (("caif:classifier=sentiment,target=positive,weight=2.0", CFG(2.0).to_dict()), BOTH),
        ([CLASSIFIER.to_json(), json.loads(CFG(2.0).to_json())], BOTH),
        (["cfg:scale=2.0"], CFG(2.0)),
        ([], None),
        (None, None),
        (BOTH, BOTH),
    ],
)
def test_every_spelling(given: Any, expected: Guidance | None) -> None:
    assert as_guidance(given) == expected


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("cgf:scale=2", ["'cgf'", "cfg"]),
        ("cfg:scal=2", ["'scal'", "scale"]),
        (["cfg", "apg"], ["their own branches"]),
        ([CFG(2.0), None], ["None", "leave it out"]),
        (["cfg", "plain"], ["'plain'", "leave it out"]),
        ({"method": "cgf"}, ["'cgf'"]),
        ({"scale": 2.0}, ["method=None"]),
        (1.5, ["guidance=1.5", "CFG(scale=1.5)"]),
        ([CLASSIFIER, "hot"], ["'hot'"]),
    ],
)
def test_what_is_no_guidance_is_named(given: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        as_guidance(given)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.mark.parametrize("spelt", ["cfg:scale=2.5", {"method": "cfg", "scale": 2.5}, ["cfg:scale=2.5"]])
def test_every_function_takes_text_and_dicts(model: Any, spelt: Any) -> None:
    prompt, new = [5, 9, 33, 7, 20], {"max_new_tokens": 5}
    meant = CFG(2.5)
    plain = textguide.generate(model, Tokenizer(), prompt, **new)  # type: ignore[arg-type]

    def texts(guidance: Any) -> list[Any]:
        generated = textguide.generate(model, Tokenizer(), prompt, guidance, **new)  # type: ignore[arg-type]
        streamed = [step.token for step in textguide.stream(model, Tokenizer(), prompt, guidance, **new)]
        forked = textguide.eager(model, Tokenizer(), prompt, guidance, max_branches=1, **new)
        explained = textguide.explain(model, Tokenizer(), prompt, guidance, **new)  # type: ignore[arg-type]
        scored = textguide.score(model, Tokenizer(), prompt, [7, 8], guidance)
        swept = textguide.score(model, Tokenizer(), prompt, [7, 8], settings=[None, guidance])
        inside = model.generate(
            torch.tensor([prompt]), custom_generate=textguide.guided_decoding(guidance), do_sample=False, **new
        )
        return [
            generated.new_tokens, streamed, forked.new_tokens, explained.guidance, explained.text,
            scored.log_likelihood.tolist(), swept.log_likelihood.tolist(), inside.tolist(),
        ]  # fmt: skip

    expected = texts(meant)
    assert texts(spelt) == expected
    assert expected[0] != plain.new_tokens


def test_captions_and_canvases_take_text(tmp_path: Any) -> None:
    from PIL import Image

    captioner, processor = textguide.captioning.load("drawn-scenes", device="cpu")
    picture = Image.new("RGB", (64, 64), "red")
    first, second = (
        textguide.caption(captioner, processor, picture, guidance, max_new_tokens=4).texts
        for guidance in ("cfg:scale=2.0", CFG(2.0))
    )
    assert first == second
    denoiser, tokenizer = textguide.diffusion.load("sudoku4", device="cpu")
    board = "0300124300000431"
    outs = [
        textguide.diffusion.generate(denoiser, tokenizer, board, guidance=guidance, gen_length=16)
        for guidance in ("cfg:scale=2.0", CFG(2.0))
    ]
    assert outs[0].texts == outs[1].texts
    assert outs[0].effect == outs[1].effect


@pytest.mark.parametrize(
    ("guidance", "text"),
    [
        (CFG(), "CFG(scale=1.5)"),
        (CFG(2.0, negative_prompt="no"), "CFG(scale=2.0, negative_prompt='no')"),
        ([CFG(1.5), CAIF("sentiment", "positive")], "CFG(scale=1.5) + CAIF(classifier='sentiment', target='positive')"),
    ],
)
def test_messages_name_the_fields_that_differ_from_their_defaults(guidance: Any, text: str) -> None:
    assert str(as_guidance(guidance)) == text


def test_a_long_value_is_cut_in_messages() -> None:
    assert len(str(CFG(2.0, negative_prompt="x" * 100_000))) < 120


def test_missing_fields_are_named() -> None:
    with pytest.raises(
        ValueError, match="'caif' needs classifier and target; write caif:classifier=VALUE,target=VALUE"
    ):
        as_guidance("caif")
    with pytest.raises(ValueError, match="caif needs classifier; add it"):
        Guidance.from_dict({"method": "caif", "target": "positive"})
