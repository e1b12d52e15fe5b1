"""Whole texts: what is sampled is the global conditional, by enumeration; what is not is seen."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from typing import Any

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.constraints import Regex
from textguide.guidance import AWRS
from textguide.reference import smc as reference
from textguide.smc.awrs import Uniforms
from textguide.smc.constrained import Constrained
from textguide.smc.population import twin

from .statistics import chi_square, z_score
from .table import Text, exact_samples, floats, run, shares_hold, table
from .toys import END, PIECES, VOCABULARY, Strings, random_strings

MEMBERS = frozenset({b"ab", b"cab", b"abab", b"b", b"ca", b"ba", b"bab", b"cc"})
LENGTH = 4
LAW = table(3, temperature=1.5)
POPULATIONS = 2500


def spelled(text: Text) -> bytes:
    return b"".join(PIECES[token] for token in text)


def is_member(members: frozenset[bytes], text: Text) -> bool:
    # The last piece is special and belongs to no text.
    return len(PIECES) - 1 not in text and spelled(text) in members


def oracle(
    members: frozenset[bytes] = MEMBERS, length: int = LENGTH, distribution: Any = LAW
) -> tuple[dict[Text, float], float]:
    return reference.global_conditional(floats(distribution), lambda t: is_member(members, t), END, length, len(PIECES))


SETTINGS: list[dict[str, Any]] = [
    {"masks": True},
    {"masks": True, "particles": 4},
    {"masks": True, "particles": 4, "ess_threshold": 1.0, "resampling": "systematic"},
    {},
    {"particles": 4, "ess_threshold": 0.9},
    {"estimator": "recursive"},
    {"estimator": "geometric"},
    {"estimator": "geometric", "accepts": 4, "particles": 3, "ess_threshold": 1.0},
    {"max_rejects": 2},
    {"max_rejects": 2, "particles": 4, "ess_threshold": 1.0},
    {"estimator": "geometric", "max_rejects": 3},
]


def sample(masks: bool = False, seed: int = 1, **options: Any) -> tuple[list[Text], Any]:
    guidance = AWRS(particles=options.pop("particles", 1), **options)
    populations = POPULATIONS // (1 if guidance.particles == 1 else 2)
    return run(LAW, Strings(MEMBERS, masks), guidance, populations, LENGTH, seed)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_the_distribution_is_the_global_conditional(options: dict[str, Any]) -> None:
    conditional, evidence = oracle()
    texts, outcome = sample(**options)
    drawn = exact_samples(texts, outcome)
    assert len(drawn) > 100
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    shares_hold(texts, outcome, conditional, evidence)
    assert outcome.resamplings > 0 or guidance_never_resamples(options)


@pytest.mark.parametrize("pattern", [r"([abc])\1*|([ab]{2})\2", r"(?!.*(.)\1)[abc]{2,}(?<!b)", r"(?>a|b|ca)\b|.*\Bb"])
def test_patterns_that_need_backtracking(pattern: str) -> None:
    """Partial matches may lead into dead ends, which take weight and no exactness."""
    constraint = Regex(pattern)
    assert constraint.engine == "regex"

    def member(text: Text) -> bool:
        return len(PIECES) - 1 not in text and regex.fullmatch(pattern, spelled(text).decode()) is not None

    conditional, evidence = reference.global_conditional(floats(LAW), member, END, LENGTH, len(PIECES))
    assert len(conditional) > 5
    guidance = AWRS(particles=4, ess_threshold=0.9)
    texts, outcome = run(LAW, constraint, guidance, 1500, LENGTH, 3)
    drawn = exact_samples(texts, outcome)
    assert len(drawn) > 60
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5


def guidance_never_resamples(options: dict[str, Any]) -> bool:
    return options.get("particles", 1) == 1


@pytest.mark.parametrize("masks", [True, False])
def test_locally_masked_sampling_is_another_distribution_and_the_test_sees_it(masks: bool) -> None:
    conditional, _ = oracle()
    texts, outcome = run(LAW, Strings(MEMBERS, masks), AWRS(sampler="mask"), POPULATIONS, LENGTH, 1)
    drawn = [text for text, finished in zip(texts, outcome.finished.tolist(), strict=True) if finished]
    assert len(drawn) > 100
    assert chi_square(Counter(drawn), conditional, len(drawn)) < 1e-6
    # It is Π p/Z_t that was drawn.
    prefixes = {m[:n] for m in MEMBERS for n in range(len(m) + 1)}

    def may_follow(text: Text, token: int, last: bool) -> bool:
        written = spelled(text)
        return written in MEMBERS if token == END else bool(PIECES[token]) and written + PIECES[token] in prefixes

    local = reference.locally_masked(floats(LAW), may_follow, END, LENGTH, len(PIECES))
    total = sum(local.values())
    assert chi_square(Counter(drawn), {t: p / total for t, p in local.items()}, len(drawn)) > 1e-3
    assert outcome.log_weights is None


def test_weights_that_leave_something_out_are_seen() -> None:
    conditional, evidence = oracle()
    texts, outcome = sample()
    ones = outcome.log_weights.clone()
    ones[ones > -math.inf] = 0.0
    wrong = dataclasses.replace(outcome, log_weights=ones, log_evidence=ones)
    drawn = exact_samples(texts, wrong)
    assert chi_square(Counter(drawn), conditional, len(drawn)) < 1e-6
    assert abs(z_score(ones.exp().tolist(), evidence)) > 5
    # Resampling without resetting the weights counts them twice.
    texts, outcome = sample(particles=4, ess_threshold=1.0)
    assert abs(z_score((outcome.log_evidence * 2).exp().tolist(), evidence)) > 5


@pytest.mark.parametrize("particles", [1, 4])
def test_a_critic_twists_the_way_and_weighs_the_end(particles: int) -> None:
    def critic(text: str) -> float:
        return -1.5 * text.count("a")

    conditional, evidence = oracle()
    joint = {t: p * evidence * math.exp(critic(spelled(t).decode())) for t, p in conditional.items()}
    # Final texts that are empty would not be asked about; there is none among the members.
    guidance = AWRS(particles=particles, critic=critic, ess_threshold=0.9)
    texts, outcome = run(LAW, Strings(MEMBERS), guidance, POPULATIONS // 2, LENGTH, 5)
    assert abs(z_score(outcome.log_evidence.exp().tolist(), sum(joint.values()))) < 3.5
    drawn = exact_samples(texts, outcome)
    assert chi_square(Counter(drawn), {t: p / sum(joint.values()) for t, p in joint.items()}, len(drawn)) > 1e-3
    assert chi_square(Counter(drawn), conditional, len(drawn)) < 1e-3


def test_a_critic_may_rule_out_and_may_not_answer_nonsense() -> None:
    guidance = AWRS(critic=lambda text: -math.inf if text.startswith("c") else 0.0)
    texts, outcome = run(LAW, Strings(MEMBERS), guidance, 300, LENGTH)
    assert {spelled(t)[:1] for t, done in zip(texts, outcome.finished, strict=True) if done} <= {b"a", b"b"}
    assert "the critic ruled the text out" in outcome.deaths
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="critic returned"):
            run(LAW, Strings(MEMBERS), AWRS(critic=lambda _, value=value: value), 1, LENGTH)


def test_without_resampling_weights_are_importance_weights() -> None:
    # With the mask known, the weight is the product of the masses along the way.
    texts, outcome = run(LAW, Strings(MEMBERS, True), AWRS(particles=4, ess_threshold=0.0), 50, LENGTH)
    assert outcome.resamplings == 0
    prefixes = {m[:n] for m in MEMBERS for n in range(len(m) + 1)}
    for text, log_weight, finished in zip(texts, outcome.log_weights.tolist(), outcome.finished.tolist(), strict=True):
        if not finished:
            assert log_weight == -math.inf
            continue
        expected = 0.0
        for index, token in enumerate(text):
            written, distribution = spelled(text[:index]), LAW(text[:index]).exp().tolist()
            ends = distribution[END] if written in MEMBERS else 0.0
            others = [p for p, piece in zip(distribution, PIECES, strict=True) if piece and written + piece in prefixes]
            last = index == LENGTH - 1
            assert not last or token == END
            expected += math.log(ends if last else ends + sum(others))
        assert log_weight == pytest.approx(expected, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_evidence_is_unbiased_for_random_models_and_constraints(seed: int) -> None:
    rng = random.Random(seed)
    distribution = table(seed)
    strings = random_strings(rng, masks=rng.random() < 0.3, longest=3)
    options = {k: v for k, v in rng.choice(SETTINGS).items() if k != "masks"}
    length = rng.randint(1, 4)
    conditional, evidence = oracle(strings.members, length, distribution)
    texts, outcome = run(distribution, strings, AWRS(**options), 120, length, seed)
    assert {t for t, done in zip(texts, outcome.finished.tolist(), strict=True) if done} <= set(conditional)
    values = outcome.log_evidence.exp().tolist()
    error = math.sqrt(sum((v - evidence) ** 2 for v in values)) / len(values)
    assert abs(sum(values) / len(values) - evidence) <= 6 * error + 0.02


def test_a_thousand_pairs_give_valid_or_unfinished_texts() -> None:
    rng = random.Random(0)
    finished = 0
    for seed in range(1000):
        strings = random_strings(rng, masks=rng.random() < 0.5)
        options = {k: v for k, v in rng.choice(SETTINGS).items() if k != "masks"}
        if rng.random() < 0.2:
            options = {"sampler": "mask"}
        length = rng.randint(1, 5)
        texts, outcome = run(table(seed % 20), strings, AWRS(**options), 1, length, seed)
        for row, text in enumerate(texts):
            done = bool(outcome.finished[row])
            finished += done
            assert len(text) == outcome.lengths[row]
            assert (outcome.deaths[row] is None) == done
            if done:
                assert is_member(strings.members, text)
                assert text[-1] == END or outcome.log_weights is None
            if outcome.log_weights is not None:
                assert (outcome.log_weights[row] > -math.inf) == done
            # Whatever was written is a prefix of a member.
            prefixes = {m[:n] for m in strings.members for n in range(len(m) + 1)}
            assert spelled(text) in prefixes
    assert finished > 300


def test_a_model_without_an_end_token_writes_to_the_limit() -> None:
    vocabulary = dataclasses.replace(VOCABULARY, ends=frozenset())
    members = frozenset({b"abc", b"bab", b"cac", b"caba"})
    texts, outcome = run(LAW, Strings(members), AWRS(), POPULATIONS, 2, 3, vocabulary)
    kept, evidence = reference.global_conditional(
        floats(LAW), lambda t: 0 not in t and is_member(members, t), None, 2, len(PIECES)
    )
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    drawn = exact_samples(texts, outcome)
    assert chi_square(Counter(drawn), kept, len(drawn)) > 1e-3


def test_what_cannot_be_satisfied_ends_at_once() -> None:
    with pytest.raises(ValueError, match="matches no text at all"):
        run(LAW, Strings(frozenset()), AWRS(), 1, 3)


def test_candidates_and_survivors_are_decided_by_different_numbers() -> None:
    generator = torch.Generator().manual_seed(5)
    state = Constrained(
        AWRS(Strings(MEMBERS), particles=4), Strings(MEMBERS).start(VOCABULARY), VOCABULARY, 4, generator
    )
    candidates = Uniforms(twin(generator))
    survivors = Uniforms(state._twin)
    assert not {candidates.next() for _ in range(64)} & {survivors.next() for _ in range(64)}
