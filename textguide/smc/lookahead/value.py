"""A value learned from rollouts under the constraint: the weight that a text will still get, by what the model says.

Zhao et al. (arXiv 2404.17546) learn twists as heads of the language model. This one is a ridge regression of the log of
the weight to go on the model's next-token log-probabilities, one a state of the automaton: these are linear in the last
hidden state, and need no access to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...constraints.automata import TokenAutomaton
from .base import Ahead, Lookahead
from .length import LengthLookahead

WIDTH = 256
"""Random projections of the log-probabilities that are read."""
LEAST = 24
"""Rollouts through a state from which on it has a value of its own."""
LOWEST = -30.0


class Features:
    """What a value reads: random projections of next-token log-probabilities.

    Args:
        size: V.
        seed: of the projections.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._projection = torch.randn(size, WIDTH, generator=generator) / size**0.5

    def __call__(self, scores: Tensor) -> Tensor:
        """(…, WIDTH) from scores (…, V)."""
        logs = scores.float().cpu().log_softmax(-1).clamp_min(LOWEST)
        return (logs - logs.mean(-1, keepdim=True)) @ self._projection


class ValueLookahead(Lookahead):
    """``log ψ(text, token) = bias[state, token] + weight[state] · features``, and what cannot end in time is ruled out.

    Experimental: the paper trains by a contrastive loss on the model's own layers.

    Args:
        automaton: of the constraint.
        features: what is read.
        states: the automaton's state in front of each token of the rollouts, (n,).
        read: features there, (n, WIDTH).
        tokens: the tokens, (n,).
        values: log of what each token's text was multiplied by from there on, (n,).
        penalty: of the ridge, of features in units of their standard deviation.
    """

    def __init__(
        self,
        automaton: TokenAutomaton,
        features: Features,
        states: Tensor,
        read: Tensor,
        tokens: Tensor,
        values: Tensor,
        penalty: float = 30.0,
    ) -> None:
        self.automaton, self.features = automaton, features
        self._length = LengthLookahead(automaton)
        self._centre, self._scale = read.mean(0), read.std(0).clamp_min(1e-6)
        self._heads: dict[int, tuple[Tensor, float, dict[int, float]]] = {}
        for state in states.unique().tolist():
            here = states == state
            if int(here.sum()) >= LEAST:
                self._heads[state] = self._fit(read[here], tokens[here], values[here], penalty)

    def _fit(
        self, read: Tensor, tokens: Tensor, values: Tensor, penalty: float
    ) -> tuple[Tensor, float, dict[int, float]]:
        known = tokens.unique()
        each = (tokens[:, None] == known).double()
        mean = values.double().mean()
        inputs = torch.cat([((read - self._centre) / self._scale).double(), each], 1)
        ridge = torch.full((inputs.shape[1],), penalty, dtype=torch.float64)
        ridge[-len(known) :] = 2.0  # a token that was seen twice has half of what it showed
        found = torch.linalg.solve(inputs.T @ inputs + ridge.diag(), inputs.T @ (values.double() - mean))
        biases = dict(zip(known.tolist(), found[-len(known) :].tolist(), strict=True))
        return found[: -len(known)].float(), float(mean), biases

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return _Valued(self, self.automaton.begin)

    def values(self, state: int, left: int, scores: Tensor | None) -> Tensor | None:
        """Log ψ of the text followed by each token, (V,)."""
        length = self._length.vector(state, left)
        if state not in self._heads or scores is None:
            return length
        weight, mean, biases = self._heads[state]
        read = (self.features(scores) - self._centre) / self._scale
        found = torch.full((self.automaton.vocabulary.size,), mean + float(read @ weight))
        for token, bias in biases.items():
            found[token] += bias
        ends = sorted(self.automaton.vocabulary.ends)
        found = found if length is None else torch.where(length > -1e30, found, length)
        found[ends] = 0.0
        return found


class _Valued(Ahead):
    def __init__(self, lookahead: ValueLookahead, state: int) -> None:
        self._lookahead, self._state = lookahead, state

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        return self._lookahead.values(self._state, left, scores)

    def after(self, token: int) -> Ahead:
        return _Valued(self._lookahead, self._lookahead.automaton.step(self._state, token))
