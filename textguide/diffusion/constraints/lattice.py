"""Dynamic programming over positions and states: a product of distributions, given that an automaton accepts the text.

Every position of a row has its own distribution, and the distribution of a canvas in one step of masked diffusion is
their product. Given that the text is accepted, the positions are a Markov chain over the states of the automaton, so
that marginals, exact draws and the most likely text need one pass over the positions in each direction.

Tensors have the rows of the batch last, so that a transition is made for all rows at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .token_classes import ClassAutomaton

SUM = "sum"
LOG = "log"
BEST = "best"
"""How paths are counted: the sum of their weights, scaled at every position so that the largest is 1; the logarithm of
the sum, which is slower and never underflows; the logarithm of the best."""


@dataclass(frozen=True)
class Lines:
    """The texts of some rows as positions of the canvas.

    Args:
        positions: the positions of each text in order, padded on the right, (B, J).
        is_text: False on that padding, bool (B, J).
    """

    positions: Tensor
    is_text: Tensor


def masses(automaton: ClassAutomaton, logp: Tensor, kind: str = LOG) -> Tensor:
    """The log-probability of each class, (N, V) → float64 (N, C); with ``BEST``, of its most likely token."""
    class_of = automaton.class_of.to(logp.device)
    best = logp.new_full((len(logp), automaton.classes), -math.inf)
    best.scatter_reduce_(1, class_of.expand(len(logp), -1), logp, "amax")
    if kind == BEST:
        return best.double()
    finite = torch.where(torch.isneginf(best), 0.0, best)
    # Vocabularies are large: terms are computed in the dtype of the distributions, whose precision they have anyway,
    # and only summed in float64.
    terms = torch.exp(logp - finite.index_select(1, class_of)).double()
    total = torch.zeros(best.shape, dtype=torch.float64, device=logp.device).index_add_(1, class_of, terms)
    return finite.double() + total.log()


def tokens_of(automaton: ClassAutomaton, logp: Tensor, chosen: Tensor, uniform: Tensor | None) -> Tensor:
    """A token of each chosen class, (N,).

    Args:
        logp: log-probabilities, (N, V).
        chosen: the classes, (N,).
        uniform: float64 numbers from [0, 1) that draw from the tokens of the class, (N,); None: the most likely one.
    """
    within = torch.where(automaton.class_of.to(logp.device) == chosen[:, None], logp, -math.inf)
    if uniform is None:
        return within.argmax(-1)
    sums = torch.exp(within - within.amax(-1, keepdim=True)).double().cumsum(-1)
    # A product that is rounded up to the sum itself would select an index after the last token.
    thresholds = torch.minimum(uniform * sums[:, -1], torch.nextafter(sums[:, -1], torch.zeros_like(sums[:, -1])))
    return torch.searchsorted(sums, thresholds[:, None], right=True)[:, 0]


def backward(automaton: ClassAutomaton, is_text: Tensor, weights: Tensor, kind: str) -> Tensor:
    """The weight of all paths from each state before each position to the end, (J + 1, S, B).

    Args:
        is_text: bool (B, J).
        weights: of each class at each position, (J, C, B); logarithms except for ``SUM``.
    """
    origin, token_class, target = (part.to(weights.device) for part in automaton.transitions)
    accepting = automaton.accepting.to(weights.device)[:, None].expand(-1, weights.shape[2])
    after = torch.where(accepting, _one(kind), _zero(kind)).to(weights.dtype)
    found = [after]
    for j in reversed(range(len(weights))):
        paths = _times(weights[j][token_class], after[target], kind)
        after = torch.where(is_text[:, j], _collect(paths, origin, automaton.states, kind), after)
        found.append(after)
    return torch.stack(found[::-1])


def forward(automaton: ClassAutomaton, is_text: Tensor, weights: Tensor, kind: str) -> Tensor:
    """The weight of all paths from the start to each state before each position, (J + 1, S, B)."""
    origin, token_class, target = (part.to(weights.device) for part in automaton.transitions)
    before = weights.new_full((automaton.states, weights.shape[2]), _zero(kind))
    before[automaton.start] = _one(kind)
    found = [before]
    for j in range(len(weights)):
        paths = _times(weights[j][token_class], before[origin], kind)
        before = torch.where(is_text[:, j], _collect(paths, target, automaton.states, kind), before)
        found.append(before)
    return torch.stack(found)


def around(automaton: ClassAutomaton, before: Tensor, after: Tensor, needed: Tensor, kind: str) -> Tensor:
    """The log-weight of everything but a position itself, for each class at that position, (B, J, C).

    Args:
        before: as :func:`forward` returned it.
        after: as :func:`backward` returned it.
        needed: positions to compute, bool (B, J); others are zeros.
    """
    origin, token_class, target = (part.to(before.device) for part in automaton.transitions)
    found = before.new_zeros(*needed.shape, automaton.classes)
    for j in needed.any(0).nonzero()[:, 0].tolist():
        paths = _times(before[j][origin], after[j + 1][target], kind)
        found[:, j] = logarithms(_collect(paths, token_class, automaton.classes, kind), kind).T
    return found


def walk(
    automaton: ClassAutomaton, is_text: Tensor, after: Tensor, scores: Tensor, fixed: Tensor, masked: Tensor
) -> Tensor:
    """One text per row: at each position the class with the largest score, in the state that the earlier ones lead to.

    With Gumbel noise in ``scores`` this is an exact draw (``after`` sums over all paths); without it, the most likely
    text (``after`` of the best path).

    Args:
        after: as :func:`backward` returned it, as logarithms, (J + 1, S, B).
        scores: of the classes at masked positions in row-major order, (N, C).
        fixed: the class of the token at each position, (B, J).
        masked: positions to choose for, bool (B, J).

    Returns:
        The classes at the masked positions, (N,).
    """
    table = automaton.table.to(scores.device)
    state = torch.full((len(fixed),), automaton.start, device=scores.device)
    number = (masked.flatten().cumsum(0) - 1).view(masked.shape)
    chosen = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    for j in range(masked.shape[1]):
        token_class = fixed[:, j].clone()
        rows = masked[:, j].nonzero()[:, 0]
        if len(rows):
            index = number[rows, j]
            ahead = after[j + 1][table[state[rows]], rows[:, None]]
            best = (scores[index] + ahead).argmax(-1)
            chosen[index] = best
            token_class[rows] = best
        state = torch.where(is_text[:, j], table[state, token_class], state)
    return chosen


def _one(kind: str) -> float:
    return 1.0 if kind == SUM else 0.0


def _zero(kind: str) -> float:
    return 0.0 if kind == SUM else -math.inf


def _times(one: Tensor, other: Tensor, kind: str) -> Tensor:
    return one * other if kind == SUM else one + other


def logarithms(values: Tensor, kind: str) -> Tensor:
    """Weights of any kind as logarithms."""
    return values.log() if kind == SUM else values


def _collect(paths: Tensor, into: Tensor, size: int, kind: str) -> Tensor:
    """Paths (E, B) added up by where they lead, (size, B)."""
    if kind == SUM:
        total = paths.new_zeros(size, paths.shape[1]).index_add_(0, into, paths)
        return total / total.amax(0).clamp(min=torch.finfo(total.dtype).tiny)
    index = into[:, None].expand_as(paths)
    best = paths.new_full((size, paths.shape[1]), -math.inf).scatter_reduce_(0, index, paths, "amax")
    if kind == BEST:
        return best
    finite = torch.where(torch.isneginf(best), 0.0, best)
    return finite + torch.zeros_like(best).index_add_(0, into, torch.exp(paths - finite[into])).log()
