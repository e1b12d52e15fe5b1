"""Texts that learn from failures: CARS draws the global conditional, ASAp comes to it, and the tree holds the mass that
is left; by enumeration."""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from textguide import Lessons
from textguide.constraints import Regex
from textguide.guidance import AWRS
from textguide.reference import smc as reference
from textguide.smc.learning import HOPELESS, TRIES, Learning
from textguide.smc.lessons import Prefix, current_lessons

from .statistics import chi_square, z_score
from .table import Text, exact_samples, floats, run
from .test_exactness import LAW, LENGTH, MEMBERS, oracle, spelled
from .toys import END, PIECES, Strings

PREFIXES = {member[:n] for member in MEMBERS for n in range(len(member) + 1)}
CONDITIONAL, EVIDENCE = oracle()


def may_follow(text: Text, token: int, last: bool) -> bool:
    if token == END:
        return spelled(text) in MEMBERS
    return not last and bool(PIECES[token]) and spelled(text) + PIECES[token] in PREFIXES


def places(root: Prefix, text: Text = ()) -> Iterator[tuple[Text, Prefix]]:
    yield text, root
    for token, child in root.children.items():
        yield from places(child, (*text, token))


def tree(lessons: Lessons) -> dict[Text, Prefix]:
    return dict(places(lessons.root(0)))


@pytest.mark.parametrize(
    "options", [{"masks": True, "particles": 5}, {}, {"estimator": "geometric", "max_rejects": 3}], ids=str
)
def test_cars_draws_the_global_conditional(options: dict[str, Any]) -> None:
    masks, particles = options.pop("masks", False), options.pop("particles", 1)
    guidance = AWRS(sampler="cars", particles=particles, **options)
    texts: list[Text] = []
    for seed in range(40):  # few texts a tree, so that most are drawn while it is still learned
        drawn, outcome = run(LAW, Strings(MEMBERS, masks), guidance, 20 // particles, LENGTH, seed)
        assert bool(outcome.finished.all())
        assert outcome.log_weights.tolist() == [0.0] * 20
        assert outcome.ess.tolist() == pytest.approx([particles] * (20 // particles))
        texts += drawn
    assert chi_square(Counter(texts), CONDITIONAL, len(texts)) > 1e-3
    assert len(outcome.tries) == 20
    assert sum(outcome.tries) >= 20


def finished(texts: list[Text], outcome: Any) -> list[Text]:
    return [text for text, done in zip(texts, outcome.finished.tolist(), strict=True) if done]


def test_draws_that_nothing_rejects_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test, on the proposal of CARS by itself, and on thinning that forgets with which bound a place was
    drawn."""
    texts: list[Text] = []
    for seed in range(30):
        texts += finished(*run(LAW, Strings(MEMBERS, True), AWRS(sampler="asap"), 20, LENGTH, seed))
    assert chi_square(Counter(texts), CONDITIONAL, len(texts)) < 1e-6
    choose = Learning.choose

    def without_bounds(self: Learning, scores: torch.Tensor, last: bool) -> torch.Tensor:
        self._bound = [0.0] * len(self._bound)
        return choose(self, scores, last)

    monkeypatch.setattr(Learning, "choose", without_bounds)
    texts = []
    for seed in range(80):
        texts += finished(*run(LAW, Strings(MEMBERS, True), AWRS(sampler="cars", max_tries=10), 20, LENGTH, seed))
    assert chi_square(Counter(texts), CONDITIONAL, len(texts)) < 1e-4


@pytest.mark.parametrize(
    "options",
    [{"masks": True}, {"max_rejects": 2}, {"particles": 4, "ess_threshold": 1.0}],
    ids=str,
)
def test_asap_weighs_texts_without_bias_from_the_first_one_on(options: dict[str, Any]) -> None:
    masks = options.pop("masks", False)
    guidance = AWRS(sampler="asap", **options)
    evidences, kept, masses = [], [], {text: [] for text in CONDITIONAL}
    for seed in range(160):
        texts, outcome = run(LAW, Strings(MEMBERS, masks), guidance, 8 // guidance.particles, LENGTH, seed)
        evidences.append(float(outcome.log_evidence.exp().mean()))
        kept += exact_samples(texts, outcome, seed)
        weights = outcome.log_weights.exp().tolist()
        for text, found in masses.items():
            found.append(sum(w for w, drawn in zip(weights, texts, strict=True) if drawn == text) / len(texts))
    assert abs(z_score(evidences, EVIDENCE)) < 3.5
    assert len(kept) > 20
    assert chi_square(Counter(kept), CONDITIONAL, len(kept)) > 1e-3
    for text, probability in CONDITIONAL.items():
        if probability > 0.02:
            assert abs(z_score(masses[text], probability * EVIDENCE)) < 4


@pytest.mark.parametrize("masks", [True, False])
def test_asap_comes_to_the_conditional(masks: bool) -> None:
    lessons = Lessons()
    guidance = AWRS(sampler="asap")
    first = run(LAW, Strings(MEMBERS, masks), guidance, 50, LENGTH, 0, lessons=lessons)[1].log_weights
    for seed in range(1, 4):
        run(LAW, Strings(MEMBERS, masks), guidance, 150, LENGTH, seed, lessons=lessons)
    drawn, outcome = run(LAW, Strings(MEMBERS, masks), guidance, 500, LENGTH, 99, lessons=lessons)
    texts = finished(drawn, outcome)
    assert len(texts) > 480  # an unlikely prefix may still be new
    assert chi_square(Counter(texts), CONDITIONAL, len(texts)) > 1e-3
    equal = ((outcome.log_weights.exp() / EVIDENCE - 1).abs() < 0.02).double().mean()
    assert equal > 0.95
    assert first.exp().std() > 0.05 * EVIDENCE
    assert outcome.log_evidence.exp().mean().item() == pytest.approx(EVIDENCE, rel=0.02)


@pytest.mark.parametrize("sampler", ["cars", "asap"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_tree_holds_the_mass_that_is_left(sampler: str, count: int) -> None:
    lessons = Lessons()
    run(LAW, Strings(MEMBERS, True), AWRS(sampler=sampler, max_tries=2), count, LENGTH, 4, lessons=lessons)
    found = tree(lessons)
    visited = {text for text, place in found.items() if place.rest is not None}
    assert len(visited) > 1
    for text, place in found.items():
        expected = reference.future(floats(LAW), may_follow, visited, END, LENGTH, text)
        assert place.mass == pytest.approx(expected, rel=1e-5, abs=1e-12)
    # What the next text is drawn from.
    proposal = reference.learned(floats(LAW), may_follow, visited, END, LENGTH, len(PIECES))
    total = reference.future(floats(LAW), may_follow, visited, END, LENGTH)
    chances: dict[Text, float] = {}
    for text in proposal:
        place: Prefix | None = lessons.root(0)
        chance = 1.0
        for n, token in enumerate(text):
            p = LAW(text[:n]).double().exp()
            masses = lessons.bounds(place) if place is not None else {}
            p[list(masses)] *= torch.tensor(list(masses.values()), dtype=p.dtype)
            allowed = [may_follow(text[:n], one, n + 1 == LENGTH) for one in range(len(PIECES))]
            chance *= float(p[token] / p[torch.tensor(allowed)].sum())
            place = place.children.get(token) if place is not None else None
        chances[text] = chance
    assert chances == pytest.approx(proposal, rel=1e-5)
    assert total + 1e-6 >= EVIDENCE


def test_rejected_prefixes_save_tries_and_what_is_kept_is_bounded() -> None:
    def tries(lessons: Lessons) -> tuple[list[Text], float]:
        texts, total = [], 0
        for seed in range(25):
            drawn, outcome = run(LAW, Strings(MEMBERS), AWRS(sampler="cars"), 15, LENGTH, seed, lessons=lessons)
            texts, total = texts + drawn, sum(outcome.tries)
        return texts, total / 15

    small, learned = Lessons(max_prefixes=2), Lessons()
    few, often = tries(small)
    _, rarely = tries(learned)
    assert rarely < 0.8 * often
    assert small.prefixes == 2
    assert chi_square(Counter(few), CONDITIONAL, len(few)) > 1e-3
    for key in range(1, 9):
        small.root(key)
        assert small.prefixes <= 2
    with pytest.raises(ValueError, match="max_prefixes=0"):
        Lessons(0)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "found out"])
def test_what_is_dropped_makes_room(closed: bool) -> None:
    lessons = Lessons(max_prefixes=4)
    root, probs = lessons.root(0), torch.tensor([0.25, 0.75], dtype=torch.float64)
    one, both = torch.tensor([False, True]), torch.tensor([True, True])
    first = lessons.learn(root, root, probs, both, 1)
    assert first is not None
    second = lessons.learn(first, root, probs, one, 1)
    assert second is not None
    third = lessons.learn(second, root, probs, one, 1)
    assert third is not None
    assert (lessons.prefixes, root.size, first.size) == (4, 4, 3)
    assert lessons.learn(third, root, probs, both, 1) is None
    if closed:
        first.close()
    else:
        lessons.learn(third, root, probs, ~both, None)  # and with it the two texts before
    assert first.mass == 0.0
    assert (lessons.prefixes, root.size) == (2, 2)
    assert root.mass == pytest.approx(0.25)
    assert lessons.learn(root, root, probs, both, 0) is not None
    lessons.learn(third, root, probs, both, 0)  # a run that stands there still
    assert lessons.prefixes == 3


def test_tiny_masses_keep_their_digits() -> None:
    """A member of probability 1e-40 beside prefixes that take all the rest."""
    logp = torch.tensor([-93.0, -0.0, -93.5]).log_softmax(-1)
    lessons, others = Lessons(), Lessons()
    lessons.root(0)
    root = others.root(0)
    assert (
        lessons.learn(root, root, logp.double().exp(), torch.tensor([True, True, False]), 1) is None
    )  # of no tree here
    root = lessons.root(0)
    behind = lessons.learn(root, root, logp.double().exp(), torch.tensor([True, True, False]), 1)
    assert behind is not None
    behind.close()
    assert root.mass == pytest.approx(math.exp(logp[0]), rel=1e-6)
    root.update_mass()
    assert root.mass < 1e-39


def test_texts_that_no_try_finishes_say_so() -> None:
    _, outcome = run(LAW, Strings(frozenset({b"abab"})), AWRS(sampler="cars", max_tries=1), 40, LENGTH, 0)
    failed = [row for row, death in enumerate(outcome.deaths) if death == TRIES]
    assert failed
    assert all(outcome.log_weights[row] == -math.inf and not outcome.finished[row] for row in failed)
    # Nothing ends in time: known after one look, and not tried again.
    _, outcome = run(LAW, Strings(frozenset({b"cccccccc"}), True), AWRS(sampler="cars", max_tries=50), 4, 3, 0)
    assert not outcome.finished.any()
    assert max(outcome.tries) < 10
    assert outcome.log_evidence.tolist() == [-math.inf] * 4
    lessons = Lessons()
    for _ in range(2):
        _, outcome = run(LAW, Strings(frozenset({b"c" * 8}), True), AWRS(sampler="asap"), 20, 3, 0, lessons=lessons)
    assert set(outcome.deaths) == {HOPELESS}


def test_the_evidence_of_cars_is_consistent() -> None:
    lessons, found = Lessons(), []
    for seed in range(12):
        guidance = AWRS(sampler="cars", particles=50)
        found.append(
            run(LAW, Strings(MEMBERS), guidance, 1, LENGTH, seed, lessons=lessons)[1].log_evidence.exp().item()
        )
    assert sum(found[2:]) / 10 == pytest.approx(EVIDENCE, rel=0.05)


def test_lessons_are_those_of_the_innermost_block_of_a_thread() -> None:
    assert current_lessons() is not current_lessons()
    seen = []
    with Lessons() as outer:
        with Lessons() as inner:
            assert current_lessons() is inner
        assert current_lessons() is outer
        thread = threading.Thread(target=lambda: seen.append(current_lessons()))
        thread.start()
        thread.join()
    assert seen[0] is not outer


@pytest.mark.parametrize("sampler", ["cars", "asap"])
@pytest.mark.parametrize("lookahead", [None, "auto"])
def test_what_is_foreseen_changes_no_distribution(sampler: str, lookahead: str | None) -> None:
    pattern = Regex("(ab|c)*a?b{0,2}")

    def member(text: Text) -> bool:
        return len(PIECES) - 1 not in text and re.fullmatch(pattern.pattern, spelled(text).decode()) is not None

    conditional, evidence = reference.global_conditional(floats(LAW), member, END, LENGTH, len(PIECES))
    guidance = AWRS(sampler=sampler, lookahead=lookahead, particles=2)
    kept, evidences = [], []
    for seed in range(60):
        texts, outcome = run(LAW, pattern, guidance, 4, LENGTH, seed)
        kept += texts if sampler == "cars" else exact_samples(texts, outcome, seed)
        evidences.append(float(outcome.log_evidence.exp().mean()))
    assert chi_square(Counter(kept), conditional, len(kept)) > 1e-3
    assert sampler == "cars" or abs(z_score(evidences, evidence)) < 3.5
