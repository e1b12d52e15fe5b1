"""Texts under a constraint, from which a value is learned."""

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
"""Maps new tokens (n, k) and the cache of the tokens before them (None: there are none) to the scores of the next
tokens (n, V) and the new cache."""


@dataclass
class _Step:
    """One step of a batch.

    Args:
        wrote: rows that wrote a token with bytes, bool (rows,).
        states: the automaton's states before the token, (rows,).
        features: those of the scores, (rows, WIDTH + 1).
        tokens: the tokens, (rows,).
        log_weights: the log-weights after the token, without ψ, (rows,).
    """

    wrote: Tensor
    states: Tensor
    features: Tensor
    tokens: Tensor
    log_weights: Tensor


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
    """Write texts by :class:`textguide.AWRS` with one particle, and note the outcome for each of their prefixes.

    The final weight of a text over its weight after a prefix is an unbiased estimate of the probability that the model
    continues the prefix to a member.

    Args:
        read: the language model.
        prompts: token ids, at least one each.
        constraint: the constraint of the texts.
        vocabulary: the model's vocabulary.
        number: number of texts per prompt.
        limit: largest number of tokens of a text, including an end token.
        temperature: the temperature of the draws; use that of the later run.
        batch_size: number of texts that are written together.
        seed: the seed of the draws.
        device: the device of the model.
        progress: called with the number of texts just written.

    Raises:
        ValueError: nothing satisfies the constraint.
    """
    generator = torch.Generator(device).manual_seed(seed)
    parts = []
    for prompt in prompts:
        for begin in range(0, number, batch_size):
            rows = min(batch_size, number - begin)
            ids = torch.tensor([list(prompt)], device=device).expand(rows, -1)
            parts.append(_batch(read, ids, constraint, vocabulary, limit, temperature, generator))
            if progress is not None:
                progress(rows)
    states, features, tokens, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return value.Examples(states, features, tokens, values)


def _batch(
    read: Reader,
    ids: Tensor,
    constraint: Constraint,
    vocabulary: Vocabulary,
    limit: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, ...]:
    """States, features, tokens and values of one batch of texts, as :class:`value.Examples` has them."""
    automaton = automaton_of(constraint, vocabulary)
    guidance = AWRS(constraint)
    rows = Constrained(
        guidance,
        constraint.start(vocabulary),
        vocabulary,
        len(ids),
        generator,
        ids.device,
        limit=limit,
        lookahead=lookahead_of(guidance.lookahead, constraint, vocabulary),
        prompts=ids.tolist(),
    )
    states = torch.full((len(ids),), value.ANYWHERE if automaton is None else automaton.begin)
    ends = torch.tensor(sorted(vocabulary.ends), dtype=torch.long)
    steps: list[_Step] = []
    cache: Any = None
    for index in range(limit):
        last = index == limit - 1
        scores, cache = read(ids, cache)
        scores = scores.float() / temperature
        tokens = rows.choose(scores, last)
        is_open = torch.tensor(rows.open)
        rows.advance(tokens, last)
        wrote = is_open & ~torch.isin(tokens.cpu(), ends)
        log_psi = torch.tensor([row.log_psi for row in rows._rows], dtype=torch.float64)
        features = value.features(scores, limit - index - 1)
        steps.append(_Step(wrote, states, features, tokens.cpu(), rows.log_weights - log_psi))
        if automaton is not None:
            moves = zip(states.tolist(), tokens.tolist(), wrote.tolist(), strict=True)
            states = torch.tensor([automaton.step(state, token) if moved else state for state, token, moved in moves])
        ids = tokens[:, None].to(ids.device)
        if not any(rows.open):
            break
    final = torch.where(rows.outcome().finished, rows.log_weights, -torch.inf)
    parts = []
    for step in steps:
        final_weights = final[step.wrote]
        gains = torch.where(final_weights > -torch.inf, final_weights - step.log_weights[step.wrote], -torch.inf)
        parts.append((step.states[step.wrote], step.features[step.wrote], step.tokens[step.wrote], gains))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))
