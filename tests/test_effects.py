"""What ``effect`` reports for every method, and that its passes are those that the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, GuidanceLogitsProcessor, diffusion
from textguide.guidance import (
    ACFG,
    AWRS,
    BranchGuidance,
    CorrSynth,
    EAGer,
    Guidance,
    Steering,
    Step,
    TimeStepGuidance,
    catalogue,
)

from .diffusion import tiny
from .test_every_place import NEW, TEXT, TINY, drawn, samples, setting

FULL = [
    (row["method"], place)
    for row in catalogue.matrix()
    for place in ("generate", "dropin")
    if row["cells"][place] is True
]


@contextlib.contextmanager
def rows_read(*models: Any) -> Iterator[list[int]]:
    """The number of rows in every pass of ``models`` and of their parts, which share the embeddings."""
    rows: list[int] = []
    hooks = []
    for model in models:
        embeddings = model.get_input_embeddings()
        hooks.append(embeddings.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]))))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def steered(strength: float, scale: float = 1.0) -> Steering:
    width = TINY.model.config.hidden_size
    return Steering([1.0 if number % 2 else -1.0 for number in range(width)], strength=strength, scale=scale)


def run(guidance: Guidance, place: str, prompts: list[str], models: dict[str, Any]) -> tuple[Any, int]:
    """The effect in one place, and how many tokens were written."""
    if place == "generate":
        if samples(guidance):
            out = drawn(guidance)
        else:
            out = textguide.generate(TINY.model, TINY.tokenizer, prompts, guidance, max_new_tokens=NEW, models=models)
        return out.effect, sum(map(len, out.new_tokens))
    processor = GuidanceLogitsProcessor(
        TINY.model, guidance, tokenizer=TINY.tokenizer, models=models, prompts=prompts, horizon=NEW
    )
    ids = TINY.tokenizer(prompts, return_tensors="pt").input_ids
    written = TINY.model.generate(ids, logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
    return processor.effect, written[:, ids.shape[1] :].numel()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("method", "place"), FULL, ids=lambda value: value)
def test_every_method_reports_what_it_did_and_the_passes_that_ran(method: str, place: str) -> None:
    guidance = setting(method)
    models = TINY.models(guidance)
    prompts = [TEXT, "a dog ran past"] if isinstance(guidance, CorrSynth) else [TEXT]
    run(guidance, place, prompts, models)  # probes of the models, and searches for heads, are over after this
    with rows_read(TINY.model, *models.values()) as rows:
        effect, written = run(guidance, place, prompts, models)
    assert str(effect) != "no guidance"
    assert effect.guided_steps + effect.inside_steps + effect.sampled_steps > 0
    if isinstance(guidance, BranchGuidance):
        # Prompts of branches are read at the first step, also if the window opens later.
        unused = 0 if place == "dropin" or guidance.active(Step.at(0, NEW)) else len(guidance.branches) * len(prompts)
        assert effect.extra_passes == sum(rows) - written - unused


@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_steering_reports_layers_strength_and_how_far_hidden_states_moved(strength: float) -> None:
    guidance = steered(strength)
    effect = textguide.generate(TINY.model, TINY.tokenizer, TEXT, guidance, max_new_tokens=NEW).effect
    layer = TINY.model.config.num_hidden_layers // 2
    states: list[float] = []
    with contextlib.ExitStack() as stack:
        hook = (
            TINY.model.get_decoder()
            .layers[layer]
            .register_forward_hook(
                lambda _, __, output: states.append(
                    float((output[0] if isinstance(output, tuple) else output)[0, -1].norm())
                )
            )
        )
        stack.callback(hook.remove)
        textguide.generate(TINY.model, TINY.tokenizer, TEXT, max_new_tokens=1)
    assert effect.inside == f"vector × {strength:g} after layer {layer}"
    assert effect.inside_steps == NEW
    assert effect.extra_passes == 0
    one = textguide.generate(TINY.model, TINY.tokenizer, TEXT, guidance, max_new_tokens=1).effect
    length = strength * TINY.model.config.hidden_size**0.5
    assert one.moved == pytest.approx(length / states[0], rel=1e-4)
    assert str(one) == f"{effect.inside} at 1 steps, hidden states moved by {one.moved:.0%} of their length"


def test_explain_measures_what_a_vector_changed() -> None:
    explanation = textguide.explain(TINY.model, TINY.tokenizer, TEXT, steered(2.0), max_new_tokens=NEW)
    effect = explanation.effect
    assert effect.mean_kl == pytest.approx(sum(step.kl for step in explanation.steps) / NEW, rel=1e-4)
    assert effect.mean_kl > 1e-3
    assert effect.extra_passes == NEW
    assert effect.inside_steps == NEW


def test_a_processor_counts_the_pass_of_the_steered_model() -> None:
    processor = GuidanceLogitsProcessor(TINY.model, steered(2.0), prompts=TEXT, tokenizer=TINY.tokenizer)
    TINY.model.generate(torch.tensor([TINY.ids]), logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
    assert processor.effect.mean_kl > 1e-3
    assert processor.effect.extra_passes == NEW
    assert processor.effect.moved > 0.0


@pytest.mark.parametrize("draft", ["prompt-lookup", "recycling"])
def test_guesses_that_are_read_together_are_one_pass(draft: str) -> None:
    prompt = [*TINY.ids * 4]
    with rows_read(TINY.model) as rows:
        out = textguide.generate(TINY.model, TINY.tokenizer, [prompt], CFG(1.5), max_new_tokens=24, speculation=draft)
    assert out.speculation is not None
    assert out.speculation.accepted > 0
    assert out.effect.guided_steps == len(out.new_tokens[0])
    assert out.effect.extra_passes < out.effect.guided_steps
    assert out.effect.extra_passes == sum(rows) / 2


@pytest.mark.parametrize("guidance", [AWRS("regex:[ -~]{1,5}"), EAGer(0.5, max_branches=3)], ids=["awrs", "eager"])
def test_what_draws_the_tokens_is_named(guidance: Guidance) -> None:
    out = drawn(guidance)
    assert str(out.effect) == f"{sum(map(len, out.new_tokens))} tokens drawn with {guidance.name}"


def test_progress_is_the_number_of_the_token_among_those_before_the_last() -> None:
    guided = CFG(2.0, start=0.3, stop=0.7)
    effect = textguide.generate(TINY.model, TINY.tokenizer, TEXT, guided, max_new_tokens=5, min_new_tokens=5).effect
    assert (effect.guided_steps, effect.unguided_steps) == (1, 4)


# -- canvases ------------------------------------------------------------------------------------------------------


CANVAS = {
    "cfg": CFG(2.0),
    "negative": CFG(2.0, negative_prompt="lk"),
    "acfg": ACFG(2.0, 0.5),
    "acfg-one-pass": ACFG(2.0, 0.5, one_pass=True),
    "tsg": TimeStepGuidance(2.0),
    "window": CFG(2.0, start=0.4),
}


@pytest.mark.parametrize("name", sorted(CANVAS))
def test_passes_on_a_canvas_are_rows_that_were_read(name: str) -> None:
    model, words = tiny.build("llada")
    options: dict[str, Any] = {"max_new_tokens": 8, "steps": 4, "early_end": False, "warn": False}
    prompts = ["abc", "lkh"]
    plain = diffusion.generate(model, words, prompts, **options)
    out = diffusion.generate(model, words, prompts, guidance=CANVAS[name], **options)
    effect = out.effect
    assert effect.extra_passes == out.rows - plain.rows
    assert effect.guided_steps + effect.unguided_steps == sum(out.steps)
    assert effect.guided_steps == effect.extra_passes
    assert effect.guided_positions > effect.guided_steps
    assert f"{effect.guided_positions} positions in {effect.guided_steps} steps" in str(effect)


def test_joined_canvases_weigh_positions() -> None:
    model, words = tiny.build("llada")
    options: dict[str, Any] = {"max_new_tokens": 6, "steps": 3, "guidance": CFG(3.0), "early_end": False}
    whole = diffusion.generate(model, words, ["abc", "lkh", "a"], **options).effect
    parts = diffusion.generate(model, words, ["abc", "lkh", "a"], batch_size=2, **options).effect
    assert parts.mean_kl == pytest.approx(whole.mean_kl, rel=1e-4)
    assert parts.guided_positions == whole.guided_positions
