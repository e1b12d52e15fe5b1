"""The options of a canvas: one declaration for generate, infill, stream, the servers, the playground and lm-eval."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, diffusion
from textguide.diffusion import CanvasOptions
from textguide.engine.results import GenerateResult
from textguide.serving.errors import RefusedError
from textguide.serving.limits import Limits
from textguide.serving.schema import describe_fields, read_fields

from . import tiny

NAMES = {option.name for option in fields(CanvasOptions)}
PROMPTS = ["abc", "fghabk", "l"]


def generate(prompts: Any = PROMPTS, *positional: Any, **options: Any) -> diffusion.DiffusionResult:
    return diffusion.generate(*tiny.build("llada"), prompts, *positional, **{"warn": False, **options})


def test_the_functions_accept_the_fields() -> None:
    assert inspect.signature(diffusion.generate).parameters.keys() >= NAMES
    infilling = {option.name for option in fields(CanvasOptions) if option.metadata["infill"]}
    assert inspect.signature(diffusion.infill).parameters.keys() & NAMES == infilling
    assert NAMES - infilling == {"max_new_tokens", "block_length", "early_end"}


@pytest.mark.parametrize("function", [diffusion.generate, diffusion.infill])
def test_the_functions_have_the_defaults_of_the_fields(function: Any) -> None:
    for option in fields(CanvasOptions):
        parameter = inspect.signature(function).parameters.get(option.name)
        if parameter is not None and option.name != "max_new_tokens":  # None there, because it has an alias
            assert parameter.default == option.default


def test_names_are_those_of_generate() -> None:
    shared = (
        "guidance",
        "max_new_tokens",
        "seed",
        "stop",
        "include_stop",
        "batch_size",
        "constraint",
        "models",
    )
    for function in (textguide.generate, diffusion.generate):
        assert [name for name in shared if name not in inspect.signature(function).parameters] == []
        assert list(inspect.signature(function).parameters)[3] == "guidance"


def test_results_have_the_same_names() -> None:
    own = {field.name for field in fields(diffusion.DiffusionResult)}
    shared = own & {field.name for field in fields(GenerateResult)}
    assert shared == {"texts", "sequences", "new_tokens", "effect", "log_weights", "finish_reasons"}


def test_options_are_frozen_values() -> None:
    options = CanvasOptions(max_new_tokens=8)
    with pytest.raises(FrozenInstanceError):
        options.steps = 3  # type: ignore[misc]
    assert replace(options, steps=3) == CanvasOptions(max_new_tokens=8, steps=3)
    with pytest.raises(ValueError, match="steps=0 must be a whole number of 1 or more"):
        replace(options, steps=0)


def test_gen_length_is_another_name() -> None:
    expected = generate(max_new_tokens=6).texts
    assert generate(gen_length=6).texts == expected
    assert generate(gen_length=6, max_new_tokens=6).texts == expected
    with pytest.raises(ValueError, match="gen_length=5 is another name of max_new_tokens=6; give one of them"):
        generate(gen_length=5, max_new_tokens=6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("temprature", r"temprature= is not an option of textguide\.diffusion\.generate; did you mean temperature=\?"),
        ("max_tokens", r"did you mean max_new_tokens=\?"),
        ("batchsize", r"did you mean batch_size=\?"),
        ("gen_len", r"did you mean gen_length=\?"),
        ("do_sample", "temperature above 0 draws"),
        ("top_p", "use allowed= to restrict the tokens"),
        ("speculation", "fill several positions per step"),
        ("zzz", "known are max_new_tokens, steps"),
    ],
)
def test_unknown_options_name_the_known_one(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{option: 1})


def test_options_of_texts_with_given_ends_and_of_streams() -> None:
    model, words = tiny.build("llada")
    for name in ("max_new_tokens", "gen_length", "block_length", "early_end"):
        with pytest.raises(ValueError, match=f"{name}= is for text after a prompt; leave it out"):
            diffusion.infill(model, words, "ab[MASK]", **{name: 4})
    with pytest.raises(ValueError, match="stop= is for text after a prompt"):
        diffusion.infill(model, words, "ab[MASK]", stop="a")
    for name in ("stop", "batch_size", "keep_history"):
        with pytest.raises(ValueError, match=f"{name}= is for finished texts"):
            diffusion.stream(model, words, "ab", **{name: 1})
    with pytest.raises(ValueError, match=r"not an option of textguide\.diffusion\.stream; did you mean steps=\?"):
        diffusion.stream(model, words, "ab", step=4)


@pytest.mark.parametrize(
    "guidance", [None, CFG(2.0), "acfg:scale=2", CFG(2.0, negative_prompt=["a", "bc", "d"])], ids=str
)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_change_no_text(guidance: Any, size: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": [3, 1, 4]}
    together = generate(PROMPTS, guidance, **options)
    apart = generate(PROMPTS, guidance, batch_size=size, **options)
    assert apart.texts == together.texts
    assert apart.new_tokens == together.new_tokens
    assert apart.finish_reasons == together.finish_reasons
    assert apart.steps == together.steps
    assert torch.equal(apart.targets, together.targets)
    assert torch.equal(apart.sequences, together.sequences)
    assert apart.effect.guided_steps == together.effect.guided_steps


def test_batches_with_one_seed_and_a_function_of_rows() -> None:
    def first_letter_of_row(row: int, tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(len(tokens), tiny.VOCABULARY, dtype=torch.bool)
        mask[:, 5 + row] = True
        return mask

    assert generate(max_new_tokens=2, allowed=first_letter_of_row, batch_size=1).texts == ["aa", "bb", "cc"]
    drawn = generate(["ab"] * 4, max_new_tokens=6, temperature=1.0, seed=3, batch_size=1)
    assert len(set(drawn.texts)) > 1, "every batch draws its own numbers"
    assert generate(["ab"] * 4, max_new_tokens=6, temperature=1.0, seed=3, batch_size=1).texts == drawn.texts


def test_wrong_batches() -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number of 1 or more"):
        generate(batch_size=0)
    with pytest.raises(ValueError, match="keep_history=True keeps the canvas of one batch"):
        generate(batch_size=2, keep_history=True)


def test_stop_cuts_the_text_in_reading_order() -> None:
    whole = generate(max_new_tokens=8, early_end=False)
    text, tokens = whole.texts[0], whole.new_tokens[0]
    stop = text[2:4]
    end = text.index(stop) + 2
    cut = generate(max_new_tokens=8, early_end=False, stop=[stop, "zz"])
    assert cut.texts[0] == text[:end]
    assert cut.new_tokens[0] == tokens[:end]
    assert cut.finish_reasons[0] == "stop"
    assert cut.passes == whole.passes
    without = generate(max_new_tokens=8, early_end=False, stop=stop, include_stop=False)
    assert without.texts[0] == text[: end - 2]
    for wrong in ("", 3, ["a", ""]):
        with pytest.raises(ValueError, match="stop="):
            generate(stop=wrong)


def test_why_texts_ended() -> None:
    def end_of_second_row(row: int, tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(len(tokens), tiny.VOCABULARY, dtype=torch.bool)
        mask[:, 5:] = True
        if row == 1:
            mask[2] = torch.arange(tiny.VOCABULARY) == tiny.EOS
        return mask

    out = generate(max_new_tokens=6, allowed=end_of_second_row)
    assert out.finish_reasons == ["length", "eos", "length"]
    assert [len(tokens) for tokens in out.new_tokens] == [6, 3, 6]
    assert out.new_tokens[1][-1] == tiny.EOS
    assert [len(text) for text in out.texts] == [6, 2, 6]


def test_a_request_and_a_form_have_the_fields() -> None:
    schema, limits = CanvasOptions.request_fields(), Limits(canvas=12)
    assert schema.keys() == NAMES - {"allowed"}
    values = read_fields({"gen_length": 8, "steps": None, "threshold": 0.5}, schema, limits, "options")
    assert values == {"max_new_tokens": 8, "threshold": 0.5}
    assert CanvasOptions(**values).unmasking.name == "threshold"
    with pytest.raises(RefusedError, match="gen_length=13 must lie between 1 and 12 on this server"):
        read_fields({"gen_length": 13}, schema, limits, "options")
    with pytest.raises(RefusedError, match="another name of max_new_tokens=8"):
        read_fields({"max_new_tokens": 8, "gen_length": 9}, schema, limits, "options")
    inputs = {field["name"]: field for field in describe_fields(schema, limits)}
    assert list(inputs)[:2] == ["max_new_tokens", "steps"]
    assert inputs["max_new_tokens"]["maximum"] == 12
    assert inputs["steps"]["maximum"] == 48
    assert "order" not in inputs
