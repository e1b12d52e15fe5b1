"""Dynamic programming over positions and states: a product of distributions, given that an automaton takes the text.

Every position of a row has a distribution of its own; what a step of masked diffusion says of a canvas is their
product. Given that the text is taken, the positions are a Markov chain over the states of the automaton, so that its
marginals, exact draws and the most likely text take one pass over the positions in each direction.

Tensors have the rows of the batch last, so that a move is made for all of them at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .token_classes import Letters

SUM, LOG, BEST = "sum", "log", "best"
"""How ways are counted: the sum of their weights, scaled at every position so that the largest is 1; the logarithm of
the sum, which is slower and never too small; the logarithm of the best."""


@dataclass(frozen=True)
class Lines:
    """The positions of some rows from the first to the last that matter, padded on the right.

    Args:
        places: which position of the canvas each is, (B, J).
        there: bool (B, J), False on padding.
    """

    places: Tensor
    there: Tensor


def masses(letters: Letters, logp: Tensor, kind: str = LOG) -> Tensor:
    """The log-probability of each letter, (N, V) → float64 (N, C); as ``BEST``, of its most likely token."""
    of = letters.of.to(logp.device)
    best = logp.new_full((len(logp), letters.count), -math.inf)
    best.scatter_reduce_(1, of.expand(len(logp), -1), logp, "amax")
    if kind == BEST:
        return best.double()
    kept = torch.where(torch.isneginf(best), 0.0, best)
    # Vocabularies are large: each term in the dtype of the distributions, which says no more, and the sum in float64.
    terms = torch.exp(logp - kept.index_select(1, of)).double()
    total = torch.zeros(best.shape, dtype=torch.float64, device=logp.device).index_add_(1, of, terms)
    return kept.double() + total.log()


def tokens_of(letters: Letters, logp: Tensor, chosen: Tensor, uniform: Tensor | None) -> Tensor:
    """A token of each letter, (N,).

    Args:
        logp: (N, V).
        chosen: the letters, (N,).
        uniform: float64 numbers from [0, 1) that draw from the tokens of the letter, (N,); None: the likeliest of them.
    """
    within = torch.where(letters.of.to(logp.device) == chosen[:, None], logp, -math.inf)
    if uniform is None:
        return within.argmax(-1)
    sums = torch.exp(within - within.amax(-1, keepdim=True)).double().cumsum(-1)
    # A product that is rounded up to the sum itself would be behind the last token.
    places = torch.minimum(uniform * sums[:, -1], torch.nextafter(sums[:, -1], torch.zeros_like(sums[:, -1])))
    return torch.searchsorted(sums, places[:, None], right=True)[:, 0]


def backward(letters: Letters, there: Tensor, weights: Tensor, kind: str) -> Tensor:
    """The weight of all ways from each state to the end, in front of each position, (J + 1, S, B).

    Args:
        there: bool (B, J).
        weights: of each letter at each position, (J, C, B); logarithms but for ``SUM``.
    """
    origin, letter, target = (part.to(weights.device) for part in letters.moves)
    accepting = letters.accepting.to(weights.device)[:, None].expand(-1, weights.shape[2])
    behind = torch.where(accepting, _one(kind), _none(kind)).to(weights.dtype)
    found = [behind]
    for j in reversed(range(len(weights))):
        ways = _times(weights[j][letter], behind[target], kind)
        behind = torch.where(there[:, j], _collect(ways, origin, letters.states, kind), behind)
        found.append(behind)
    return torch.stack(found[::-1])


def forward(letters: Letters, there: Tensor, weights: Tensor, kind: str) -> Tensor:
    """The weight of all ways from the start to each state, in front of each position, (J + 1, S, B)."""
    origin, letter, target = (part.to(weights.device) for part in letters.moves)
    before = weights.new_full((letters.states, weights.shape[2]), _none(kind))
    before[letters.start] = _one(kind)
    found = [before]
    for j in range(len(weights)):
        ways = _times(weights[j][letter], before[origin], kind)
        before = torch.where(there[:, j], _collect(ways, target, letters.states, kind), before)
        found.append(before)
    return torch.stack(found)


def around(letters: Letters, before: Tensor, behind: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """The log-weight of everything but a position itself, by the letter that stands there, (B, J, C).

    Args:
        before: as :func:`forward` gave it.
        behind: as :func:`backward` gave it.
        wanted: positions that are asked for, bool (B, J); others are zeros.
    """
    origin, letter, target = (part.to(before.device) for part in letters.moves)
    found = before.new_zeros(*wanted.shape, letters.count)
    for j in wanted.any(0).nonzero()[:, 0].tolist():
        ways = _times(before[j][origin], behind[j + 1][target], kind)
        found[:, j] = logarithms(_collect(ways, letter, letters.count, kind), kind).T
    return found


def walk(letters: Letters, there: Tensor, behind: Tensor, scores: Tensor, fixed: Tensor, open_: Tensor) -> Tensor:
    """One text a row: at each position the letter with the largest score, in the state that those before lead to.

    With Gumbel noise in ``scores`` this is an exact draw (``behind`` sums over all ways); without it, the most likely
    text (``behind`` of the best way).

    Args:
        behind: as logarithms, (J + 1, S, B).
        scores: of the letters at open positions in row-major order, (N, C).
        fixed: the letter that stands at each position, (B, J).
        open_: positions to choose for, bool (B, J).

    Returns:
        the letters of the open positions, (N,).
    """
    table = letters.table.to(scores.device)
    state = torch.full((len(fixed),), letters.start, device=scores.device)
    number = (open_.flatten().cumsum(0) - 1).view(open_.shape)
    chosen = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    for j in range(open_.shape[1]):
        letter = fixed[:, j].clone()
        rows = open_[:, j].nonzero()[:, 0]
        if len(rows):
            index = number[rows, j]
            ahead = behind[j + 1][table[state[rows]], rows[:, None]]
            chosen[index] = letter[rows] = (scores[index] + ahead).argmax(-1)
        state = torch.where(there[:, j], table[state, letter], state)
    return chosen


def _one(kind: str) -> float:
    return 1.0 if kind == SUM else 0.0


def _none(kind: str) -> float:
    return 0.0 if kind == SUM else -math.inf


def _times(one: Tensor, other: Tensor, kind: str) -> Tensor:
    return one * other if kind == SUM else one + other


def logarithms(values: Tensor, kind: str) -> Tensor:
    """Weights of any kind as logarithms."""
    return values.log() if kind == SUM else values


def _collect(ways: Tensor, into: Tensor, size: int, kind: str) -> Tensor:
    """Ways (E, B) by where they lead, (size, B)."""
    if kind == SUM:
        total = ways.new_zeros(size, ways.shape[1]).index_add_(0, into, ways)
        return total / total.amax(0).clamp(min=torch.finfo(total.dtype).tiny)
    index = into[:, None].expand_as(ways)
    best = ways.new_full((size, ways.shape[1]), -math.inf).scatter_reduce_(0, index, ways, "amax")
    if kind == BEST:
        return best
    kept = torch.where(torch.isneginf(best), 0.0, best)
    return kept + torch.zeros_like(best).index_add_(0, into, torch.exp(ways - kept[into])).log()
