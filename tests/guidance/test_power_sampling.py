"""Power sampling: texts of p^α by enumeration; a low temperature is another distribution, and the tests see it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

import textguide
from textguide import CAIF, CFG, FeynmanKac, Guidance, PowerSampling
from textguide.guidance import Composed, Formula, Step, as_guidance, split
from textguide.guidance.places import place
from textguide.guidance.spec import parse
from textguide.reference import decoding
from textguide.reference import smc as oracle
from textguide.smc.population import Corrected
from textguide.step.guided_step import guided_log_probs

from ..architectures import Tokenizer, build
from ..smc.statistics import chi_square, z_score
from ..smc.table import Text, floats, table
from ..smc.test_feynman_kac import exact_samples, run
from ..smc.toys import END, PIECES

SIZE, LENGTH, ALPHA = len(PIECES), 3, 2.0
P = table(5, temperature=1.2)
POWER, EVIDENCE = oracle.tempered(floats(P), lambda text: [1.0] * SIZE, ALPHA, END, LENGTH, SIZE)


def scores(text: Text) -> torch.Tensor:
    branching, weighing = PowerSampling(ALPHA).parts
    return guided_log_probs(weighing.product(branching), P(text)[None, None], Step())[0]


BOUND = float(scores(()).logsumexp(-1).exp())
"""The largest weight: a text may end with its first token, and no normaliser of α > 1 exceeds 1."""


def sample(guidance: PowerSampling, populations: int = 3000) -> tuple[list[Text], Any]:
    generator = torch.Generator().manual_seed(7)
    rows, weighing = populations * guidance.particles, guidance.parts[1]
    state = Corrected(
        rows, weighing.particles, weighing.ess_threshold, weighing.resampling, generator, frozenset({END})
    )
    return run(state, rows, generator, scores), state.outcome()


@pytest.mark.parametrize(
    "guidance",
    [
        PowerSampling(ALPHA, 1),
        PowerSampling(ALPHA, 4, ess_threshold=0.9),
        PowerSampling(ALPHA, 4, ess_threshold=1.0, resampling="systematic"),
    ],
)
def test_texts_follow_the_power_of_their_probability(guidance: PowerSampling) -> None:
    texts, outcome = sample(guidance)
    drawn = exact_samples(texts, outcome, BOUND)
    assert len(drawn) > 400
    assert chi_square(Counter(drawn), POWER, len(drawn)) > 1e-3
    assert abs(z_score(outcome.log_evidence.exp().tolist(), EVIDENCE)) < 3.5
    assert guidance.particles == 1 or outcome.resamplings > 0


def test_a_low_temperature_is_another_distribution_and_the_test_sees_it() -> None:
    texts, _ = sample(PowerSampling(ALPHA, 1))  # without its weights
    assert chi_square(Counter(texts[:1000]), POWER, 1000) < 1e-6
    tokens = [tuple((P(text) * ALPHA).softmax(-1).double().tolist()) for text in [()]]
    first = Counter(text[0] for text in texts)
    assert chi_square(first, dict(enumerate(tokens[0])), len(texts)) > 1e-3


def test_a_model_end_to_end() -> None:
    model, prompt = build("llama"), [5, 9, 33]
    size = model.config.vocab_size
    known: dict[Text, list[float]] = {}

    def probabilities(text: Text) -> list[float]:
        if text not in known:
            known[text] = [math.exp(p) for p in decoding.next_log_probs(model, [*prompt, *text])]
        return known[text]

    _, evidence = oracle.tempered(probabilities, lambda text: [1.0] * size, 3.0, None, 2, size)
    out = textguide.generate(
        model, Tokenizer(), [prompt] * 150, PowerSampling(3.0, 4, ess_threshold=1.0), max_new_tokens=2, seed=0
    )
    assert out.particles == 4
    assert len(out.texts) == 600
    assert out.log_evidence is not None
    assert abs(z_score(out.log_evidence.exp().tolist(), evidence)) < 3.5
    single = textguide.generate(model, Tokenizer(), [prompt] * 3, PowerSampling(3.0, 1), max_new_tokens=4, seed=1)
    assert single.log_weights is not None
    for row, tokens in enumerate(single.new_tokens):
        power, proposal = 0.0, 0.0
        for index, token in enumerate(tokens):
            logp = [3.0 * p for p in decoding.next_log_probs(model, [*prompt, *tokens[:index]])]
            power, proposal = power + logp[token], proposal + decoding.normalized(logp)[token]
        assert single.log_weights[row].item() == pytest.approx(power - proposal, abs=1e-3)
        assert single.log_likelihood[row].item() == pytest.approx(proposal, abs=1e-3)


def test_it_is_a_low_temperature_with_weights_and_at_one_the_model() -> None:
    def generate(guidance: Any, **options: Any) -> Any:
        return textguide.generate(
            build("llama"), Tokenizer(), [[5, 9, 33]], guidance, max_new_tokens=6, seed=2, top_k=0, **options
        )

    assert generate(PowerSampling(2.0, 1)).new_tokens == generate(None, temperature=0.5).new_tokens
    plain, one = generate(None, temperature=1.0), generate(PowerSampling(1.0, 1))
    assert one.new_tokens == plain.new_tokens
    assert torch.equal(one.log_probs, plain.log_probs)
    assert one.log_weights.tolist() == [0.0]


def test_it_is_explained_as_what_is_drawn() -> None:
    explanation = textguide.explain(
        build("llama"), Tokenizer(), [5, 9, 33], PowerSampling(2.0, 3), max_new_tokens=3, top=61, min_prob=0.0, seed=0
    )
    step = explanation.steps[0]
    plain = [math.exp(p) for p in decoding.next_log_probs(build("llama"), [5, 9, 33])]
    total = sum(p**2 for p in plain)
    for move in (*step.raised, *step.lowered):
        assert move.guided == pytest.approx(plain[move.token] ** 2 / total, abs=1e-4)


def test_identity_and_composition() -> None:
    guidance = PowerSampling(2, 4, resampling="systematic")
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert parse("power-sampling:alpha=2,particles=4,resampling=systematic") == guidance
    parts = split(guidance)
    assert parts.branching == Formula("2.0*cond")
    assert parts.sampling == FeynmanKac(4, resampling="systematic")
    assert as_guidance([guidance]) is guidance
    assert Composed((guidance,)).parts == guidance.parts
    for name, possible in (("generate", True), ("score", False), ("dropin", False), ("vllm", True)):
        assert (place(name).reason(guidance) is None) == possible
    with pytest.raises(ValueError, match="two guidances with their own branches"):
        as_guidance([CFG(1.5), guidance])
    with pytest.raises(ValueError, match="cannot be combined with classifiers"):
        textguide.generate(
            build("llama"), Tokenizer(), [[5]], [guidance, CAIF("sentiment", "positive", top_k=5)], max_new_tokens=1
        )
    with pytest.raises(ValueError, match="do_sample=False: FeynmanKac draws"):
        textguide.generate(build("llama"), Tokenizer(), [[5]], PowerSampling(2, 1), max_new_tokens=1, do_sample=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": "x"}, "alpha='x'"),
        ({"particles": 0}, "particles=0"),
        ({"ess_threshold": 2}, "ess_threshold=2"),
        ({"resampling": "best"}, "resampling='best'"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerSampling(**fields)
