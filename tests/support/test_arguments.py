"""Wrong models and tokenizers are named before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

import textguide

from ..architectures import Tokenizer, build


class Picture:
    """An image processor: no texts."""

    def __call__(self, images: Any) -> Any:
        raise AssertionError("it was asked")


class Processor(Picture):
    """Reads images and texts."""

    image_processor = Picture()
    tokenizer = Tokenizer()

    def decode(self, ids: Any) -> str:
        raise AssertionError("it was asked")


CALLS = {
    "generate": lambda model, tokenizer: textguide.generate(model, tokenizer, [5, 9], max_new_tokens=2),
    "stream": lambda model, tokenizer: textguide.stream(model, tokenizer, [5, 9], max_new_tokens=2),
    "explain": lambda model, tokenizer: textguide.explain(model, tokenizer, [5, 9], max_new_tokens=2),
    "eager": lambda model, tokenizer: textguide.eager(model, tokenizer, [5, 9], max_new_tokens=2),
    "score": lambda model, tokenizer: textguide.score(model, tokenizer, [5, 9], [7]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize(
    ("model", "tokenizer", "parts"),
    [
        (Tokenizer(), "model", ["model=Tokenizer", "swapped", "the model comes first"]),
        ("model", None, ["tokenizer=None", "textguide.load"]),
        ("model", Picture(), ["tokenizer=Picture", "the model's tokenizer"]),
        ("model", Processor(), ["tokenizer=Processor", "processor.tokenizer"]),
        ("model", "smollm2", ["tokenizer='smollm2'"]),
        ("smollm2", Tokenizer(), ["model='smollm2' is a name", "textguide.load('smollm2')"]),
        (None, Tokenizer(), ["model=None"]),
        (Tokenizer(), Tokenizer(), ["model=Tokenizer is no language model"]),
    ],
)
def test_wrong_models_and_tokenizers(call: Any, model: Any, tokenizer: Any, parts: list[str]) -> None:
    built: Any = build("llama")
    calls: list[Any] = []
    hook = built.register_forward_pre_hook(lambda *_: calls.append(1))
    model, tokenizer = (built if one == "model" else one for one in (model, tokenizer))
    with pytest.raises(ValueError) as caught:
        call(model, tokenizer)
    hook.remove()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert calls == []
