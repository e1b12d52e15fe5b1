"""Wrong models and tokenizers are named before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import textguide
from textguide.support import checks

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
        ("model", Picture(), ["tokenizer=Picture", "the model's tokenizer"]),
        ("model", Processor(), ["tokenizer=Processor", "processor.tokenizer"]),
        ("model", "smollm2", ["tokenizer='smollm2'"]),
        ("smollm2", Tokenizer(), ["model='smollm2' is a name", "textguide.load('smollm2')"]),
        (None, Tokenizer(), ["model=None"]),
        (Tokenizer(), Tokenizer(), ["model=Tokenizer is not a language model"]),
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


@pytest.mark.parametrize("value", [np.float32(1.5), np.float64(1.5), 1.5, np.float16(1.5)])
def test_numbers_of_numpy_are_numbers(value: Any) -> None:
    found = checks.finite_number("scale", value)
    assert (found, type(found)) == (1.5, float)
    assert textguide.CFG(value) == textguide.CFG(1.5)


@pytest.mark.parametrize("value", [np.int64(3), np.int8(3), 3])
def test_integers_of_numpy_are_whole_numbers(value: Any) -> None:
    found = checks.whole_number("particles", value, 1)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [True, np.bool_(True), "3", 3.0, None, [3], float("nan")])
def test_what_is_not_a_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"particles=.* must be a whole number of 1 or more"):
        checks.whole_number("particles", value, 1)


@pytest.mark.parametrize("value", [True, np.bool_(True), "1.5", float("inf"), float("nan"), None, 10**400, 1j])
def test_what_is_not_a_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"scale=.* must be a finite number"):
        checks.finite_number("scale", value)


def test_other_checks_name_the_argument() -> None:
    assert checks.flag("renormalize", False) is False
    assert checks.one_of("order", "random", ("random", "margin")) == "random"
    assert checks.share("alpha", 1) == 1.0
    assert checks.number_from("temperature", 0, 0.0) == 0.0
    for call, message in (
        (lambda: checks.flag("renormalize", 1), "renormalize=1 must be True or False"),
        (lambda: checks.one_of("order", ["x"], ("random", "margin")), "must be one of random, margin"),
        (lambda: checks.share("alpha", 1.1), r"alpha=1.1 must be a number in \[0, 1\]"),
        (lambda: checks.number_from("temperature", -1, 0.0, "0 is greedy"), "must be a number of 0 or more; 0 is"),
        (lambda: checks.number_from("temperature", float("inf"), 0.0), "temperature=inf must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("call", [CALLS["explain"], CALLS["eager"], CALLS["score"]])
def test_calls_that_return_texts_need_a_tokenizer(call: Any) -> None:
    with pytest.raises(ValueError, match=r"tokenizer=None cannot decode texts; .*textguide\.load"):
        call(build("llama"), None)


def test_whole_numbers_have_64_bits() -> None:
    assert checks.whole_number("n", 2**63 - 1) == 2**63 - 1
    for value in (2**63, -(2**63), 10**400):
        with pytest.raises(ValueError, match=r"^n=.* must be at most 9223372036854775807; give less$") as caught:
            checks.whole_number("n", value, remedy="give less")
        assert len(str(caught.value)) < 200
