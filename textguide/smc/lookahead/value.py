"""Lookahead by a value that is learned from rollouts: the probability that a text becomes a member, from the model's
next-token distribution after it.

Zhao et al. (arXiv 2404.17546) learn twists as heads of the language model. This is a ridge regression of the log of
that probability on the model's next-token log-probabilities, which are linear in the last hidden state and need no
access to it. There is one head for all positions; if the constraint has an automaton, its states have their own heads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...constraints import Constraint, Vocabulary
from ...constraints.automata import TokenAutomaton
from . import stored
from .base import Ahead, Lookahead
from .length import LengthLookahead

KIND = "value"
WIDTH = 256
"""Number of random projections of the log-probabilities."""
LEAST = 24
"""Number of examples from which on a state of the automaton has its own head."""
BIASES = 512
"""Number of tokens of a head that have a bias, the most frequent ones."""
ANYWHERE = -1
"""The number of the head for all states."""
LOWEST = -30.0
"""Smallest log-probability in the features."""
FLOOR = -40.0
"""Smallest log ψ in training: an estimate must not rule anything out."""
DEAD = 2.0
"""The value of a text that did not become a member, in nats below the values of 95% of the members."""


@dataclass(frozen=True, eq=False)
class Examples:
    """The outcome of rollouts, with one row per token that was written and does not end its text.

    Args:
        states: the automaton's states before the token, (n,); :data:`ANYWHERE` if there is no automaton.
        read: the features there, (n, WIDTH + 1).
        tokens: the tokens, (n,).
        values: log of an estimate, from the weights of the text, of the probability that the text up to the token
            becomes a member, (n,); −inf if it did not become one.
    """

    states: Tensor
    read: Tensor
    tokens: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """``log ψ = clamp(mean + weight · features + bias[token], low, high)``, with standardised features."""

    weight: Tensor
    mean: float
    low: float
    high: float
    tokens: Tensor
    biases: Tensor


@dataclass(frozen=True, eq=False)
class Value:
    """The heads of one constraint and vocabulary.

    Args:
        heads: the heads by state; :data:`ANYWHERE` is one of the states.
        centre: the mean of the features, (WIDTH + 1,).
        scale: their standard deviation.
        about: the constraint, the vocabulary, and facts about the training.
    """

    heads: dict[int, Head]
    centre: Tensor
    scale: Tensor
    about: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file."""
        heads = list(self.heads.values())
        tensors = {
            "states": torch.tensor(list(self.heads)),
            "weights": torch.stack([head.weight for head in heads]),
            "ranges": torch.tensor([(head.mean, head.low, head.high) for head in heads], dtype=torch.float64),
            "sizes": torch.tensor([len(head.tokens) for head in heads]),
            "tokens": torch.cat([head.tokens for head in heads]),
            "biases": torch.cat([head.biases for head in heads]),
            "centre": self.centre,
            "scale": self.scale,
        }
        stored.write(path, KIND, tensors, self.about)

    @classmethod
    def of(cls, file: stored.Stored) -> Value:
        """The value that :meth:`save` wrote."""
        tensors = file.tensors
        sizes = tensors["sizes"].tolist()
        ranges = tensors["ranges"].tolist()
        tokens = tensors["tokens"].split(sizes)
        biases = tensors["biases"].split(sizes)
        heads = {}
        for at, state in enumerate(tensors["states"].tolist()):
            mean, low, high = ranges[at]
            heads[state] = Head(tensors["weights"][at], mean, low, high, tokens[at], biases[at])
        return cls(heads, tensors["centre"], tensors["scale"], file.about)


def described(constraint: Constraint) -> str:
    """A constraint in one line, the same in every process; functions are represented by their names."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(constraint.to_dict(), sort_keys=True, default=repr))


@lru_cache(maxsize=2)
def _projection(size: int) -> Tensor:
    """Random signs over √V, (V, WIDTH), the same on every machine."""
    count = size * WIDTH // 64
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    bits = np.unpackbits(mixed.astype("<u8").view(np.uint8)).reshape(size, WIDTH)
    return torch.from_numpy(bits).float().mul_(2).sub_(1).div_(size**0.5)


def _centred(scores: Tensor) -> Tensor:
    logs = scores.float().cpu().log_softmax(-1).clamp_min(LOWEST)
    return logs - logs.mean(-1, keepdim=True)


def features(scores: Tensor, left: int) -> Tensor:
    """The input of a head, (…, WIDTH + 1).

    Args:
        scores: those of the next token, (…, V).
        left: number of tokens that may be written after that one.
    """
    projected = _centred(scores) @ _projection(scores.shape[-1])
    return torch.cat([projected, torch.full((*projected.shape[:-1], 1), float(np.log1p(left)))], -1)


def fit(
    examples: Examples,
    constraint: Constraint,
    vocabulary: Vocabulary,
    about: dict[str, Any] | None = None,
    penalty: float = 30.0,
) -> Value:
    """Fit a value to the outcome of rollouts.

    Experimental: the paper trains with a contrastive loss on the model's own layers. Texts that did not become members
    have a low value, so that the heads predict failures too.

    Args:
        examples: the outcome; at least one text must have become a member.
        constraint: the constraint of the rollouts.
        vocabulary: the model's vocabulary.
        about: further facts about the training, for the file.
        penalty: the ridge penalty, for standardised features.

    Raises:
        ValueError: no text became a member.
    """
    alive = examples.values[examples.values.isfinite()]
    if not len(alive):
        raise ValueError(
            "no text of the rollouts became a member, so there is nothing to learn; raise --max-new-tokens or "
            "--rollouts, or pass prompts that such texts follow"
        )
    values = torch.where(examples.values.isfinite(), examples.values, alive.quantile(0.05) - DEAD)
    values = values.clamp(FLOOR, 0.0)
    centre = examples.read.mean(0)
    scale = examples.read.std(0, correction=0)
    scale = torch.where(scale > 1e-4 * scale.max(), scale, 1.0)  # a constant feature has no information
    read = (examples.read - centre) / scale
    heads = {ANYWHERE: _head(read, examples.tokens, values, penalty)}
    states, counts = examples.states.unique(return_counts=True)
    for state, count in zip(states.tolist(), counts.tolist(), strict=True):
        rows = examples.states == state
        if state != ANYWHERE and count >= LEAST:
            heads[state] = _head(read[rows], examples.tokens[rows], values[rows], penalty)
    identity = {"constraint": described(constraint), "vocabulary": vocabulary.digest}
    return Value(heads, centre, scale, {**(about or {}), **identity})


def _head(read: Tensor, tokens: Tensor, values: Tensor, penalty: float) -> Head:
    """Fit one head by ridge regression on the features and one indicator per frequent token."""
    known, counts = tokens.unique(return_counts=True)
    known = known[counts.topk(min(BIASES, len(known))).indices].sort().values
    mean = values.double().mean()
    size = read.shape[1] + len(known)
    products = torch.zeros(size, size, dtype=torch.float64)
    targets = torch.zeros(size, dtype=torch.float64)
    for part, token, value in zip(read.split(4096), tokens.split(4096), values.split(4096), strict=True):
        inputs = torch.cat([part.double(), (token[:, None] == known).double()], 1)
        products += inputs.T @ inputs
        targets += inputs.T @ (value.double() - mean)
    ridge = torch.full((size,), penalty, dtype=torch.float64)
    ridge[read.shape[1] :] = 2.0  # the bias of a token with two examples is half of their mean
    solution = torch.linalg.solve(products + ridge.diag(), targets).float()
    weight, biases = solution.split([read.shape[1], len(known)])
    return Head(weight, float(mean), float(values.min()), float(values.max()), known, biases)


class ValueLookahead(Lookahead):
    """ψ by the heads of a :class:`Value`; an automaton rules out texts that cannot end within the limit.

    Args:
        value: the value for this constraint and vocabulary.
        vocabulary: the model's vocabulary.
        automaton: that of the constraint, if it has one.
    """

    def __init__(self, value: Value, vocabulary: Vocabulary, automaton: TokenAutomaton | None = None) -> None:
        self.value = value
        self.vocabulary = vocabulary
        self.automaton = automaton
        self._length = None if automaton is None else LengthLookahead(automaton)
        self._ends = sorted(vocabulary.ends)
        self._weights = lru_cache(maxsize=64)(self._fold)

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return _StateAhead(self, ANYWHERE if self.automaton is None else self.automaton.begin)

    def _fold(self, state: int) -> tuple[Tensor, float, float]:
        """A head as a function of log-probabilities, which is possible because its projection is linear.

        Returns:
            The weight of each log-probability, (V,), the constant, and the weight of the number of tokens left.
        """
        head = self.value.heads[state]
        weight = head.weight / self.value.scale
        constant = head.mean - float(weight @ self.value.centre)
        return _projection(self.vocabulary.size) @ weight[:WIDTH], constant, float(weight[WIDTH])

    def potentials(self, state: int, left: int, scores: Tensor | None) -> Tensor | None:
        """Log ψ of the text followed by each token, (V,)."""
        length = None if self._length is None else self._length.vector(state, left)
        if scores is None:
            return length
        if state not in self.value.heads:
            state = ANYWHERE
        head = self.value.heads[state]
        weights, constant, slope = self._weights(state)
        common = constant + float(_centred(scores) @ weights) + slope * float(np.log1p(left))
        log_psi = torch.full((self.vocabulary.size,), common)
        log_psi[head.tokens] += head.biases
        log_psi.clamp_(head.low, head.high)
        if length is not None:
            log_psi = torch.where(length > -torch.inf, log_psi, length)
        log_psi[self._ends] = 0.0
        return log_psi


class _StateAhead(Ahead):
    """The lookahead in one state of the automaton."""

    def __init__(self, lookahead: ValueLookahead, state: int) -> None:
        self._lookahead = lookahead
        self._state = state

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        return self._lookahead.potentials(self._state, left, scores)

    def after(self, token: int) -> Ahead:
        automaton = self._lookahead.automaton
        return self if automaton is None else _StateAhead(self._lookahead, automaton.step(self._state, token))
