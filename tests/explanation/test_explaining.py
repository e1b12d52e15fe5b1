"""Explanations: rankings against plain loops, every kind of guidance, the errors."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import textguide
from textguide import AWRS, CAIF, CFG, explain
from textguide.classifiers import FunctionClassifier
from textguide.constraints import Predicate, Regex, Vocabulary
from textguide.engine.loop import StepView
from textguide.explanation import TokenMove
from textguide.guidance import ContrastiveDecoding, EAGer, FeynmanKac, Formula
from textguide.support.errors import GuidanceHadNoEffectWarning, NoParticleLeftWarning

from ..architectures import EOS, VOCAB, Tokenizer, build

PROMPT = "the dragon"
NEGATIVE = "a dog"
NEW = 5
LETTERS = Vocabulary(
    tuple(Tokenizer.letters[i - 3].encode() if 3 <= i < 3 + len(Tokenizer.letters) else b"" for i in range(VOCAB)),
    frozenset({EOS}),
)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


def views_of(model: Any, guidance: Any, **options: Any) -> list[StepView]:
    views: list[StepView] = []
    textguide.generate(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW, observer=views.append, **options)
    return views


def probabilities(row: torch.Tensor) -> list[float]:
    """exp of log-probabilities, normalised, token by token."""
    values = [math.exp(value) for value in row.tolist()]
    return [value / math.fsum(values) for value in values]


def ranked(plain: list[float], guided: list[float], top: int, min_prob: float, rank: str) -> tuple[list[int], ...]:
    """The plainest reading of the ranking."""

    def key(token: int) -> tuple[float, float]:
        p, q = plain[token], guided[token]
        change = abs(q - p)
        ratio = abs(math.log(q / p)) if p > 0 and q > 0 else math.inf
        return (ratio, change) if rank == "ratio" else (change, 0.0)

    tokens = [t for t in range(len(plain)) if max(plain[t], guided[t]) >= min_prob]
    tokens = [t for t in tokens if abs(guided[t] - plain[t]) > 1e-4 * max(plain[t], guided[t])]
    order = sorted(tokens, key=key, reverse=True)
    return [t for t in order if guided[t] > plain[t]][:top], [t for t in order if guided[t] < plain[t]][:top]


@pytest.mark.parametrize("rank", ["probability", "ratio"])
@pytest.mark.parametrize(("top", "min_prob"), [(5, 1e-3), (3, 0.02), (5, 0.0), (61, 0.0), (500, 0.0)])
@pytest.mark.parametrize("guidance", [CFG(2.0, NEGATIVE), CFG(0.5, NEGATIVE, renormalize=False)], ids=["2", "0.5"])
def test_ranks_equal_a_loop(model: Any, guidance: CFG, top: int, min_prob: float, rank: str) -> None:
    explanation = explain(
        model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW, top=top, min_prob=min_prob, rank=rank
    )
    views = views_of(model, guidance)
    assert len(explanation.steps) == len(views) == NEW
    for number, (step, view) in enumerate(zip(explanation.steps, views, strict=True)):
        assert view.extra is not None
        plain, other, guided = (probabilities(row[0]) for row in (view.cond, view.extra[0], view.guided))
        raised, lowered = ranked(plain, guided, top, min_prob, rank)
        assert [move.token for move in step.raised] == raised
        assert [move.token for move in step.lowered] == lowered
        for move in (*step.raised, *step.lowered, step.chosen, step.plain_top, step.guided_top):
            assert move.plain == pytest.approx(plain[move.token], rel=1e-5)
            assert move.guided == pytest.approx(guided[move.token], rel=1e-5)
            assert move.branches == pytest.approx((other[move.token],), rel=1e-5)
            assert move.change == move.guided - move.plain
            assert move.log_ratio == pytest.approx(math.log(guided[move.token] / plain[move.token]), abs=1e-5)
            assert move.text == Tokenizer().decode([move.token])
            assert not move.forbidden
        assert step.index == number
        assert step.guided
        assert step.allowed is None
        assert step.chosen.token == int(view.tokens[0]) == step.guided_top.token == guided.index(max(guided))
        assert step.plain_top.token == plain.index(max(plain))
        assert step.changed == (step.plain_top.token != step.guided_top.token)
        assert step.moved == pytest.approx(sum(abs(q - p) for p, q in zip(plain, guided, strict=True)) / 2, abs=1e-6)
        assert step.kl == pytest.approx(
            sum(q * math.log(q / p) for p, q in zip(plain, guided, strict=True) if q > 0), abs=1e-5
        )


def test_the_text_is_that_of_generate(model: Any) -> None:
    guidance = CFG(2.0, NEGATIVE)
    explanation = explain(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW)
    out = textguide.generate(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW)
    assert explanation.text == out.texts[0]
    assert explanation.effect == out.effect
    assert explanation.summary == str(out.effect)
    assert explanation.prompt == PROMPT
    assert explanation.guidance == guidance
    assert explanation.branches == ("'a dog'",)
    assert explanation.note == ""
    assert "".join(step.chosen.text for step in explanation.steps) == explanation.text
    assert max(step.kl for step in explanation.steps) == pytest.approx(out.effect.max_kl, abs=1e-6)
    assert sum(step.changed for step in explanation.steps) / NEW == pytest.approx(out.effect.top_changed)


def test_defaults(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT)
    assert explanation.guidance == CFG(1.5)
    assert len(explanation.steps) == 32
    assert all(len(step.raised) <= 5 and len(step.lowered) <= 5 for step in explanation.steps)


def test_a_generation_config_counts(model: Any) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=True, temperature=2.0)
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0), generation_config=config, seed=1)
    out = textguide.generate(model, Tokenizer(), PROMPT, CFG(2.0), generation_config=config, seed=1)
    assert explanation.text == out.texts[0]
    assert len(explanation.steps) == 3
    several = explain(model, Tokenizer(), PROMPT, [CFG(2.0), FeynmanKac(particles=2)], generation_config=config, seed=1)
    assert len(several.steps) == 3


def test_sampling_options_arrive(model: Any) -> None:
    texts = {explain(model, Tokenizer(), PROMPT, CFG(2.0), seed=s, temperature=2.0).text for s in (1, 1, 2)}
    assert len(texts) == 2


def test_chats_and_system_prompts(model: Any) -> None:
    chat = [{"role": "user", "content": "hey"}]
    explanation = explain(model, Tokenizer(), chat, CFG(2.0, negative_system="dull"), system="bright", max_new_tokens=2)
    assert explanation.prompt == "system:bright\nuser:hey\n"
    assert explanation.branches == ("system 'dull'",)
    assert all(step.raised for step in explanation.steps)


def test_the_prompt_of_an_encoder_decoder_is_its_source() -> None:
    explanation = explain(build("t5"), Tokenizer(), PROMPT, CFG(2.0), max_new_tokens=2)
    assert explanation.prompt == PROMPT
    assert explanation.branches == ("empty source",)
    assert explanation.note == ""


def test_selected(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(1.3, NEGATIVE), max_new_tokens=12)
    changed = [step for step in explanation.steps if step.changed]
    assert 1 < len(changed) < 12
    assert list(explanation.selected()) == list(explanation.steps)
    assert list(explanation.selected(changed=True)) == changed
    assert list(explanation.selected(1, changed=True)) == changed[:1]
    assert list(explanation.selected(3)) == list(explanation.steps[:3])


def test_steps_outside_the_window_have_no_moves(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, start=0.6), max_new_tokens=NEW)
    assert [step.guided for step in explanation.steps] == [False, False, False, True, True]
    for step in explanation.steps[:3]:
        assert step.raised == step.lowered == ()
        assert step.kl == step.moved == 0.0
        assert step.chosen.plain == step.chosen.guided
        assert step.chosen.branches == ()
        assert not step.changed


@pytest.mark.parametrize("guidance", [CFG(1.0), [], Formula("cond")], ids=["cfg", "none", "formula"])
def test_what_changes_nothing_moves_nothing(model: Any, guidance: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW)
    assert explanation.text == textguide.generate(model, Tokenizer(), PROMPT, max_new_tokens=NEW).texts[0]
    assert not any(step.guided or step.raised or step.lowered or step.kl for step in explanation.steps)
    assert "changes nothing" in explanation.note
    json.dumps(explanation.to_dict(), allow_nan=False)


def test_a_rule_without_extra_branches(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, Formula("2*cond"), max_new_tokens=2, top=61, min_prob=0)
    assert explanation.branches == ()
    for step in explanation.steps:
        assert step.guided
        # p² / Σ p² is above p where p is above Σ p².
        both = (*step.raised, *step.lowered)
        least = sum(move.plain**2 for move in both)
        assert all((move.plain > least) == (move in step.raised) for move in both if abs(move.plain - least) > 1e-6)
        assert step.raised[0].token == step.plain_top.token


# -- if guidance has no effect ----------------------------------------------------------------------------


def test_a_prompt_of_one_token_leaves_nothing_to_act_on(model: Any) -> None:
    with pytest.warns(GuidanceHadNoEffectWarning):
        explanation = explain(model, Tokenizer(), "a", CFG(1.5), max_new_tokens=3)
    assert "had no effect" in explanation.note
    assert '"last token" reads the same tokens as the prompt, which is one token long' in explanation.note
    assert "pass a negative prompt" in explanation.note
    assert not any(step.raised or step.lowered for step in explanation.steps)
    assert explain(model, Tokenizer(), "a", CFG(1.5, NEGATIVE), max_new_tokens=3).note == ""


def test_a_negative_prompt_that_is_the_prompt(model: Any) -> None:
    with pytest.warns(GuidanceHadNoEffectWarning):
        explanation = explain(model, Tokenizer(), PROMPT, CFG(1.5, PROMPT), max_new_tokens=2)
    assert "had no effect: the branch \"'the dragon'\" reads the same tokens" in explanation.note
    assert "one token" not in explanation.note


def test_one_branch_of_several_that_is_the_prompt(model: Any) -> None:
    formula = Formula("2*cond - 0.5*P('the dragon') - 0.5*P('a dog')")
    explanation = explain(model, Tokenizer(), PROMPT, formula, max_new_tokens=2)
    assert explanation.note.startswith("The branch \"'the dragon'\" reads the same tokens")
    assert all(step.raised for step in explanation.steps)


def test_no_step_in_the_window(model: Any) -> None:
    with pytest.warns(GuidanceHadNoEffectWarning):
        explanation = explain(model, Tokenizer(), PROMPT, CFG(1.5, start=0.9), max_new_tokens=1)
    assert "not active at any step" in explanation.note


# -- classifiers and constraints -------------------------------------------------------------------------------------


def vowels(texts: Any) -> Any:
    return torch.tensor(
        [[0.1 + 0.8 * (text[-1:] in "aeiou"), 0.9 - 0.8 * (text[-1:] in "aeiou")] for text in texts]
    ).log()


def _written(text: str, move: TokenMove) -> str:
    return text + Tokenizer().decode([move.token])


def test_a_classifier_raises_what_it_likes(model: Any) -> None:
    guidance = CAIF(FunctionClassifier(vowels, ("vowel", "other")), "vowel", 3.0, top_k=None)
    explanation = explain(model, Tokenizer(), PROMPT, guidance, max_new_tokens=NEW, min_prob=0)
    text = PROMPT
    for step in explanation.steps:
        assert step.guided
        assert step.chosen.branches == ()
        assert all(_written(text, move)[-1] in "aeiou" for move in step.raised)
        assert all(move.guided > move.plain for move in step.raised)
        assert all(move.guided < move.plain for move in step.lowered)
        assert not any(_written(text, move)[-1] in "aeiou" for move in step.lowered)
        text = _written(text, step.chosen)
    assert explanation.branches == ()
    assert explanation.effect.reweighed_steps == NEW


CONSTRAINTS = {
    "mask": AWRS(Regex("[aeiou ]{1,9}"), sampler="mask"),
    "awrs": AWRS(Regex("[aeiou ]{1,9}")),
    "particles": AWRS(Regex("[aeiou ]{1,9}"), particles=4),
    "cars": AWRS(Regex("[aeiou ]{1,9}"), sampler="cars"),
    "function": AWRS(Predicate(lambda text: set(text) <= set("aeiou ") and len(text) < 10)),
    "corrected": FeynmanKac(particles=3, constraint=Regex("[aeiou ]{1,9}")),
}


@pytest.mark.filterwarnings("ignore::textguide.support.errors.NoParticleLeftWarning")
@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("guided", [False, True])
def test_what_a_constraint_forbids(model: Any, name: str, guided: bool) -> None:
    if name == "corrected" and not guided:
        pytest.skip("it corrects a guidance")
    cfg = CFG(2.0, NEGATIVE)
    explanation = explain(
        model,
        Tokenizer(),
        PROMPT,
        [*([cfg] if guided else []), CONSTRAINTS[name]],
        max_new_tokens=4,
        top=61,
        min_prob=0.0,
        vocabulary=LETTERS,
        eos_token_id=EOS,
        seed=3,
    )
    assert 1 <= len(explanation.steps) <= 4
    # The same text, read under the guidance alone.
    before = ""
    for step in explanation.steps:
        views: list[StepView] = []
        ids = [*Tokenizer()(PROMPT).input_ids, *Tokenizer()(before).input_ids]
        negative = [*Tokenizer()(NEGATIVE).input_ids, *Tokenizer()(before).input_ids]
        alone = CFG(2.0, negative) if guided else None
        textguide.generate(model, Tokenizer(), ids, alone, max_new_tokens=1, observer=views.append)
        plain, full = probabilities(views[0].cond[0]), probabilities(views[0].guided[0])
        last = step.index == 3 and name != "mask"
        letters = [3 + Tokenizer.letters.index(letter) for letter in "aeiou "]
        allowed = {EOS} if last else {*letters, *([EOS] if before or name == "function" else [])}
        share = sum(full[token] for token in allowed)
        assert step.allowed == pytest.approx(share, rel=1e-3)
        for move in (*step.raised, *step.lowered):
            assert move.forbidden == (move.token not in allowed)
            expected = full[move.token] / share if move.token in allowed else 0.0
            assert move.guided == pytest.approx(expected, rel=1e-3)
            assert move.plain == pytest.approx(plain[move.token], rel=1e-3)
        assert {move.token for move in step.lowered if move.forbidden} == set(range(VOCAB)) - allowed
        assert step.chosen.token in allowed
        if step.chosen.token != EOS:
            before += step.chosen.text
    assert "constraint" in explanation.summary
    assert explanation.text == before
    json.dumps(explanation.to_dict(), allow_nan=False)


def test_a_text_that_the_constraint_gives_up(model: Any) -> None:
    with pytest.warns(NoParticleLeftWarning):
        explanation = explain(
            model,
            Tokenizer(),
            PROMPT,
            AWRS(Regex("a{9}"), particles=2, lookahead=None),
            max_new_tokens=3,
            vocabulary=LETTERS,
            eos_token_id=EOS,
            seed=0,
        )
    assert [step.allowed is None for step in explanation.steps[:2]] == [False, False]
    assert [move.text for move in explanation.steps[0].raised] == ["a"]


@pytest.mark.parametrize("guidance", [[CFG(1.5), FeynmanKac(particles=4)], EAGer(0.1, 3)], ids=["feynman-kac", "eager"])
def test_one_of_several_texts(model: Any, guidance: Any) -> None:
    options = {"max_new_tokens": NEW, "seed": 1, "temperature": 1.5}
    explanation = explain(model, Tokenizer(), PROMPT, guidance, **options)
    out = textguide.generate(model, Tokenizer(), PROMPT, guidance, **options)
    assert explanation.text in out.texts
    assert "".join(step.chosen.text for step in explanation.steps) == explanation.text
    alone = CFG(1.5) if isinstance(guidance, list) else CFG(1.0)
    tokens = [step.chosen.token for step in explanation.steps]
    scored = textguide.score(model, Tokenizer(), [PROMPT], [tokens], alone)
    total = sum(math.log(step.chosen.guided) for step in explanation.steps)
    assert total == pytest.approx(float(scored.log_likelihood[0]), abs=1e-4)


def test_the_schedule_of_one_of_several_texts(model: Any) -> None:
    # A text that ends early was written under the schedule of the whole length.
    guidance = CFG(3.0, NEGATIVE, schedule="linear")
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 4, "eos_token_id": list(range(3, 30))}
    explanation = explain(model, Tokenizer(), PROMPT, [guidance, FeynmanKac(particles=4)], **options)
    tokens = [step.chosen.token for step in explanation.steps]
    assert len(tokens) < 12
    scored = textguide.score(model, Tokenizer(), [PROMPT], [tokens], guidance, horizon=12)
    total = sum(math.log(step.chosen.guided) for step in explanation.steps)
    assert total == pytest.approx(float(scored.log_likelihood[0]), abs=1e-4)


# -- values and errors -----------------------------------------------------------------------------------------------


def forbid(model: Any, cond: list[int], uncond: list[int]) -> Any:
    """A hook that forbids tokens: the first row is the conditional branch, the last the other."""

    def edit(_: Any, __: Any, output: Any) -> None:
        output.logits[0, -1, cond] = -math.inf
        output.logits[-1, -1, uncond] = -math.inf

    return model.register_forward_hook(edit)


def test_tokens_without_probability_have_no_infinite_ratio(model: Any) -> None:
    views = views_of(model, CFG(2.0, NEGATIVE))
    favourite = int(views[-1].cond[0].argmax())
    rare = int(views[-1].cond[0].argmin())
    hook = forbid(model, [rare], [favourite])
    try:
        explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0, NEGATIVE), max_new_tokens=NEW, top=61, min_prob=0)
    finally:
        hook.remove()
    text = json.dumps(explanation.to_dict(), allow_nan=False)
    assert json.loads(text)["text"] == explanation.text
    for step in explanation.steps[1:]:
        assert rare not in {move.token for move in (*step.raised, *step.lowered)}
    explanation.to_html()


def test_the_ratio_puts_ruled_out_tokens_first(model: Any) -> None:
    guidance = ContrastiveDecoding(alpha=0.3)
    explanation = explain(
        model,
        Tokenizer(),
        PROMPT,
        guidance,
        max_new_tokens=2,
        rank="ratio",
        top=4,
        models={"amateur": build("llama", 1)},
    )
    assert explanation.branches == ("amateur",)
    for step in explanation.steps:
        gone = [move for move in step.lowered if move.guided == 0.0]
        assert gone
        assert list(step.lowered[: len(gone)]) == sorted(gone, key=lambda move: -move.plain)
        assert all(move.log_ratio is None and not move.forbidden for move in gone)


def test_to_dict_is_json(model: Any) -> None:
    explanation = explain(model, Tokenizer(), PROMPT, CFG(2.0), max_new_tokens=NEW)
    record = json.loads(json.dumps(explanation.to_dict(), allow_nan=False))
    assert record["prompt"] == PROMPT
    assert textguide.Guidance.from_dict(record["guidance"]) == CFG(2.0)
    assert record["branches"] == ["last token"]
    assert record["note"] == ""
    assert len(record["steps"]) == NEW
    first, move = record["steps"][0], explanation.steps[0].raised[0]
    assert first["raised"][0]["token"] == move.token
    assert first["raised"][0]["change"] == move.change > 0
    assert first["changed"] == explanation.steps[0].changed
    assert record["effect"] == explanation.effect.to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 1.5}, "guidance=1.5 is not a guidance"),
        ({"guidance": textguide.guidance.ACFG(1.5)}, r"acfg' masks tokens .* use textguide.diffusion.generate"),
        ({"guidance": textguide.guidance.CorrSynth(1.5)}, "group=2 and a batch of 1"),
        ({"top": 0}, "top=0"),
        ({"top": 1.5}, "top=1.5"),
        ({"min_prob": -0.1}, "min_prob=-0.1"),
        ({"min_prob": 1.0}, "min_prob=1.0"),
        ({"min_prob": math.nan}, "min_prob=nan"),
        ({"rank": "kl"}, "rank='kl' must be one of probability, ratio"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompt": []}, "prompts is empty"),
        ({"observer": print}, "observer= is used by explain"),
        ({"tokenizer": object()}, "tokenizer=object does not encode and decode"),
        ({"tokenizer": None}, "tokenizer=None cannot decode"),
    ],
)
def test_errors(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(model, **{"tokenizer": Tokenizer(), "prompt": PROMPT, "guidance": CFG(2.0), **options})


@pytest.mark.parametrize(
    ("prompt", "options"),
    [([PROMPT, NEGATIVE], {}), (PROMPT, {"num_return_sequences": 2, "do_sample": True})],
)
def test_one_prompt_at_a_time(model: Any, prompt: Any, options: dict[str, Any]) -> None:
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ValueError, match="prompt has 2 rows; explain one"):
        explain(model, Tokenizer(), prompt, CFG(2.0), max_new_tokens=3, **options)
    hook.remove()
    assert len(passes) <= 2  # noticed at the first step, not after decoding everything


def test_torch_state_is_left_alone(model: Any) -> None:
    before = torch.get_rng_state()
    explain(model, Tokenizer(), PROMPT, CFG(2.0), max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)
