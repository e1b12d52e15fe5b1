"""A value learned from rollouts under the constraint: the probability that a text becomes a member, by what the model
says behind it.

Zhao et al. (arXiv 2404.17546) learn twists as heads of the language model. This one is a ridge regression of the log of
the probability to go on the model's next-token log-probabilities: these are linear in the last hidden state, and need
no access to it. One head serves every place; where the constraint has an automaton, its states have heads of their own.
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
"""Random projections of the log-probabilities that are read."""
LEAST = 24
"""Examples at a state of the automaton from which on it has a head of its own."""
BIASES = 512
"""Tokens of a head that have a bias, the most frequent ones."""
ANYWHERE = -1
"""The place of the head of all states."""
LOWEST, FLOOR = -30.0, -40.0
"""The least log-probability that is read, and the least log ψ: nothing is ruled out by a guess."""
DEAD = 2.0
"""Nats below the values of nearly all members at which a text counts that became none."""


@dataclass(frozen=True, eq=False)
class Examples:
    """What rollouts came to: one row a token that was written and does not end its text.

    Args:
        states: of the automaton, in front of the token, (n,); :data:`ANYWHERE` where there is none.
        read: features there, (n, WIDTH + 1).
        tokens: the tokens, (n,).
        values: log of an estimate, with the text's own weights, of the probability that the text up to the token
            becomes a member, (n,); −inf where it became none.
    """

    states: Tensor
    read: Tensor
    tokens: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """``log ψ = clamp(mean + weight · features + bias[token], low, high)``, features in units of their deviation."""

    weight: Tensor
    mean: float
    low: float
    high: float
    tokens: Tensor
    biases: Tensor


@dataclass(frozen=True, eq=False)
class Value:
    """What a file holds.

    Args:
        heads: by state, :data:`ANYWHERE` among them.
        centre: of the features, (WIDTH + 1,).
        scale: their standard deviation.
        about: the constraint, the vocabulary, and what else is told of the training.
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
        """What :meth:`save` wrote."""
        found = file.tensors
        sizes = found["sizes"].tolist()
        numbers, tokens, biases = found["ranges"].tolist(), found["tokens"].split(sizes), found["biases"].split(sizes)
        heads = {
            state: Head(found["weights"][at], mean, low, high, tokens[at], biases[at])
            for at, (state, (mean, low, high)) in enumerate(zip(found["states"].tolist(), numbers, strict=True))
        }
        return cls(heads, found["centre"], found["scale"], file.about)


def described(constraint: Constraint) -> str:
    """A constraint in one line, equal in every process; of functions it holds the names."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(constraint.to_dict(), sort_keys=True, default=repr))


@lru_cache(maxsize=2)
def _projection(size: int) -> Tensor:
    """Random signs over √V, (V, WIDTH), the same everywhere and always."""
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
    """What a head reads, (…, WIDTH + 1).

    Args:
        scores: of the next token (…, V).
        left: tokens that may be written behind that one.
    """
    read = _centred(scores) @ _projection(scores.shape[-1])
    return torch.cat([read, torch.full((*read.shape[:-1], 1), float(np.log1p(left)))], -1)


def fit(
    examples: Examples,
    constraint: Constraint,
    vocabulary: Vocabulary,
    about: dict[str, Any] | None = None,
    penalty: float = 30.0,
) -> Value:
    """A value of what rollouts came to.

    Experimental: the paper trains by a contrastive loss on the model's own layers. Texts that became no member count
    with a low value, so that the heads foresee failures too.

    Args:
        examples: one or more of which became a member.
        constraint: under which they were written.
        vocabulary: of the model.
        about: what else the file tells of the training.
        penalty: of the ridge, of features in units of their standard deviation.

    Raises:
        ValueError: no text became a member.
    """
    alive = examples.values[examples.values.isfinite()]
    if not len(alive):
        raise ValueError(
            "no text of the rollouts became a member, so that there is nothing to learn; raise --max-new-tokens or "
            "--rollouts, or give prompts that the form follows"
        )
    values = torch.where(examples.values.isfinite(), examples.values, alive.quantile(0.05) - DEAD)
    values = values.clamp(FLOOR, 0.0)
    centre, scale = examples.read.mean(0), examples.read.std(0, correction=0)
    scale = torch.where(scale > 1e-4 * scale.max(), scale, 1.0)  # what never changes says nothing
    read = (examples.read - centre) / scale
    heads = {ANYWHERE: _head(read, examples.tokens, values, penalty)}
    for state, number in zip(*(part.tolist() for part in examples.states.unique(return_counts=True)), strict=True):
        here = examples.states == state
        if state != ANYWHERE and number >= LEAST:
            heads[state] = _head(read[here], examples.tokens[here], values[here], penalty)
    belongs = {"constraint": described(constraint), "vocabulary": vocabulary.digest}
    return Value(heads, centre, scale, {**(about or {}), **belongs})


def _head(read: Tensor, tokens: Tensor, values: Tensor, penalty: float) -> Head:
    known, counts = tokens.unique(return_counts=True)
    known = known[counts.topk(min(BIASES, len(known))).indices].sort().values
    mean = values.double().mean()
    size = read.shape[1] + len(known)
    products, targets = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for part, token, value in zip(read.split(4096), tokens.split(4096), values.split(4096), strict=True):
        inputs = torch.cat([part.double(), (token[:, None] == known).double()], 1)
        products += inputs.T @ inputs
        targets += inputs.T @ (value.double() - mean)
    ridge = torch.full((size,), penalty, dtype=torch.float64)
    ridge[read.shape[1] :] = 2.0  # a token that was seen twice has half of what it showed
    found = torch.linalg.solve(products + ridge.diag(), targets).float()
    weight, biases = found.split([read.shape[1], len(known)])
    return Head(weight, float(mean), float(values.min()), float(values.max()), known, biases)


class ValueLookahead(Lookahead):
    """ψ by the heads of a :class:`Value`; what cannot end in time is ruled out, where an automaton knows it.

    Args:
        value: of this constraint and vocabulary.
        vocabulary: of the model.
        automaton: of the constraint, if it has one.
    """

    def __init__(self, value: Value, vocabulary: Vocabulary, automaton: TokenAutomaton | None = None) -> None:
        self.value, self.vocabulary, self.automaton = value, vocabulary, automaton
        self._length = None if automaton is None else LengthLookahead(automaton)
        self._ends = sorted(vocabulary.ends)
        self._weights = lru_cache(maxsize=64)(self._folded)

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return _Valued(self, ANYWHERE if self.automaton is None else self.automaton.begin)

    def _folded(self, place: int) -> tuple[Tensor, float, float]:
        """A head on log-probabilities, since projecting and centring are linear: the weight of each, (V,), what is
        added, and the weight of the tokens left."""
        head, value = self.value.heads[place], self.value
        weight = head.weight / value.scale
        constant = head.mean - float(weight @ value.centre)
        return _projection(self.vocabulary.size) @ weight[:WIDTH], constant, float(weight[WIDTH])

    def potentials(self, state: int, left: int, scores: Tensor | None) -> Tensor | None:
        """Log ψ of the text followed by each token, (V,)."""
        length = None if self._length is None else self._length.vector(state, left)
        if scores is None:
            return length
        place = state if state in self.value.heads else ANYWHERE
        head, (weights, constant, slope) = self.value.heads[place], self._weights(place)
        common = constant + float(_centred(scores) @ weights) + slope * float(np.log1p(left))
        found = torch.full((self.vocabulary.size,), common)
        found[head.tokens] += head.biases
        found.clamp_(head.low, head.high)
        found = found if length is None else torch.where(length > -torch.inf, found, length)
        found[self._ends] = 0.0
        return found


class _Valued(Ahead):
    def __init__(self, lookahead: ValueLookahead, state: int) -> None:
        self._lookahead, self._state = lookahead, state

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        return self._lookahead.potentials(self._state, left, scores)

    def after(self, token: int) -> Ahead:
        automaton = self._lookahead.automaton
        return self if automaton is None else _Valued(self._lookahead, automaton.step(self._state, token))
