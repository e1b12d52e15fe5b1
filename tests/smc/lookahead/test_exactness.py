"""Whatever is foreseen, whole texts are drawn from the global conditional: by enumeration."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from textguide.constraints import AllOf, Predicate, Regex
from textguide.guidance import AWRS
from textguide.reference import smc as reference
from textguide.smc.constrained import LENGTH as TOO_LONG
from textguide.smc.constrained import LIMIT, Constrained
from textguide.smc.lookahead import Ahead, Lookahead

from ..statistics import chi_square, z_score
from ..table import Text, exact_samples, floats, run, shares_hold, table
from ..toys import END, PIECES, Strings

MEMBERS = frozenset({b"ab", b"cab", b"abab", b"b", b"ca", b"ba", b"bab", b"cc"})
LENGTH = 4
LAW = table(3, temperature=1.5)
SIZE = len(PIECES)


def spelled(text: Text) -> bytes:
    return b"".join(PIECES[token] for token in text)


def is_member(text: Text) -> bool:
    return SIZE - 1 not in text and spelled(text) in MEMBERS


@cache
def future(text: Text) -> float:
    """The probability that the model makes a member of a text in time."""
    if len(text) == LENGTH:
        return 0.0
    p = LAW(text).double().exp().tolist()
    ends = p[END] if is_member(text) else 0.0
    return ends + sum(p[token] * future((*text, token)) for token in range(1, SIZE - 1))


@dataclass(frozen=True)
class Foreseen(Lookahead):
    """A ψ of texts, as a vector or text by text."""

    value: Callable[[Text], float]
    vector: bool = True

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return Here(self, ())


@dataclass(frozen=True)
class Here(Ahead):
    given: Foreseen
    text: Text

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        assert left == LENGTH - len(self.text) - 1
        if not self.given.vector:
            return None
        values = [0.0 if token == END else self.given.value((*self.text, token)) for token in range(SIZE)]
        return torch.tensor(values)

    def after(self, token: int) -> Ahead:
        return Here(self.given, (*self.text, token))

    def potential(self, left: int) -> float:
        assert left == LENGTH - len(self.text)
        return 0.0 if self.given.vector else self.given.value(self.text)


def good(text: Text) -> float:
    return 0.8 * math.log(max(future(text), 0.01))


def noise(text: Text) -> float:
    return random.Random(str(text)).gauss(0, 1)


def adversarial(text: Text) -> float:
    return -0.7 * good(text)


def certain(text: Text) -> float:
    """Good, and 0 exactly where no member follows."""
    return math.log(future(text)) if future(text) else -math.inf


def oracle() -> tuple[dict[Text, float], float]:
    return reference.global_conditional(floats(LAW), is_member, END, LENGTH, SIZE)


SETTINGS: list[dict[str, Any]] = [
    {"masks": True},
    {"masks": True, "particles": 4, "ess_threshold": 0.9},
    {"particles": 4, "ess_threshold": 0.9, "resampling": "systematic"},
    {"estimator": "geometric", "accepts": 3},
    {"max_rejects": 2, "particles": 3},
]


def sample(lookahead: Any, masks: bool = False, **options: Any) -> tuple[list[Text], Any]:
    guidance = AWRS(lookahead=lookahead, **options)
    populations = 600 if guidance.particles == 1 else 200
    return run(LAW, Strings(MEMBERS, masks), guidance, populations, LENGTH, 1)


def check(texts: list[Text], outcome: Any) -> None:
    conditional, evidence = oracle()
    if abs(outcome.log_evidence.exp() / evidence - 1).max() < 1e-5:
        return  # the perfect lookahead: nothing is left to chance, and what remains is rounding
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    shares_hold(texts, outcome, conditional, evidence)


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("value", [good, noise, adversarial, certain])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_no_lookahead_moves_the_distribution(options: dict[str, Any], value: Any, vector: bool) -> None:
    if value is certain and not vector:
        pytest.skip("a potential that is 0 behind the draw is what a critic says, and gives the text up")
    check(*sample(Foreseen(value, vector), **options))


def test_the_perfect_lookahead_makes_all_weights_equal() -> None:
    conditional, evidence = oracle()
    texts, outcome = sample(Foreseen(certain), masks=True)
    assert outcome.log_weights.exp().allclose(torch.full((len(texts),), evidence, dtype=torch.float64), rtol=1e-4)
    assert chi_square(Counter(texts), conditional, len(texts)) > 1e-3
    _, plain = sample(None, masks=True, particles=4, ess_threshold=0.0)
    _, foreseen = sample(Foreseen(good), masks=True, particles=4, ess_threshold=0.0)
    assert foreseen.ess.mean() > 1.2 * plain.ess.mean()


@pytest.mark.parametrize("half", ["_look_ahead", "_twist"], ids=["stays in the weights", "only moves draws"])
def test_a_twist_that_does_half_of_it_is_seen(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(Constrained, half)

    def wrong(self: Constrained, *values: Any) -> Any:
        before = self.log_weights.clone()
        found = right(self, *values)
        self.log_weights = before
        return found

    monkeypatch.setattr(Constrained, half, wrong)
    with pytest.raises(AssertionError):
        check(*sample(Foreseen(noise), masks=True))


PATTERNS = ["(ab|ca)*b", "c[abc]{5,6}", "(abc|cab){1,3}"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("particles", [1, 4])
def test_lengths_of_patterns(pattern: str, particles: int) -> None:
    import re

    def member(text: Text) -> bool:
        return SIZE - 1 not in text and re.fullmatch(pattern, spelled(text).decode()) is not None

    conditional, evidence = reference.global_conditional(floats(LAW), member, END, LENGTH, SIZE)
    dead = {}
    for lookahead in ("automaton", None):
        guidance = AWRS(particles=particles, lookahead=lookahead, ess_threshold=0.9)
        texts, outcome = run(LAW, Regex(pattern), guidance, 600 // particles, LENGTH, 1)
        assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
        finished = [text for text, done in zip(texts, outcome.finished.tolist(), strict=True) if done]
        assert set(finished) <= set(conditional)
        dead[lookahead] = sum(not done for done in outcome.finished.tolist())
    assert dead["automaton"] == 0 < dead[None]


def test_beside_a_function_tokens_are_asked_about() -> None:
    constraint = AllOf(Regex("[abc]{3,7}"), Predicate(lambda text: "aa" not in text and "cb" not in text))
    conditional, evidence = reference.global_conditional(
        floats(LAW),
        lambda text: (
            SIZE - 1 not in text
            and 3 <= len(spelled(text)) <= 7
            and b"aa" not in spelled(text)
            and b"cb" not in spelled(text)
        ),
        END,
        LENGTH,
        SIZE,
    )
    texts, outcome = run(LAW, constraint, AWRS(particles=3, ess_threshold=0.9), 300, LENGTH, 2)
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    drawn = exact_samples(texts, outcome)
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3


def test_masks_begin_nothing_that_cannot_end() -> None:
    pattern = Regex("(abc|cab){1,3}|a[abc]{9}")
    texts, outcome = run(LAW, pattern, AWRS(sampler="mask"), 60, LENGTH, 1)
    assert all(outcome.finished.tolist())
    texts, outcome = run(LAW, pattern, AWRS(sampler="mask", lookahead=None), 60, LENGTH, 1)
    assert not all(outcome.finished.tolist())
    # Where nothing can end, as much is written as before.
    texts, outcome = run(LAW, Regex("[abc]{20}"), AWRS(sampler="mask"), 3, LENGTH, 1)
    assert set(outcome.deaths) == {LIMIT}
    assert all(len(text) == LENGTH for text in texts)
    texts, outcome = run(LAW, Regex("[abc]{20}"), AWRS(), 3, LENGTH, 1)
    assert set(outcome.deaths) == {TOO_LONG}
    assert set(texts) == {()}


def test_names() -> None:
    with pytest.raises(ValueError, match="lookahead='far' must be one of auto, automaton, hmm, value, a file"):
        AWRS(Regex("a"), lookahead="far")
    with pytest.raises(ValueError, match=r"its model has 49152 tokens, the language model [0-9]+; train one"):
        run(LAW, Regex("ab+"), AWRS(lookahead="hmm"), 1, LENGTH)
    assert "lookahead" not in AWRS("regex:a").to_dict()
    assert AWRS("regex:a", lookahead=None).to_dict()["lookahead"] is None
