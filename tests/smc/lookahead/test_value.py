"""A value that was fitted to rollouts: exact whatever it learned, and better where there is something to learn."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from textguide.constraints import Constraint, Predicate, Regex, Vocabulary
from textguide.constraints.automata import automaton_of
from textguide.guidance import AWRS
from textguide.reference import smc as reference
from textguide.smc.lookahead.stored import read
from textguide.smc.lookahead.value import ANYWHERE, Value, ValueLookahead, features, fit
from textguide.smc.rollouts import rollouts

from ..statistics import z_score
from ..table import Text, floats, run, shares_hold, table
from ..toys import END, PIECES, VOCABULARY, Strings

SIZE = len(PIECES)
LENGTH = 4
PATTERN = "(ab|ca)*b|c[ab]{2}"
LAW = table(3, temperature=1.5)


def allowed(text: str) -> bool:
    """Prefixes of texts of which some run into a dead end."""
    return not re.search("aa|bb|cc", text)


REGULAR = Regex(PATTERN)
FUNCTION = Predicate(allowed, lambda text: allowed(text) and len(text) > 2 and text.endswith("b"))
MASKED = Strings(frozenset({b"ab", b"cab", b"abab", b"b", b"ca", b"ba", b"bab", b"cc"}), masks=True)
FORMS = [REGULAR, FUNCTION, MASKED]


def law(tokens: Tensor, texts: Any) -> tuple[Tensor, Any]:
    """The table as a language model, behind a prompt that says nothing."""
    if texts is None:
        texts = [()] * len(tokens)
    else:
        texts = [(*text, token) for text, (token,) in zip(texts, tokens.tolist(), strict=True)]
    return torch.stack([LAW(text) for text in texts]), texts


@cache
def learned(constraint: Constraint, noise: float = 0.0, number: int = 240) -> Value:
    found = rollouts(law, [[1]], constraint, VOCABULARY, number=number, limit=LENGTH, seed=1, batch_size=240)
    blur = noise * torch.randn(len(found.values), generator=torch.Generator().manual_seed(0))
    return fit(replace(found, values=found.values + blur), constraint, VOCABULARY)


def lookahead(constraint: Constraint, value: Value) -> ValueLookahead:
    return ValueLookahead(value, VOCABULARY, automaton_of(constraint, VOCABULARY))


def oracle(constraint: Constraint) -> tuple[dict[Text, float], float]:
    session = constraint.start(VOCABULARY)

    def member(text: Text) -> bool:
        return SIZE - 1 not in text and session.is_complete(b"".join(PIECES[token] for token in text))

    return reference.global_conditional(floats(LAW), member, END, LENGTH, SIZE)


@pytest.mark.parametrize(("constraint", "noise"), [(REGULAR, 0.0), (REGULAR, 3.0), (FUNCTION, 0.0), (MASKED, 3.0)])
def test_values_leave_the_distribution_as_it_is(constraint: Constraint, noise: float) -> None:
    guidance = AWRS(particles=4, lookahead=lookahead(constraint, learned(constraint, noise)), ess_threshold=0.5)
    texts, outcome = run(LAW, constraint, guidance, 120, LENGTH, 2)
    conditional, evidence = oracle(constraint)
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    shares_hold(texts, outcome, conditional, evidence)


@pytest.mark.parametrize("constraint", FORMS, ids=lambda value: value.kind)
def test_what_was_learned_makes_weights_more_equal(constraint: Constraint) -> None:
    sizes = []
    for ahead in (lookahead(constraint, learned(constraint)), None):
        guidance = AWRS(particles=4, lookahead=ahead, ess_threshold=0.0)
        sizes.append(run(LAW, constraint, guidance, 50, LENGTH, 2)[1].ess.mean())
    assert sizes[0] > 1.05 * sizes[1]


@pytest.mark.parametrize("constraint", FORMS, ids=lambda value: value.kind)
def test_rollouts_estimate_the_probability_to_go(constraint: Constraint) -> None:
    found = rollouts(law, [[1]], constraint, VOCABULARY, number=400, limit=LENGTH, seed=3, batch_size=400)
    session = constraint.start(VOCABULARY)

    def future(text: Text) -> float:
        if len(text) == LENGTH:
            return 0.0
        p = LAW(text).double().exp().tolist()
        written = b"".join(PIECES[token] for token in text)
        ends = p[END] if session.is_complete(written) else 0.0
        return ends + sum(p[token] * future((*text, token)) for token in range(1, SIZE - 1))

    first = found.read[:, -1] == features(LAW(()), LENGTH - 1)[-1]
    seen = 0
    for token in range(1, SIZE - 1):
        estimates = found.values[first & (found.tokens == token)].exp().tolist()
        if len(estimates) > 40 and future((token,)) > 0.02:
            assert abs(z_score(estimates, future((token,)))) < 3.5
            seen += 1
    assert seen


def test_heads_foresee() -> None:
    value = learned(FUNCTION)
    assert set(value.heads) == {ANYWHERE}
    assert len(learned(REGULAR).heads) > 1
    ahead = lookahead(FUNCTION, value).begin(())
    found = ahead.following(LENGTH - 1, LAW(()))
    assert found is not None
    assert found[END] == 0.0
    head = value.heads[ANYWHERE]
    scaled = (features(LAW(()), LENGTH - 1) - value.centre) / value.scale
    plain = torch.full((SIZE,), head.mean + float(scaled @ head.weight))
    plain[head.tokens] += head.biases
    assert torch.allclose(found[1:], plain.clamp(head.low, head.high)[1:], atol=1e-4)


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "value.safetensors"
    value = learned(REGULAR, number=60)
    value.save(path)
    again = Value.of(read(path))
    assert again.about == value.about
    for state, head in value.heads.items():
        other = again.heads[state]
        assert (other.mean, other.low, other.high) == (head.mean, head.low, head.high)
        assert torch.equal(other.weight, head.weight)
        assert torch.equal(other.biases, head.biases)
    _, outcome = run(LAW, REGULAR, AWRS(REGULAR, lookahead=path), 5, LENGTH)
    assert outcome.finished.any()
    with pytest.raises(ValueError, match="was learned for another constraint; train it again"):
        run(LAW, Regex("a+"), AWRS(lookahead=path), 1, LENGTH)
    with pytest.raises(ValueError, match="another vocabulary, or other end tokens; train it again"):
        run(LAW, REGULAR, AWRS(lookahead=path), 1, LENGTH, vocabulary=Vocabulary(PIECES[:-1], VOCABULARY.ends))
    with pytest.raises(ValueError, match="lookahead='value': a value is learned for one constraint"):
        run(LAW, REGULAR, AWRS(lookahead="value"), 1, LENGTH)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(ValueError, match="no text of the rollouts became a member"):
        fit(rollouts(law, [[1]], Regex("[abc]{40}"), VOCABULARY, number=4, limit=LENGTH), REGULAR, VOCABULARY)
