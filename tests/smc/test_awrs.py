"""One token: unbiased weights, exact distributions, few questions."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from textguide.constraints import Vocabulary
from textguide.reference import smc as reference
from textguide.smc.awrs import Draw, Knowledge, Mass, Order, Uniforms, draw
from textguide.smc.trie import TrieKnowledge, trie_of

from .statistics import chi_square, z_score
from .toys import PIECES, VOCABULARY, Strings, random_distribution, random_strings

P = [0.39, 0.25, 0.19, 0.08, 0.06, 0.03]
ALLOWED = [False, True, False, True, True, False]
Z = 0.39
COUNT = 3000


def distribution(p: Sequence[float] = P) -> Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


class Given(Order):
    """An order that gives these positions."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(Uniforms(None))
        self._places = list(places)

    def next(self, mass: Mass, without: Collection[int] = ()) -> int | None:
        left = [p for p in self._places if mass.is_left(p) and p not in without]
        if not left:
            return None
        self._places.remove(left[0])
        return left[0]


def sampled(count: int, p: Sequence[float] = P, allowed: Sequence[bool] = ALLOWED, **options: Any) -> list[Draw]:
    generator = torch.Generator().manual_seed(7)
    logp = distribution(p)
    return [draw(logp, Knowledge(lambda t: allowed[t]), generator, **options) for _ in range(count)]


def per_token(draws: Sequence[Draw], token: int) -> list[float]:
    return [math.exp(d.log_weight) if d.token == token else 0.0 for d in draws]


@pytest.mark.parametrize("cap", [None, 1, 2, 3])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_recursive_equals_its_oracle_on_every_order(cap: int | None, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(1, 8)
    p = [rng.random() ** 3 + 1e-6 for _ in range(size)]
    p = [value / sum(p) for value in p]
    allowed = [rng.random() < 0.4 for _ in p]
    order = rng.sample(range(size), size)
    token, weight, calls = reference.recursive(p, allowed, order, cap)
    # With one token left the oracle's look at "the next" is a question less.
    done = draw(
        distribution(p), Knowledge(lambda t: allowed[t]), estimator="recursive", max_rejects=cap, order=Given(order)
    )
    assert done.token == (-1 if token is None else token)
    assert math.exp(done.log_weight) == pytest.approx(weight, abs=1e-12)
    assert done.checks == calls
    assert done.exhausted == (not any(allowed) and (cap is None or cap > size or (token is None and calls < cap)))


@pytest.mark.parametrize("cap", [None, 1, 2, 3, 5])
def test_the_oracle_is_unbiased_for_every_token(cap: int | None) -> None:
    mean, _, _ = reference.recursive_moments(P, ALLOWED, cap)
    expected = [p if ok else 0.0 for p, ok in zip(P, ALLOWED, strict=True)]
    assert mean == pytest.approx(expected, abs=1e-12)


def test_variances_and_calls_are_the_published_ones() -> None:
    # A six-token distribution with Z = .39 that has the moments of the published table.
    _, variance, calls = reference.recursive_moments(P, ALLOWED)
    assert (variance, calls) == (pytest.approx(0.0715, abs=2e-4), pytest.approx(2.91, abs=0.02))
    _, variance, calls = reference.recursive_moments(P, ALLOWED, 2)
    assert (variance, calls) == (pytest.approx(0.1200, abs=2e-4), pytest.approx(2.0, abs=1e-9))
    for accepts, expected, looks in ((2, 0.0822, 2.99), (5, 0.0240, 4.47)):
        draws = sampled(COUNT, estimator="geometric", accepts=accepts)
        weights = torch.tensor([math.exp(d.log_weight) for d in draws], dtype=torch.float64)
        assert float(weights.var()) == pytest.approx(expected, rel=0.08)
        assert sum(d.checks for d in draws) / COUNT == pytest.approx(looks, abs=0.15)


SETTINGS: list[dict[str, Any]] = [
    {"estimator": "recursive"},
    {"estimator": "recursive", "max_rejects": 2},
    {"estimator": "geometric"},
    {"estimator": "geometric", "accepts": 4},
    {"estimator": "geometric", "accepts": 3, "max_rejects": 3},
    {"estimator": "auto"},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_weights_are_unbiased_and_tokens_have_the_conditional_distribution(options: dict[str, Any]) -> None:
    draws = sampled(COUNT, **options)
    assert abs(z_score([math.exp(d.log_weight) for d in draws], Z)) < 3.5
    for token, (p, ok) in enumerate(zip(P, ALLOWED, strict=True)):
        if ok:
            assert abs(z_score(per_token(draws, token), p)) < 3.5
        else:
            assert not any(per_token(draws, token))
    if "max_rejects" not in options:
        counts: dict[int, float] = {}
        for d in draws:
            counts[d.token] = counts.get(d.token, 0) + 1
        assert chi_square(counts, {t: p / Z for t, p in enumerate(P) if ALLOWED[t]}, COUNT) > 1e-3


def test_the_geometric_estimator_and_its_oracle_have_one_distribution() -> None:
    rng = random.Random(1)
    for cap in (None, 3):
        theirs = [reference.geometric(P, ALLOWED, rng, 3, cap) for _ in range(COUNT)]
        ours = sampled(COUNT, estimator="geometric", accepts=3, max_rejects=cap)
        weights = [round(math.exp(d.log_weight), 9) for d in ours]
        observed, expected = {}, {}
        for weight in weights:
            observed[weight] = observed.get(weight, 0) + 1
        for _, weight, _ in theirs:
            expected[round(weight, 9)] = expected.get(round(weight, 9), 0) + 1
        # Two samples: twice the variance of one against a distribution.
        keys = sorted(set(observed) | set(expected), key=lambda k: -expected.get(k, 0))[:6]
        for key in keys:
            a, b = observed.get(key, 0), expected.get(key, 0)
            assert abs(a - b) < 4 * math.sqrt(a + b + 1)


@pytest.mark.parametrize("wrong", ["no look behind the accept", "always q", "counts without phantoms"])
def test_biased_estimators_are_seen(wrong: str) -> None:
    weights = []
    rng = random.Random(3)
    for _ in range(COUNT):
        order = sorted(range(6), key=lambda t: rng.expovariate(1.0) / P[t])
        rejected, weight = 0.0, 0.0
        for place, token in enumerate(order):
            q = P[token] / (1 - rejected)
            if not ALLOWED[token]:
                rejected += P[token]
                continue
            if wrong == "no look behind the accept":
                weight = 1 - rejected
            elif wrong == "always q":
                weight = (1 - rejected) * q
            else:
                weight = 1 / (1 + place)
            break
        weights.append(weight)
    assert abs(z_score(weights, Z)) > 5


def test_auto_switches_where_the_geometric_estimator_asks_less() -> None:
    peaked = [0.9, 0.05, 0.05]
    assert sum(d.checks for d in sampled(200, peaked, [True] * 3)) < 1.4 * 200
    assert sum(d.checks for d in sampled(200, [0.6, 0.2, 0.2], [True] * 3)) == 400
    # More accepts than two are the geometric estimator's.
    weights = {round(math.exp(d.log_weight), 6) for d in sampled(200, accepts=4)}
    assert {1.0, 0.75, 0.6, 0.5} <= weights


@pytest.mark.parametrize("estimator", ["recursive", "geometric"])
def test_very_unlikely_constraints_keep_their_weight(estimator: str) -> None:
    # 1 − R cannot hold these masses: they are summed anew.
    logits = torch.tensor([0.0, -60.0, -61.0, -140.0, -60.5])
    logp = logits.double().log_softmax(-1).float()
    generator = torch.Generator().manual_seed(0)
    weights = []
    for _ in range(300):
        done = draw(logp, Knowledge(lambda t: t in (1, 2)), generator, estimator="recursive")
        assert done.token in (1, 2)
        weights.append(math.exp(done.log_weight + 60))
    assert abs(z_score(weights, 1 + math.exp(-1.0))) < 3.5
    done = draw(logp, Knowledge(lambda t: t == 3), generator, estimator=estimator)
    assert done.token == 3
    if estimator == "recursive":
        assert done.log_weight == pytest.approx(-140, abs=1e-4)


@pytest.mark.parametrize("estimator", ["recursive", "geometric"])
@pytest.mark.parametrize("left", [0.0, 0.25])
def test_a_token_that_is_known_to_be_accepted_but_cannot_be_drawn_is_not_drawn(estimator: str, left: float) -> None:
    """A classifier's candidates leave most tokens without probability, also such as the constraint is known to take."""
    logp = torch.tensor([1 - left, left, 0.0]).log()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        done = draw(logp, Knowledge(lambda t: t > 0, accepted={2}), generator, estimator=estimator)
        assert done.token == (1 if left else -1)
        assert done.exhausted == (not left)


def test_nothing_allowed_is_exhausted_and_a_cap_is_not() -> None:
    for estimator in ("recursive", "geometric"):
        (done,) = sampled(1, allowed=[False] * 6, estimator=estimator)
        assert (done.token, done.log_weight, done.exhausted, done.checks) == (-1, -math.inf, True, 6)
        (done,) = sampled(1, allowed=[False] * 6, estimator=estimator, max_rejects=1)
        assert (done.token, done.log_weight, done.exhausted, done.checks) == (-1, -math.inf, False, 1)


def test_tokens_without_mass_are_never_candidates() -> None:
    logp = torch.tensor([-math.inf, 0.0, -math.inf])
    asked = []
    done = draw(logp, Knowledge(lambda t: bool(asked.append(t)) or True), torch.Generator().manual_seed(0))
    assert (done.token, done.log_weight, asked) == (1, 0.0, [1])


def test_orders_are_without_replacement_and_have_the_right_distribution() -> None:
    uniforms = Uniforms(torch.Generator().manual_seed(2))
    logp = distribution().float()
    pairs: dict[tuple[int, int], float] = {}
    for _ in range(COUNT):
        mass, order = Mass(logp), Order(uniforms)
        taken = [order.next(mass) for _ in range(6)]
        assert sorted(taken) == list(range(6))  # type: ignore[type-var]
        assert order.next(mass) is None
        pairs[taken[0], taken[1]] = pairs.get((taken[0], taken[1]), 0) + 1  # type: ignore[index]
    expected = {(a, b): P[a] * P[b] / (1 - P[a]) for a in range(6) for b in range(6) if a != b}
    assert chi_square(pairs, expected, COUNT) > 1e-3


def test_orders_keep_their_distribution_while_tokens_are_rejected() -> None:
    # A table made before the rejections is used on behind them, and one made anew where most of it is gone.
    uniforms = Uniforms(torch.Generator().manual_seed(3))
    counts: dict[int, float] = {}
    for number in range(COUNT):
        mass, order = Mass(distribution().float()), Order(uniforms)
        if number % 2:
            order.next(mass, without=range(1, 6))
        else:
            order.use(0)
        mass.reject(1, 3)
        position = order.next(mass, without={5})
        assert position in (3, 4)
        counts[position] = counts.get(position, 0) + 1  # type: ignore[index]
    assert chi_square(counts, {3: P[3] / (P[3] + P[4]), 4: P[4] / (P[3] + P[4])}, COUNT) > 1e-3


def test_orders_leave_the_mass_as_it_is() -> None:
    for logp in (distribution(), torch.tensor([0.0, -60.0, -61.0]).double().log_softmax(-1)):
        mass, order = Mass(logp), Order(Uniforms(torch.Generator().manual_seed(0)))
        if len(logp) == 3:
            mass.reject(0, 1)  # the rest is summed anew in a scale of its own
        before = mass.p.clone()
        while order.next(mass) is not None:
            pass
        assert torch.equal(mass.p, before)


# -- bytes -----------------------------------------------------------------------------------------------------------


def trie_draws(
    constraint: Strings, text: bytes, logp: Tensor, count: int, shared: bool, **options: Any
) -> tuple[list[Draw], Tensor, int]:
    trie = trie_of(VOCABULARY)
    session = constraint.start(VOCABULARY)
    session.text = text
    generator = torch.Generator().manual_seed(11)
    permuted = logp[trie.order]
    knowledge = TrieKnowledge(trie, session)
    draws = []
    for _ in range(count):
        draws.append(draw(permuted, knowledge, generator, **options))
        if not shared:
            knowledge = TrieKnowledge(trie, session)
    return draws, trie.order, session.calls


def allowed_of(constraint: Strings, text: bytes) -> list[bool]:
    session = constraint.start(VOCABULARY)
    return [
        session.is_complete(text) if i in VOCABULARY.ends else bool(t) and session.is_prefix(text + t)
        for i, t in enumerate(PIECES)
    ]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize(
    "constraint", [{b"ab", b"cab", b"aba"}, {b"ca", b"cac"}, {b""}], ids=["ab cab aba", "ca cac", "empty"]
)
def test_pruning_keeps_weights_unbiased(constraint: set[bytes], options: dict[str, Any]) -> None:
    strings = Strings(frozenset(constraint))
    logp = random_distribution(random.Random(5), len(PIECES), 0.7)
    draws, order, _ = trie_draws(strings, b"", logp, 600, shared=False, **options)
    weights: dict[int, list[float]] = {
        token: [math.exp(d.log_weight) if d.token >= 0 and int(order[d.token]) == token else 0.0 for d in draws]
        for token in range(len(PIECES))
    }
    for token, ok in enumerate(allowed_of(strings, b"")):
        if not ok:
            assert not any(weights[token])
        elif max(weights[token]) - min(weights[token]) > 1e-6:
            assert abs(z_score(weights[token], math.exp(logp[token]))) < 3.7
        else:
            assert weights[token][0] == pytest.approx(math.exp(logp[token]), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_tries_only_give_allowed_tokens_and_unbiased_weights(seed: int) -> None:
    rng = random.Random(seed)
    strings = random_strings(rng)
    logp = random_distribution(rng, len(PIECES))
    options = rng.choice(SETTINGS)
    draws, order, calls = trie_draws(strings, b"", logp, 150, shared=rng.random() < 0.5, **options)
    allowed = allowed_of(strings, b"")
    total = sum(math.exp(lp) for lp, ok in zip(logp.tolist(), allowed, strict=True) if ok)
    for d in draws:
        assert d.token < 0 or allowed[int(order[d.token])]
        assert (d.token < 0) == (d.log_weight == -math.inf)
    weights = [math.exp(d.log_weight) for d in draws]
    spread = max(weights) - min(weights)
    # 150 draws decide little by themselves; five standard errors and the bound of the weights do.
    if spread > 1e-6:
        error = math.sqrt(sum((w - total) ** 2 for w in weights)) / len(weights)
        assert abs(sum(weights) / len(weights) - total) < 6 * error + 0.03
    elif "max_rejects" not in options:
        assert calls > 0


def test_shared_knowledge_ends_questions_and_leaves_exact_weights() -> None:
    strings = Strings(frozenset({b"ab", b"cab"}))
    logp = random_distribution(random.Random(0), len(PIECES), 0.3)
    draws, _, calls = trie_draws(strings, b"", logp, 400, shared=True, estimator="recursive")
    assert calls <= len(PIECES)
    exact = math.log(sum(math.exp(logp[i]) for i, ok in enumerate(allowed_of(strings, b"")) if ok))
    assert draws[-1].log_weight == pytest.approx(exact, abs=1e-5)
    assert draws[-1].checks == 0


def test_one_rejected_byte_takes_its_subtree_along() -> None:
    tokens = (b"", *(b"x" + bytes([c]) for c in range(97, 123)), b"y")
    vocabulary = Vocabulary(tokens, frozenset({0}))
    session = Strings(frozenset({b"y"})).start(vocabulary)
    trie = trie_of(vocabulary)
    logp = torch.full((len(tokens),), 1 / len(tokens)).log()
    done = draw(logp, TrieKnowledge(trie, session), torch.Generator().manual_seed(0), estimator="recursive")
    assert trie.order[done.token] == 27
    assert done.log_weight == pytest.approx(-math.log(len(tokens)), abs=1e-5)
    assert session.calls <= 5  # a token, its first byte, the end, and the answer


def test_spans_of_bytes() -> None:
    tokens = (b"", b"\xff", b"\xff\xff", b"\xfe\xff", b"\xfe\xffa", b"a", b"a", b"ab", b"")
    trie = trie_of(Vocabulary(tokens, frozenset({0})))
    for prefix in (b"a", b"\xff", b"\xfe\xff", b"\xfe", b"b", b"ab", b"\xff\xff\xff"):
        low, high = trie.span(prefix)
        assert sorted(trie.order[low:high].tolist()) == [i for i, t in enumerate(tokens) if t.startswith(prefix)]
    assert [trie.order[p].item() for p in trie.equal(b"a")] == [5, 6]
    assert trie.order[trie.rank].tolist() != trie.order.tolist() or trie.rank.tolist() == list(range(9))
    assert torch.equal(trie.order[trie.rank], torch.arange(9))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_everything_finds_the_mask(seed: int) -> None:
    rng = random.Random(seed)
    strings = random_strings(rng)
    session = strings.start(VOCABULARY)
    texts = sorted({m[:n] for m in strings.members for n in range(len(m) + 1)})
    session.text = rng.choice(texts)
    knowledge = TrieKnowledge(trie_of(VOCABULARY), session)
    knowledge.find_all()
    assert knowledge.mask().tolist() == allowed_of(strings, session.text)


def test_knowledge_moves_on_with_the_text() -> None:
    strings = Strings(frozenset({b"cab"}))
    session = strings.start(VOCABULARY)
    trie = trie_of(VOCABULARY)
    parent = TrieKnowledge(trie, session)
    parent.find_all()
    session.advance(3)
    child = TrieKnowledge(trie, session, (parent, b"c"))
    known = {PIECES[int(trie.order[p])] for p in child.accepted}
    assert known == {b"a", b"ab"}


def test_uniforms_are_uniform() -> None:
    uniforms = Uniforms(torch.Generator().manual_seed(0))
    values = [uniforms.next() for _ in range(2000)]
    assert min(values) > 0
    assert max(values) < 1
    assert abs(z_score(values, 0.5)) < 3.5
