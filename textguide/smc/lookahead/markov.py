"""A hidden Markov model of the model's texts, multiplied with the automaton of the constraint.

Ctrl-G (arXiv 2406.13892) and LTLA (2511.16054): ``ψ(text) = P(the text becomes a member in time | its tokens)`` under a
hidden Markov model that was distilled from samples of the language model. That probability is computed backwards in
time over pairs of a hidden state and a state of the automaton.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...constraints.automata import TokenAutomaton
from ...constraints.automata.expressions import TooLargeError
from ...support.array_cache import cached
from .base import Ahead, Lookahead
from .hidden_markov import HiddenMarkov

EXACT = 256
"""Likeliest tokens whose own emission counts; the others are weighed by the state that they lead to alone."""
LARGEST = 4_000_000
"""Moves by tokens up to which emissions are summed."""
PLACES = 32
"""States of the automaton, each with the tokens left, of which it is kept what particles share."""
LEAST = -1e4
"""Log of the least ψ of what may still end in time: nothing is ruled out by a guess."""


class MarkovLookahead(Lookahead):
    """See the module.

    Args:
        automaton: of the constraint, or of one that all its members satisfy.
        model: the hidden Markov model, of the same vocabulary.

    Raises:
        ValueError: the vocabularies differ in size.
        TooLargeError: the automaton has too many moves.
    """

    def __init__(self, automaton: TokenAutomaton, model: HiddenMarkov) -> None:
        size = automaton.vocabulary.size
        if model.emission.shape[1] != size:
            raise ValueError(
                f"lookahead: its model has {model.emission.shape[1]} tokens, the language model {size}; "
                "train one with 'textguide lookahead train'"
            )
        if len(automaton.moves.tokens) > LARGEST:
            raise TooLargeError(f"it has {len(automaton.moves.tokens)} moves by tokens, above {LARGEST}")
        self.automaton, self.model = automaton, model
        # Of n tokens left: values up to a factor for each state, and the log of these factors.
        self._values: list[tuple[Tensor, Tensor]] = []
        self._place = lru_cache(maxsize=PLACES)(self._placed)

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return _Belief(self, self.automaton.begin, self.model.read(prompt))

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Origins, targets and summed emissions (E, H) of the pairs of states between which tokens move; where that
        took long, later processes find them on disk."""
        automaton = self.automaton
        key = {"automaton": automaton.bytes.digest, "vocabulary": automaton.vocabulary.digest}
        found = cached("emissions", {**key, "model": self.model.digest}, self._sum)
        size, pairs = automaton.size, torch.from_numpy(found["pairs"])
        return pairs // size, pairs % size, torch.from_numpy(found["mass"])

    def _sum(self) -> dict[str, NDArray[Any]]:
        moves, size = self.automaton.moves, self.automaton.size
        origins = np.repeat(np.arange(size), np.diff(moves.offsets))
        pairs, inverse = np.unique(origins * size + moves.targets, return_inverse=True)
        mass = torch.zeros(len(pairs), self.model.states)
        for at in range(0, len(inverse), 1 << 16):  # in parts, which fit the cache
            index = torch.from_numpy(inverse[at : at + (1 << 16)])
            tokens = torch.from_numpy(moves.tokens[at : at + (1 << 16)]).long()
            mass.index_add_(0, index, self.model.columns[tokens])
        return {"pairs": pairs, "mass": mass.numpy()}

    @cached_property
    def _ends(self) -> Tensor:
        """Emission of an end token, (H,)."""
        return self.model.columns[sorted(self.automaton.vocabulary.ends)].sum(0)

    def values(self, left: int) -> tuple[Tensor, Tensor]:
        """For each state of the automaton and each state that emits the next token, the probability of becoming a
        member within ``left`` tokens: ``(S, H)`` up to the factors whose logs come beside it, (S,)."""
        while len(self._values) <= left:
            self._values.append(self._earlier() if self._values else self._last())
        return self._values[left]

    def _last(self) -> tuple[Tensor, Tensor]:
        """No token is left: a text is a member where nothing has to end it."""
        done = torch.from_numpy(self.automaton.accepting).float() * (not self.automaton.vocabulary.ends)
        return done[:, None].expand(-1, self.model.states).contiguous(), torch.where(done > 0, 0.0, -math.inf)

    def _earlier(self) -> tuple[Tensor, Tensor]:
        """One more token: it ends the text, or moves."""
        values, logs = self._values[-1]
        origins, targets, mass = self._edges
        accepting = torch.from_numpy(self.automaton.accepting).float()
        # Sums of numbers of unlike size: relative to the largest of each state.
        top = torch.where(accepting > 0, 0.0, -math.inf)
        top = top.scatter_reduce(0, origins, logs[targets], "amax").clamp_min(-1e30)
        factor = (logs[targets] - top[origins]).exp()
        found = (accepting * (-top).exp().clamp_max(1e30))[:, None] * self._ends
        behind = values @ self.model.transition.T  # by the state that emits this token
        found.index_add_(0, origins, mass * behind[targets] * factor[:, None])
        largest = found.amax(-1)
        logs = torch.where(largest > 0, top + largest.log(), -math.inf)
        return found / largest.clamp_min(1e-38)[:, None], logs

    def potentials(self, state: int, belief: Tensor, left: int, scores: Tensor | None) -> Tensor:
        """Log ψ of the text followed by each token, (V,)."""
        here, columns = self._place(state, left), self.model.columns
        result = torch.full((self.automaton.vocabulary.size,), -math.inf)
        result[sorted(self.automaton.vocabulary.ends)] = 0.0
        moves, index = here.moves, here.index
        if not len(moves):
            return result
        found = ((here.behind @ belief).clamp_min(1e-38).log() + here.logs)[index]
        chosen = torch.arange(len(moves))
        if scores is not None and len(moves) > EXACT:
            chosen = scores[moves.to(scores.device)].topk(EXACT).indices.cpu()
        emitted = columns[moves[chosen]] * belief
        mean = (emitted * here.behind[index[chosen]]).sum(-1) / emitted.sum(-1).clamp_min(1e-38)
        found[chosen] = mean.clamp_min(1e-38).log() + here.logs[index[chosen]]
        result[moves] = torch.where(here.late, -math.inf, found.clamp(LEAST, 0.0))
        return result

    def _placed(self, state: int, left: int) -> _Place:
        moves, targets = (torch.from_numpy(part).long() for part in self.automaton.moves.of(state))
        values, logs = self.values(left)
        reached, index = targets.unique(return_inverse=True)
        needed = torch.from_numpy(self.automaton.distances)[targets] + int(bool(self.automaton.vocabulary.ends))
        return _Place(moves, index, values[reached] @ self.model.transition.T, logs[reached], needed > left)


@dataclass(frozen=True, eq=False)
class _Place:
    """What particles in one state of the automaton share, where as many tokens are left.

    Args:
        moves: tokens that may come, (M,).
        index: which of the states that are reached each leads to, (M,).
        behind: values behind a token, by the state that emits it, (U, H).
        logs: their factors, (U,).
        late: tokens behind which no text ends in time, bool (M,).
    """

    moves: Tensor
    index: Tensor
    behind: Tensor
    logs: Tensor
    late: Tensor


class _Belief(Ahead):
    """The automaton's state, and of each hidden state the probability that it emits the next token."""

    def __init__(self, lookahead: MarkovLookahead, state: int, belief: Tensor) -> None:
        self._lookahead, self._state, self._belief = lookahead, state, belief

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        if self._state == self._lookahead.automaton.dead:
            return None
        return self._lookahead.potentials(self._state, self._belief, left, scores)

    def after(self, token: int) -> Ahead:
        lookahead = self._lookahead
        belief = lookahead.model.next(self._belief, token)
        return _Belief(lookahead, lookahead.automaton.step(self._state, token), belief)
