"""Texts under a constraint that a value is learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..constraints import Constraint, Vocabulary
from ..constraints.automata import automaton_of
from ..guidance import AWRS
from .constrained import Constrained
from .lookahead import lookahead_of, value

Reader = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""From new tokens (n, k) and the cache of what is before (None: nothing) to the scores of the next ones (n, V), and the
cache with them."""


@dataclass
class _Step:
    """What one step of a batch left: rows that wrote a token, where they stood, what was read, and the token."""

    wrote: Tensor
    states: Tensor
    read: Tensor
    tokens: Tensor
    weights: Tensor  # log-weights behind it, ψ left out


@torch.no_grad()
def rollouts(
    read: Reader,
    prompts: Sequence[Sequence[int]],
    constraint: Constraint,
    vocabulary: Vocabulary,
    *,
    number: int = 200,
    limit: int = 64,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> value.Examples:
    """Write texts one by one by :class:`textguide.AWRS`, and note what became of each beginning.

    A text's last weight over its weight at a place is an unbiased estimate of the probability that the model makes a
    member of what stood there.

    Args:
        read: the language model.
        prompts: token ids, one or more each.
        constraint: what texts have to satisfy.
        vocabulary: of the model.
        number: texts behind each prompt.
        limit: most tokens of a text, an end token included.
        temperature: of the draws, as the run's will be.
        batch_size: texts written at once.
        seed: of the draws.
        device: of the model.
        progress: called with the number of texts just written.

    Raises:
        ValueError: nothing satisfies the constraint.
    """
    generator = torch.Generator(device).manual_seed(seed)
    parts = []
    for prompt in prompts:
        for begin in range(0, number, batch_size):
            rows = min(batch_size, number - begin)
            given = torch.tensor([list(prompt)], device=device).expand(rows, -1)
            parts.append(_batch(read, given, constraint, vocabulary, limit, temperature, generator))
            if progress is not None:
                progress(rows)
    states, features, tokens, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return value.Examples(states, features, tokens, values)


def _batch(
    read: Reader,
    given: Tensor,
    constraint: Constraint,
    vocabulary: Vocabulary,
    limit: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, ...]:
    automaton, guidance = automaton_of(constraint, vocabulary), AWRS(constraint)
    state = Constrained(
        guidance, constraint.start(vocabulary), vocabulary, len(given), generator, given.device, limit=limit,
        lookahead=lookahead_of(guidance.lookahead, constraint, vocabulary), prompts=given.tolist(),
    )  # fmt: skip
    at = torch.full((len(given),), value.ANYWHERE if automaton is None else automaton.begin)
    ends = torch.tensor(sorted(vocabulary.ends), dtype=torch.long)
    steps: list[_Step] = []
    cache: Any = None
    for index in range(limit):
        last = index == limit - 1
        scores, cache = read(given, cache)
        scores = scores.float() / temperature
        tokens = state.choose(scores, last)
        drawn = torch.tensor(state.open)
        state.advance(tokens, last)
        wrote = drawn & ~torch.isin(tokens.cpu(), ends)
        foreseen = torch.tensor([row.foreseen for row in state._rows], dtype=torch.float64)
        weights = state.log_weights - foreseen
        steps.append(_Step(wrote, at, value.features(scores, limit - index - 1), tokens.cpu(), weights))
        if automaton is not None:
            moved = zip(at.tolist(), tokens.tolist(), wrote.tolist(), strict=True)
            at = torch.tensor([automaton.step(s, token) if went else s for s, token, went in moved])
        given = tokens[:, None].to(given.device)
        if not any(state.open):
            break
    final = torch.where(state.outcome().finished, state.log_weights, -torch.inf)
    parts = []
    for step in steps:
        kept = step.wrote
        togo = torch.where(final[kept] > -torch.inf, final[kept] - step.weights[kept], -torch.inf)
        parts.append((step.states[kept], step.read[kept], step.tokens[kept], togo))
    states, features, tokens, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return states, features, tokens, values
