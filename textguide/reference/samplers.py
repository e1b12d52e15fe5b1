"""The oracles of orders and samplers on a canvas: one row, one block after the other, by enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

from .decoding import Distribution

At = Callable[[Sequence[int], Sequence[int]], dict[int, Distribution]]
"""From a row and some of its positions to their distributions."""
Outcome = tuple[float, frozenset[int], frozenset[int]]
"""How likely it is, which masked positions are filled, and which filled ones are masked."""


@dataclass(frozen=True)
class View:
    """One step of one block.

    Attributes:
        certainty: of every masked position, from its distribution and the token drawn for it, and of every filled one.
        entropy: of every masked position.
        moved: of every masked position ``KL(p_t ‖ p_{t−1})`` of all steps so far, the last one last.
        confidence: of every filled position, when it was filled.
        quota: how many an equal share fills.
        turn, turns: number of the step in its block, and how many there are.
    """

    certainty: dict[int, float]
    entropy: dict[int, float]
    moved: dict[int, list[float]]
    confidence: dict[int, float]
    quota: int
    turn: int
    turns: int
    masked: tuple[int, ...] = field(default=())


Rule = Callable[[View], list[Outcome]]
Certainty = Callable[[Distribution, int, int], float]
"""From a distribution, a token and the position's number in its block."""


def entropy(distribution: Distribution) -> float:
    """In nats."""
    return -sum(math.exp(lp) * lp for lp in distribution if lp > -math.inf)


def divergence(p: Distribution, q: Distribution) -> float:
    """``KL(p ‖ q)`` in nats."""
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if a > -math.inf)


def confidence(distribution: Distribution, token: int, place: int) -> float:
    """The probability of the token."""
    return math.exp(distribution[token])


def margin(distribution: Distribution, token: int, place: int) -> float:
    """The difference of the two largest probabilities."""
    best, second = sorted((math.exp(lp) for lp in distribution), reverse=True)[:2]
    return best - second


def minus_entropy(distribution: Distribution, token: int, place: int) -> float:
    """Minus the entropy."""
    return -entropy(distribution)


def position_calibrated(decay: float, clip: float, shares: Sequence[float]) -> Certainty:
    """arXiv 2508.13021, eq. 5 to 7; ``shares`` are the frequencies of all tokens."""

    def certainty(distribution: Distribution, token: int, place: int) -> float:
        return math.exp(-decay * place) * min(clip, -math.exp(distribution[token]) * math.log(shares[token]))

    return certainty


def ranked(view: View) -> list[int]:
    """Masked positions, the surest first."""
    return sorted(view.masked, key=lambda j: (-view.certainty[j], j))


def equal_shares(view: View) -> list[Outcome]:
    """The surest ones, as many as a share has."""
    return [(1.0, frozenset(ranked(view)[: view.quota]), frozenset())]


def threshold(value: float) -> Rule:
    """All that are sure enough, and one at least."""

    def rule(view: View) -> list[Outcome]:
        sure = [j for j in view.masked if view.certainty[j] >= value]
        return [(1.0, frozenset(sure or ranked(view)[:1]), frozenset())]

    return rule


def entropy_bound(gamma: float) -> Rule:
    """arXiv 2505.24857: the largest set of the surest with ``Σ H − max H ≤ γ``."""

    def rule(view: View) -> list[Outcome]:
        order = ranked(view)
        for size in range(len(order), 0, -1):
            chosen = [view.entropy[j] for j in order[:size]]
            if sum(chosen) - max(chosen) <= gamma or size == 1:
                return [(1.0, frozenset(order[:size]), frozenset())]
        raise AssertionError

    return rule


def stability(sure: float, still: float, history: int) -> Rule:
    """arXiv 2511.05664, algorithm 1."""

    def rule(view: View) -> list[Outcome]:
        ready = [
            j
            for j in view.masked
            if view.certainty[j] > sure
            and len(view.moved[j]) >= history
            and all(moved < still for moved in view.moved[j][-history:])
        ]
        return [(1.0, frozenset(ready or ranked(view)[: view.quota]), frozenset())]

    return rule


def path_planning(eta: float, logarithm: Callable[[float], float] = math.log) -> Rule:
    """arXiv 2502.03540, algorithm 1; equal shares of the block are kept."""

    def rule(view: View) -> list[Outcome]:
        size = len(view.certainty)
        count = size * (view.turn + 1) / view.turns
        if view.turns <= size:
            count = sum(size // view.turns + (turn < size % view.turns) for turn in range(view.turn + 1))
        scores = {j: logarithm(c) * (1.0 if j in view.masked else eta) for j, c in view.certainty.items()}
        filled_first = sorted(scores, key=lambda j: (-scores[j], j in view.masked, j))
        keep = filled_first[: math.ceil(count)]
        return [(1.0, frozenset(j for j in keep if j in view.masked), frozenset(set(view.confidence) - set(keep)))]

    return rule


def remasking(eta: float, strategy: str, confident: bool = False) -> Rule:
    """arXiv 2503.00307, eq. 6, with α = 1 − t; ``cap`` or ``rescale``."""

    def rule(view: View) -> list[Outcome]:
        before = view.turn / view.turns
        after = (view.turn + 1) / view.turns
        most = min(1.0, (1 - after) / before) if before else 1.0
        sigma = min(eta, most) if strategy == "cap" else eta * most
        total = sum(math.exp(-c) for c in view.confidence.values())
        chances = {j: sigma * (math.exp(-c) / total if confident else 1.0) for j, c in view.confidence.items()}
        here = 0.0 if confident else sigma
        chances |= dict.fromkeys(view.masked, (after - (1 - here) * before) / (1 - before))
        found = []
        for moves in product((False, True), repeat=len(chances)):
            chance = math.prod(p if move else 1 - p for move, p in zip(moves, chances.values(), strict=True))
            moved = {j for j, move in zip(chances, moves, strict=True) if move}
            if chance > 1e-15:
                found.append((chance, frozenset(moved & set(view.masked)), frozenset(moved - set(view.masked))))
        return found

    return rule


State = tuple[tuple[int, ...], tuple[float, ...], tuple[tuple[int, ...], ...]]
"""A row, the confidence of each position when it was filled, and the rows of the steps before within the block."""


def distribution(
    at: At,
    row: Sequence[int],
    mask: int,
    blocks: Sequence[Sequence[int]],
    steps: int,
    rule: Rule,
    certainty: Certainty = confidence,
    *,
    revises: bool = False,
    greedy: bool = False,
    history: int = 0,
    confidences: bool = False,
    until: int | None = None,
) -> dict[tuple[int, ...], float]:
    """The distribution of the finished rows, by enumeration of every draw and every choice.

    Args:
        steps: of each block; a block ends when it is full, or (``revises``) when its steps are over.
        greedy: the most likely token everywhere, in place of all of them.
        history: how many steps back the rule looks.
        until: the rows after that many steps of each block, instead of the finished ones.
        confidences: whether the rule asks for those of filled positions.
    """
    states: dict[State, float] = {(tuple(row), (0.0,) * len(row), ()): 1.0}
    for inside in blocks:
        states = _merged([((ids, past, ()), p) for (ids, past, _), p in states.items()])
        turns = steps if revises else min(steps, len(inside))
        turn = 0
        done: dict[State, float] = {}
        while states:
            quota = len(inside) // turns + (turn < len(inside) % turns) if turn < turns else len(inside)
            following = [
                outcome
                for state, p in states.items()
                for outcome in _next_states(at, state, p, mask, inside, quota, turn, turns, rule, certainty, greedy)
            ]
            states = _merged(
                [
                    ((ids, past if confidences else (0.0,) * len(ids), rows[-history:] if history else ()), p)
                    for (ids, past, rows), p in following
                ]
            )
            turn += 1
            full = [
                s
                for s in states
                if (turn == (until or turns) if until or revises else all(s[0][j] != mask for j in inside))
            ]
            done = _merged([*done.items(), *((state, states.pop(state)) for state in full)])
        states = done
    return {ids: p for (ids, _, _), p in _merged([((ids, (), ()), p) for (ids, _, _), p in states.items()]).items()}


def _merged(pairs: list[tuple[State, float]]) -> dict[State, float]:
    found: dict[State, float] = {}
    for state, p in pairs:
        found[state] = found.get(state, 0.0) + p
    return found


def _next_states(
    at: At,
    state: State,
    share: float,
    mask: int,
    inside: Sequence[int],
    quota: int,
    turn: int,
    turns: int,
    rule: Rule,
    certainty: Certainty,
    greedy: bool,
) -> list[tuple[State, float]]:
    """The states after one step, and the probability of each."""
    ids, past, rows = state
    masked = [j for j in inside if ids[j] == mask]
    now = at(ids, inside)
    said = [at(before, inside) for before in rows] + [now]
    moved = {j: [divergence(b[j], a[j]) for a, b in pairwise(said)] for j in masked}
    choices = [
        [(max(range(len(now[j])), key=now[j].__getitem__), 0.0)]
        if greedy
        else [(token, lp) for token, lp in enumerate(now[j]) if lp > -math.inf]
        for j in masked
    ]
    found: dict[State, float] = {}
    for drawn in product(*choices):
        tokens = dict(zip(masked, (token for token, _ in drawn), strict=True))
        view = View(
            {j: certainty(now[j], tokens.get(j, ids[j]), n) for n, j in enumerate(inside)},
            {j: entropy(now[j]) for j in masked},
            moved,
            {j: past[j] for j in inside if j not in masked},
            quota,
            turn,
            turns,
            tuple(masked),
        )
        for chance, fill, empty in rule(view):
            new = [tokens[j] if j in fill else mask if j in empty else token for j, token in enumerate(ids)]
            sure = [
                round(math.exp(now[j][tokens[j]]), 9) if j in fill else 0.0 if j in empty else value
                for j, value in enumerate(past)
            ]
            key = (tuple(new), tuple(sure), (*rows, ids))
            found[key] = found.get(key, 0.0) + share * chance * math.exp(sum(lp for _, lp in drawn))
    return list(found.items())
