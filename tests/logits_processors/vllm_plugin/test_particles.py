"""Particles of a request inside vLLM's worker: they draw, weigh and resample as those of ``textguide.generate`` do."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from textguide.constraints import Predicate
from textguide.guidance import AWRS, CFG
from textguide.logits_processors.vllm_plugin import constraint_arguments
from textguide.logits_processors.vllm_plugin import constraints as ours
from textguide.logits_processors.vllm_plugin.arguments import parse
from textguide.logits_processors.vllm_plugin.batch_rows import GroupRows, Member
from textguide.logits_processors.vllm_plugin.combination import GuidedRow, guide, messages
from textguide.logits_processors.vllm_plugin.particles import Particle, Populations
from textguide.logits_processors.vllm_plugin.population import Population, population_of
from textguide.logits_processors.vllm_plugin.request_guidance import RequestPrompt
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import MAIN, Draw, Limits, Request
from textguide.reference import smc as reference
from textguide.smc.population import Outcome

from ...smc.statistics import chi_square, z_score
from ...smc.table import exact_samples, floats, run, table
from ...smc.toys import END, PIECES, VOCABULARY, Strings

MEMBERS = frozenset({b"ab", b"cab", b"abab", b"b", b"ca", b"ba", b"bab", b"cc"})
LENGTH = 4
LAW = table(3, temperature=1.5)
ENDS = (END,)


class Toys(ours.EngineConstraints):
    """An engine's constraints over the toy vocabulary."""

    def __init__(self, constraint: Any, critics: dict[str, Any] | None = None) -> None:
        super().__init__({}, lambda: None, len(PIECES))
        self.constraint, self.functions = constraint, critics or {}

    def start(self, guidance: AWRS, ends: Any) -> Any:
        return self.constraint.start(VOCABULARY), VOCABULARY

    def critic(self, name: str | None) -> Any:
        return None if name is None else self.functions[name]


def write(
    law: Any, toys: Toys, guidance: AWRS, seed: int, critic: str | None = None, chance: random.Random | None = None
) -> Population:
    """What the scheduler knows of a population that a worker wrote; steps are repeated and rows moved now and then."""
    size = guidance.particles
    awrs = dataclasses.replace(guidance, constraint={ours.NAMED: "toys"})
    asked = Request(draw=Draw(1.0, seed=seed, logprobs=0), horizon=LENGTH, limit=LENGTH, population=awrs, critic=critic)
    asked = Request.from_dict(asked.to_dict())
    populations = Populations(toys, 4)
    known = Population.of_size("group", RequestState(asked), size)
    while any(known.open):
        rows = [number for number in range(size) if known.open[number]]
        if chance is not None:
            chance.shuffle(rows)
        groups = []
        for place, number in enumerate(rows):
            drawing = GuidedRow(
                asked,
                list,
                lambda number=number: known.texts[number],
                particle=Particle("group", number, ENDS, populations),
            )
            groups.append(GroupRows(place, (), Member(f"particle {number}", MAIN, drawing)))
        at = known.position
        if chance is not None and len(rows) > 1 and chance.random() < 0.3:  # one is missing: nothing is drawn
            part = groups[:-1]
            assert not messages(
                part, [at] * len(part), guide(torch.zeros(len(part), len(PIECES)), part, [at] * len(part))
            )
        if chance is not None and chance.random() < 0.3:  # prompts are read in parts: nobody takes these
            guide(torch.randn(len(rows), len(PIECES)), groups, [at] * len(rows))
        logits = torch.stack([law(tuple(known.texts[number])) for number in rows])
        found = messages(groups, [at] * len(rows), guide(logits, groups, [at] * len(rows)))
        (told,) = found["group"].values()
        assert list(found) == ["group"]
        for place, number in enumerate(rows):
            token = told["turn"]["tokens"][number]
            assert token is None or int(logits[place].argmax()) == token
        known.write(told["turn"], told["rows"])
    for text, logprobs in zip(known.texts, known.logprobs, strict=True):
        for place, (token, (ids, values, _)) in enumerate(zip(text, logprobs, strict=True)):
            assert ids == [token, *ids[1:]]
            assert values[0] == pytest.approx(float(law(tuple(text[:place]))[token]), abs=1e-5)
    return known


SETTINGS: list[tuple[bool, dict[str, Any]]] = [
    (True, {"particles": 4, "ess_threshold": 0.9}),
    (True, {"particles": 4, "ess_threshold": 1.0, "resampling": "systematic"}),
    (False, {"particles": 4, "ess_threshold": 0.9}),
    (False, {"particles": 3, "ess_threshold": 1.0, "estimator": "geometric", "accepts": 4}),
    (False, {"particles": 4, "ess_threshold": 1.0, "max_rejects": 2}),
]


@pytest.mark.parametrize(("masks", "options"), SETTINGS, ids=str)
@pytest.mark.parametrize("interrupted", [False, True])
def test_they_draw_weigh_and_resample_as_those_of_generate(masks: bool, options: dict, interrupted: bool) -> None:
    constraint, guidance = Strings(MEMBERS, masks), AWRS(**options)
    resamplings = 0
    for seed in range(25):
        texts, outcome = run(LAW, constraint, guidance, 1, LENGTH, seed)
        # What was learned of a function's answers is lost with a step that is drawn again; the law stays.
        chance = random.Random(seed) if interrupted and masks else None
        population = write(LAW, Toys(constraint), guidance, seed, chance=chance)
        assert [tuple(text) for text in population.texts] == texts
        assert population.log_weights == pytest.approx(outcome.log_weights.tolist(), abs=1e-9)
        assert population.deaths == outcome.deaths
        summary = population.summary()
        evidence = float(outcome.log_evidence)
        assert summary["log_evidence"] == (None if evidence == -math.inf else pytest.approx(evidence))
        assert summary["ess"] == pytest.approx(float(outcome.ess))
        assert summary["ancestors"] == int(outcome.ancestors)
        alive = [
            b"".join(PIECES[i] for i in text) for text, death in zip(texts, outcome.deaths, strict=True) if not death
        ]
        assert summary["distinct_texts"] == len(set(alive))
        assert summary["resamplings"] == outcome.resamplings
        assert chance is not None or summary["constraint_calls"] == outcome.calls
        resamplings += outcome.resamplings
    assert resamplings > 8


def polite(text: str) -> float:
    return -math.inf if text.startswith("cc") else 0.8 * text.count("a")


@pytest.mark.parametrize("size", [1, 4])
def test_critics_weigh_as_they_do_in_generate(size: int) -> None:
    guidance = AWRS(particles=size, ess_threshold=0.9, critic=polite)
    for seed in range(15):
        texts, outcome = run(LAW, Strings(MEMBERS), guidance, 1, LENGTH, seed)
        toys = Toys(Strings(MEMBERS), {"polite": polite})
        population = write(LAW, toys, dataclasses.replace(guidance, critic=None), seed, "polite")
        assert [tuple(text) for text in population.texts] == texts
        assert population.log_weights == pytest.approx(outcome.log_weights.tolist(), abs=1e-9)
        part = population.part(0)
        assert (part["log_weight"] is None) == (population.deaths[0] is not None)
        assert part["death"] == population.deaths[0]


def sampled(guidance: AWRS, count: int, masks: bool, chance: bool) -> tuple[list[Any], list[float]]:
    """Exact samples, and the mean weight of every population."""
    texts, weights = [], []
    for seed in range(count):
        toys = Toys(Strings(MEMBERS, masks))
        population = write(LAW, toys, guidance, seed, chance=random.Random(seed) if chance else None)
        texts += [tuple(text) for text in population.texts]
        weights += population.log_weights
    log_weights = torch.tensor(weights).view(count, -1)
    evidence = log_weights.logsumexp(-1) - math.log(guidance.particles)
    nothing: Any = None
    outcome = Outcome(torch.tensor(weights), evidence, nothing, nothing, [], [], 0, 0)
    return exact_samples(texts, outcome), evidence.exp().tolist()


@pytest.mark.parametrize(("masks", "chance"), [(True, False), (False, True)])
def test_texts_by_their_weights_follow_the_global_conditional(masks: bool, chance: bool) -> None:
    conditional, evidence = reference.global_conditional(
        floats(LAW),
        lambda t: len(PIECES) - 1 not in t and b"".join(PIECES[i] for i in t) in MEMBERS,
        END,
        LENGTH,
        len(PIECES),
    )
    drawn, means = sampled(AWRS(particles=4, ess_threshold=0.9), 600 if masks else 450, masks, chance)
    assert len(drawn) > 60
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3
    assert abs(z_score(means, evidence)) < 3.5


def test_texts_without_their_weights_follow_another_distribution() -> None:
    conditional, _ = reference.global_conditional(
        floats(LAW),
        lambda t: len(PIECES) - 1 not in t and b"".join(PIECES[i] for i in t) in MEMBERS,
        END,
        LENGTH,
        len(PIECES),
    )
    alive: Counter[Any] = Counter()
    for seed in range(300):
        population = write(LAW, Toys(Strings(MEMBERS, True)), AWRS(particles=2, ess_threshold=0.0), seed)
        alive += Counter(
            tuple(t) for t, w in zip(population.texts, population.log_weights, strict=True) if w > -math.inf
        )
    assert chi_square(alive, conditional, sum(alive.values())) < 1e-3


def test_a_function_that_fails_ends_its_texts_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def fails(text: str) -> bool:
        if len(text) > 1:
            raise RuntimeError("no")
        return True

    population = write(LAW, Toys(Predicate(fails)), AWRS(particles=3), 0)
    assert not any(population.open)
    assert any(death == "the constraint failed: RuntimeError: no" for death in population.deaths)
    assert "a constraint failed" in caplog.text


def test_a_worker_that_lost_a_population_says_nothing() -> None:
    toys = Toys(Strings(MEMBERS, True))
    request = Request(draw=Draw(1.0), horizon=LENGTH, limit=LENGTH, population=AWRS({ours.NAMED: "toys"}, 2))
    populations = Populations(toys, 1)
    scores = {0: LAW(()), 1: LAW(())}
    assert populations.of("first", request, ENDS).draw(0, {0: [], 1: []}, scores, {}) is not None
    populations.of("second", request, ENDS)  # in place of the first one
    assert populations.of("first", request, ENDS).draw(1, {0: [1], 1: [1]}, scores, {}) is None
    # Another text than the one that was drawn.
    turn = populations.of("first", request, ENDS).draw(0, {0: [], 1: []}, scores, {})
    assert turn is not None
    assert populations.of("first", request, ENDS).draw(1, {0: [7], 1: [7]}, scores, {}) is None


# -- what requests may ask -----------------------------------------------------------------------------------------


class Tokenizer(SimpleNamespace):
    eos_token_id = END


def asked(extra: dict[str, Any], limits: Limits | None = None, **fields: Any) -> Request | None:
    params = SimpleNamespace(**{"extra_args": extra, "temperature": 1.0, "max_tokens": 8, "n": 1, **fields})
    toys = Toys(Strings(MEMBERS), {"polite": polite})
    limits = limits or Limits(constraints=toys, tokenizer=Tokenizer(), places=8, budget=64, blocks=64, block_size=4)
    return parse(params, limits, RequestPrompt((1, 2, 3)))


def test_requests_name_particles() -> None:
    request = asked({"awrs_regex": "[a-z]+", "awrs_particles": 4, "awrs_ess_threshold": 0.8})
    assert request is not None
    assert request.awrs is None
    assert (request.population.particles, request.population.ess_threshold) == (4, 0.8)
    assert Request.from_dict(request.to_dict()) == request
    request = asked({"guidance": '{"method": "awrs", "constraint": "regex:[a-z]+", "particles": 3}'}, n=3)
    assert request.population.particles == 3
    request = asked({"awrs_critic": "polite", "guidance_scale": 1.5})
    assert (request.population.constraint, request.critic, request.particles) == (None, "polite", 1)
    request = asked({"guidance": '[{"method": "cfg", "scale": 2}, {"method": "feynman-kac", "particles": 3}]'})
    assert (request.population.particles, request.weighs, request.guidance) == (3, True, CFG(2.0, renormalize=False))


@pytest.mark.parametrize(
    ("extra", "fields", "message"),
    [
        ({"awrs_particles": 0}, {}, r"awrs_particles=0"),
        ({"awrs_particles": 4, "awrs_ess_threshold": 2}, {}, r"awrs_ess_threshold=2"),
        ({"awrs_particles": 4}, {"n": 3}, r"n=3 does not work with awrs_particles=4: each particle is a choice"),
        ({"awrs_particles": 4}, {"output_kind": SimpleNamespace(name="DELTA")}, r"stream=True does not work with"),
        ({"awrs_particles": 9}, {}, r"awrs_particles=9 does not fit this engine.*max_num_seqs is 8"),
        ({"awrs_particles": 5, "guidance_scale": 2.0}, {}, r"awrs_particles=5 under guidance 'cfg' does not fit"),
        ({"awrs_particles": 4}, {"max_tokens": 200}, r"awrs_particles=4 does not fit this engine.*tokens of cache"),
        ({"awrs_particles": 2, "awrs_critic": "rude"}, {}, r"awrs_critic='rude'"),
    ],
)
def test_what_does_not_work_is_refused_by_name(extra: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message if "rude" not in message else "rude"):
        asked({"awrs_regex": "[a-z]+", **extra}, **fields)


def test_engines_that_share_out_answers_are_refused() -> None:
    limits = Limits(
        constraints=Toys(Strings(MEMBERS)),
        tokenizer=Tokenizer(),
        why_no_populations="data_parallel_size=2, whose ranks",
    )
    with pytest.raises(ValueError, match=r"awrs_particles=2 does not work with data_parallel_size=2"):
        asked({"awrs_regex": "[a-z]+", "awrs_particles": 2}, limits)


def test_engine_critics_are_found_by_their_place() -> None:
    constraints = ours.EngineConstraints({}, lambda: None, 9, {"count": f"python:{__name__}:polite"})
    constraints.load()
    assert constraints.critic("count") is not None
    with pytest.raises(ValueError, match=r"awrs_critic='rude' is not a critic of this engine; those are count"):
        constraints.critic("rude")
    with pytest.raises(ValueError, match=r"has no 'nothing'"):
        ours.engine_critic("x", f"python:{__name__}:nothing")
    with pytest.raises(ValueError, match="does not travel with a request; name it when the engine starts"):
        constraint_arguments.critic_name(AWRS(critic=len), {"count": f"python:{__name__}:polite"})


def test_answers_know_their_population() -> None:
    assert population_of("2_cmpl-1_x", 4) == ("cmpl-1_x", 2)
    assert population_of("cmpl-1_x", 1) == ("cmpl-1_x", 0)
