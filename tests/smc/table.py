"""A model that is a table, and the loop around it: sequential Monte Carlo without a network."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from textguide.constraints import Constraint, Vocabulary
from textguide.guidance import AWRS
from textguide.smc.constrained import Constrained
from textguide.smc.learning import Learning
from textguide.smc.lessons import Lessons
from textguide.smc.lookahead import lookahead_of
from textguide.smc.population import Outcome

from .statistics import z_score
from .toys import PIECES, VOCABULARY

Text = tuple[int, ...]


def table(seed: int, size: int = len(PIECES), temperature: float = 1.2) -> Callable[[Text], Tensor]:
    """A random distribution for every text: log-probabilities (V,)."""

    @cache
    def distribution(text: Text) -> Tensor:
        rng = random.Random(f"{seed} {text}")
        return torch.tensor([rng.gauss(0, temperature) for _ in range(size)]).log_softmax(-1)

    return distribution


def floats(distribution: Callable[[Text], Tensor]) -> Callable[[Text], Sequence[float]]:
    """The same distribution as probabilities in float64, for the oracles."""
    return cache(lambda text: distribution(text).double().exp().tolist())


def run(
    distribution: Callable[[Text], Tensor],
    constraint: Constraint,
    guidance: AWRS,
    populations: int,
    length: int,
    seed: int = 0,
    vocabulary: Vocabulary = VOCABULARY,
    lessons: Lessons | None = None,
) -> tuple[list[Text], Outcome]:
    """The texts (end tokens included) of every particle, and what came of them."""
    rows = populations * guidance.particles
    generator = torch.Generator().manual_seed(seed)
    lookahead = lookahead_of(guidance.lookahead, constraint, vocabulary)
    session = constraint.start(vocabulary)
    state: Constrained
    if guidance.learns:
        kept, keys = lessons or Lessons(), [0] * populations
        state = Learning(
            guidance, session, vocabulary, rows, generator, limit=length, lookahead=lookahead, lessons=kept, keys=keys
        )
    else:
        state = Constrained(guidance, session, vocabulary, rows, generator, limit=length, lookahead=lookahead)
    texts: list[Text] = [()] * rows
    again = list(range(rows))
    while again:
        for row in again:
            texts[row] = ()
        texts = _once(distribution, state, texts, length, vocabulary.size, generator)
        again = state.again()
    return texts, state.outcome()


def _once(
    distribution: Callable[[Text], Tensor],
    state: Constrained,
    texts: list[Text],
    length: int,
    size: int,
    generator: torch.Generator,
) -> list[Text]:
    uniform = torch.zeros(size)
    for index in range(length):
        last = index == length - 1
        going = state.open
        if not any(going):
            break
        scores = torch.stack([distribution(text) if go else uniform for text, go in zip(texts, going, strict=True)])
        if state.weighs:
            tokens = state.choose(scores, last)
        else:
            probs = state.mask(scores).softmax(-1)
            tokens = torch.multinomial(probs, 1, generator=generator).squeeze(1)
        going = state.open
        state.advance(tokens, last)
        texts = [(*text, token) if go else text for text, token, go in zip(texts, tokens.tolist(), going, strict=True)]
        ancestors = state.resample()
        if ancestors is not None:
            texts = [texts[a] for a in ancestors.tolist()]
    return texts


def exact_samples(texts: list[Text], outcome: Outcome, seed: int = 0) -> list[Text]:
    """Exact draws from the global conditional: of every population one particle in proportion to the weights, kept
    with the population's mean weight (at most 1) as probability."""
    rng = random.Random(seed)
    assert outcome.log_weights is not None
    assert outcome.log_evidence is not None
    size = len(texts) // len(outcome.log_evidence)
    kept = []
    for number, log_evidence in enumerate(outcome.log_evidence.tolist()):
        if log_evidence == -math.inf or rng.random() >= math.exp(log_evidence):
            continue
        rows = range(number * size, (number + 1) * size)
        kept.append(rng.choices([texts[r] for r in rows], [math.exp(outcome.log_weights[r]) for r in rows])[0])
    return kept


def shares_hold(
    texts: list[Text], outcome: Outcome, conditional: dict[Text, float], evidence: float, least: int = 0
) -> None:
    """Each text by itself: its share of the mean weight is its probability.

    Args:
        least: texts that fewer populations contain are not judged: rare draws with large weights have no normal
            distribution. The judged ones have to make up a third of the probability.
    """
    judged = 0.0
    size = len(texts) // len(outcome.log_evidence)
    weights = outcome.log_weights.exp().tolist()
    for text, probability in conditional.items():
        masses = [
            sum(weights[r] for r in range(start, start + size) if texts[r] == text) / size
            for start in range(0, len(texts), size)
        ]
        if probability * len(masses) > 20 and sum(mass > 0 for mass in masses) >= least:
            judged += probability
            assert abs(z_score(masses, probability * evidence)) < 4
    assert judged > 1 / 3 or least == 0
