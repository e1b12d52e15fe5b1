"""The oracles of constraints on a canvas: every text, each with the probability that a step gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

from .decoding import Distribution

InForm = Callable[[Sequence[int]], bool]
"""Whether the text of a whole row is in form."""
At = Callable[[Sequence[int]], dict[int, Distribution]]
"""From a row to the distributions of its masked positions."""


def texts(ids: Sequence[int], said: dict[int, Distribution], in_form: InForm) -> dict[tuple[int, ...], float]:
    """Every row in form that fills the masked positions, and its log-probability under their product."""
    places = sorted(said)
    possible = [[token for token, lp in enumerate(said[j]) if lp > -math.inf] for j in places]
    found = {}
    for tokens in product(*possible):
        row = list(ids)
        for j, token in zip(places, tokens, strict=True):
            row[j] = token
        if in_form(row):
            found[tuple(row)] = sum(said[j][token] for j, token in zip(places, tokens, strict=True))
    return found


def shares(weights: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Probabilities from log-weights."""
    best = max(weights.values())
    total = sum(math.exp(lp - best) for lp in weights.values())
    return {row: math.exp(lp - best) / total for row, lp in weights.items()}


def marginals(chances: dict[tuple[int, ...], float], place: int) -> dict[int, float]:
    """The distribution of one position."""
    found: dict[int, float] = {}
    for row, chance in chances.items():
        found[row[place]] = found.get(row[place], 0.0) + chance
    return found


def generation(at: At, ids: Sequence[int], mask: int, in_form: InForm) -> dict[tuple[int, ...], float]:
    """The distribution of finished rows if each step draws a whole text given the form and keeps the token of its
    surest position: the one whose drawn token has the largest marginal, the first among equals."""
    states: dict[tuple[int, ...], float] = {tuple(ids): 1.0}
    done: dict[tuple[int, ...], float] = {}
    while states:
        row = max(states, key=lambda one: one.count(mask))
        share = states.pop(row)
        said = at(row)
        if not said:
            done[row] = done.get(row, 0.0) + share
            continue
        chances = shares(texts(row, said, in_form))
        sure = {j: marginals(chances, j) for j in said}
        for text, chance in chances.items():
            place = min(said, key=lambda j: (-round(sure[j][text[j]], 7), j))
            new = tuple(text[j] if j == place else token for j, token in enumerate(row))
            states[new] = states.get(new, 0.0) + share * chance
    return done


def greedy(at: At, ids: Sequence[int], mask: int, in_form: InForm) -> tuple[int, ...]:
    """The same with the most likely text at each step."""
    row = tuple(ids)
    while True:
        said = at(row)
        if not said:
            return row
        weights = texts(row, said, in_form)
        chances = shares(weights)
        best = max(weights, key=weights.__getitem__)
        place = min(said, key=lambda j: (-round(marginals(chances, j)[best[j]], 7), j))
        row = tuple(best[j] if j == place else token for j, token in enumerate(row))
