"""Lookahead by a hidden Markov model of the model's texts, combined with the automaton of the constraint.

Ctrl-G (arXiv 2406.13892) and LTLA (2511.16054): ``ψ(text) = P(the text becomes a member within the limit | its
tokens)`` under a hidden Markov model that was distilled from samples of the language model. The probability is computed
backwards in time over pairs of a hidden state and a state of the automaton.
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
"""Number of likeliest tokens whose own emission is used; for the others only the state that they lead to is."""
LARGEST = 4_000_000
"""Largest number of moves by tokens for which emissions are summed."""
MAX_SHARED = 32
"""Number of pairs of a state and a number of tokens left for which the part that particles share is cached."""
LEAST = -1e4
"""Smallest log ψ of texts that can still end within the limit: an estimate must not rule them out."""


class MarkovLookahead(Lookahead):
    """The lookahead of the module.

    Args:
        automaton: that of the constraint, or of a weaker one.
        model: the hidden Markov model, for the same vocabulary.

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
        self.automaton = automaton
        self.model = model
        # For n tokens left: values up to a factor per state, and the logs of these factors.
        self._values: list[tuple[Tensor, Tensor]] = []
        self._shared = lru_cache(maxsize=MAX_SHARED)(self._compute_shared)

    def begin(self, prompt: Sequence[int]) -> Ahead:
        return _Belief(self, self.automaton.begin, self.model.read(prompt))

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Origins, targets and summed emissions (E, H) of the pairs of states between which tokens move.

        If the computation took long, the result is stored on disk for later processes.
        """
        automaton = self.automaton
        key = {"automaton": automaton.bytes.digest, "vocabulary": automaton.vocabulary.digest}
        arrays = cached("emissions", {**key, "model": self.model.digest}, self._sum_emissions)
        pairs = torch.from_numpy(arrays["pairs"])
        return pairs // automaton.size, pairs % automaton.size, torch.from_numpy(arrays["mass"])

    def _sum_emissions(self) -> dict[str, NDArray[Any]]:
        moves = self.automaton.moves
        size = self.automaton.size
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
        """The probability that each state emits an end token, (H,)."""
        return self.model.columns[sorted(self.automaton.vocabulary.ends)].sum(0)

    def values(self, left: int) -> tuple[Tensor, Tensor]:
        """The probability of becoming a member within ``left`` tokens.

        Returns:
            The probability for each state of the automaton and each hidden state that emits the next token, (S, H), up
            to a factor per state of the automaton, and the logs of these factors, (S,).
        """
        while len(self._values) <= left:
            self._values.append(self._earlier() if self._values else self._last())
        return self._values[left]

    def _last(self) -> tuple[Tensor, Tensor]:
        """Values without any token left: a complete text is a member if it needs no end token."""
        done = torch.from_numpy(self.automaton.accepting).float() * (not self.automaton.vocabulary.ends)
        return done[:, None].expand(-1, self.model.states).contiguous(), torch.where(done > 0, 0.0, -math.inf)

    def _earlier(self) -> tuple[Tensor, Tensor]:
        """Values with one more token left: it ends the text, or moves."""
        values, logs = self._values[-1]
        origins, targets, mass = self._edges
        accepting = torch.from_numpy(self.automaton.accepting).float()
        # The summands differ by orders of magnitude, so they are taken relative to the largest one of each state.
        top = torch.where(accepting > 0, 0.0, -math.inf)
        top = top.scatter_reduce(0, origins, logs[targets], "amax").clamp_min(-1e30)
        factor = (logs[targets] - top[origins]).exp()
        earlier = (accepting * (-top).exp().clamp_max(1e30))[:, None] * self._ends
        following = values @ self.model.transition.T  # by the hidden state that emits this token
        earlier.index_add_(0, origins, mass * following[targets] * factor[:, None])
        largest = earlier.amax(-1)
        logs = torch.where(largest > 0, top + largest.log(), -math.inf)
        return earlier / largest.clamp_min(1e-38)[:, None], logs

    def potentials(self, state: int, belief: Tensor, left: int, scores: Tensor | None) -> Tensor:
        """Log ψ of the text followed by each token, (V,).

        Args:
            state: the automaton's state after the text.
            belief: the probability of each hidden state to emit the next token, (H,).
            left: as for :meth:`Ahead.following`.
            scores: likewise.
        """
        shared = self._shared(state, left)
        columns = self.model.columns
        result = torch.full((self.automaton.vocabulary.size,), -math.inf)
        result[sorted(self.automaton.vocabulary.ends)] = 0.0
        moves = shared.moves
        index = shared.index
        if not len(moves):
            return result
        log_psi = ((shared.following @ belief).clamp_min(1e-38).log() + shared.logs)[index]
        chosen = torch.arange(len(moves))
        if scores is not None and len(moves) > EXACT:
            chosen = scores[moves.to(scores.device)].topk(EXACT).indices.cpu()
        emitted = columns[moves[chosen]] * belief
        mean = (emitted * shared.following[index[chosen]]).sum(-1) / emitted.sum(-1).clamp_min(1e-38)
        log_psi[chosen] = mean.clamp_min(1e-38).log() + shared.logs[index[chosen]]
        result[moves] = torch.where(shared.late, -math.inf, log_psi.clamp(LEAST, 0.0))
        return result

    def _compute_shared(self, state: int, left: int) -> _Shared:
        moves, targets = (torch.from_numpy(part).long() for part in self.automaton.moves.of(state))
        values, logs = self.values(left)
        reached, index = targets.unique(return_inverse=True)
        needed = torch.from_numpy(self.automaton.distances)[targets] + int(bool(self.automaton.vocabulary.ends))
        return _Shared(moves, index, values[reached] @ self.model.transition.T, logs[reached], needed > left)


@dataclass(frozen=True, eq=False)
class _Shared:
    """The part of :meth:`MarkovLookahead.potentials` that does not depend on the belief.

    Args:
        moves: the tokens that may follow, (M,).
        index: for each of them the index of the state that it leads to, among the U states that are reached, (M,).
        following: the values after a token, by the hidden state that emits it, (U, H).
        logs: the logs of their factors, (U,).
        late: tokens after which no text ends within the limit, bool (M,).
    """

    moves: Tensor
    index: Tensor
    following: Tensor
    logs: Tensor
    late: Tensor


class _Belief(Ahead):
    """The automaton's state, and for each hidden state the probability that it emits the next token."""

    def __init__(self, lookahead: MarkovLookahead, state: int, belief: Tensor) -> None:
        self._lookahead = lookahead
        self._state = state
        self._belief = belief

    def following(self, left: int, scores: Tensor | None = None) -> Tensor | None:
        if self._state == self._lookahead.automaton.dead:
            return None
        return self._lookahead.potentials(self._state, self._belief, left, scores)

    def after(self, token: int) -> Ahead:
        lookahead = self._lookahead
        belief = lookahead.model.next(self._belief, token)
        return _Belief(lookahead, lookahead.automaton.step(self._state, token), belief)
