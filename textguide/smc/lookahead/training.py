"""Distilling a hidden Markov model from the texts that a language model writes.

As Ctrl-G (arXiv 2406.13892) and LTLA (2511.16054) do it, texts are sampled from the model, the states of tokens begin
as clusters of the model's own (latent variable distillation, 2210.04398), and expectation maximisation goes on from
there.

Experimental: what the model gives its likeliest tokens at each place counts beside the one that it wrote, by what the
states before say of it, since few texts show few of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .hidden_markov import HiddenMarkov

LIKELIEST = 32
"""Tokens of each place whose probabilities are kept."""
SMOOTHING = 0.02
"""Share of an emission that is the model's mean one, which no text has to show."""


@dataclass(frozen=True)
class Samples:
    """What a model wrote.

    Args:
        tokens: (N, L).
        counts: places that the model wrote, up to an end token, bool (N, L).
        hidden: its last hidden states behind each token, (N, L, D), float16.
        likeliest: the tokens that it gave most at each place, (N, L, K), and their probabilities.
        shares: these, float16.
        mean: its mean next-token distribution, (V,).
    """

    tokens: Tensor
    counts: Tensor
    hidden: Tensor
    likeliest: Tensor
    shares: Tensor
    mean: Tensor

    def part(self, every: int, rest: bool = False) -> Samples:
        """Each ``every``-th text, or all the others."""
        kept = (torch.arange(len(self.tokens)) % every == 0) != rest
        return Samples(
            self.tokens[kept], self.counts[kept], self.hidden[kept], self.likeliest[kept], self.shares[kept], self.mean
        )


Reader = Callable[[Tensor, Any], tuple[Tensor, Tensor, Any]]
"""From new tokens (n, k) and the cache of what is before (None: nothing) to the logits (n, k, V) and the last hidden
states (n, k, D) behind them, and the cache with them."""


@torch.no_grad()
def sample(
    read: Reader,
    openings: Sequence[Sequence[int]],
    length: int,
    ends: Sequence[int],
    *,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Samples:
    """Let the model write behind each opening, at temperature 1, up to ``length`` tokens, the opening's included.

    Args:
        read: the language model.
        openings: token ids, one or more each and fewer than ``length``.
        length: L.
        ends: end tokens.
        batch_size: texts written at once.
        seed: of the draws.
        device: of the model.
        progress: called with the tokens of each step.
    """
    generator = torch.Generator(device).manual_seed(seed)
    mean: Tensor | None = None
    parts = []
    for group in _of_one_length(openings, batch_size):
        tokens = torch.tensor(group, device=device)
        counts = torch.zeros_like(tokens, dtype=torch.bool)
        going = torch.ones(len(group), dtype=torch.bool, device=device)
        given, past, hidden, likeliest, shares = tokens, None, [], [], []
        while tokens.shape[1] < length:
            logits, last, past = read(given, past)
            hidden.append(last.half().cpu())
            probs = logits.float().softmax(-1)
            written = probs[going, -1].sum(0).double().cpu()
            mean = written if mean is None else mean + written
            top = probs.topk(min(LIKELIEST, probs.shape[-1]), dim=-1)
            likeliest.append(top.indices.int().cpu())
            shares.append(top.values.half().cpu())
            given = torch.multinomial(probs[:, -1], 1, generator=generator)
            tokens = torch.cat([tokens, given], 1)
            counts = torch.cat([counts, going[:, None]], 1)
            going = going & ~torch.isin(given[:, 0], torch.tensor(list(ends), device=given.device))
            if progress is not None:
                progress(int(counts[:, -1].sum()))
        hidden.append(read(given, past)[1].half().cpu())
        # What was given at a place comes from the place before: the first of all has none.
        first = torch.zeros(len(group), 1, likeliest[0].shape[-1])
        parts.append((
            tokens.cpu(), counts.cpu(), torch.cat(hidden, 1),
            torch.cat([first.int(), *likeliest], 1), torch.cat([first.half(), *shares], 1),
        ))  # fmt: skip
    tokens, counts, hiddens, tops, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
    assert mean is not None
    return Samples(tokens, counts, hiddens, tops, probabilities, (mean / mean.sum()).float())


def _of_one_length(openings: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[list[int]]]:
    by_length: dict[int, list[list[int]]] = {}
    for opening in openings:
        by_length.setdefault(len(opening), []).append(list(opening))
    for group in by_length.values():
        for at in range(0, len(group), batch_size):
            yield group[at : at + batch_size]


def fit(
    samples: Samples,
    states: int,
    *,
    rounds: int = 10,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[int, float], object] | None = None,
) -> HiddenMarkov:
    """A hidden Markov model of what a model wrote.

    Args:
        samples: as from :func:`sample`.
        states: H.
        rounds: of expectation maximisation.
        seed: of the clusters.
        batch_size: texts counted at once.
        progress: called behind each round with its number and the mean log-likelihood of a token before it.
    """
    labels = _clusters(samples.hidden[samples.counts].float(), states, seed)
    model = _counted(samples, labels, states)
    for number in range(rounds):
        model, likelihood = _round(model, samples, batch_size)
        if progress is not None:
            progress(number, likelihood)
    return model


def log_likelihood(model: HiddenMarkov, samples: Samples, batch_size: int = 256) -> float:
    """Mean log p of a token that the language model wrote, in nats."""
    return _round(model, samples, batch_size)[1]


def _clusters(points: Tensor, number: int, seed: int, rounds: int = 8) -> Tensor:
    """The cluster (n,) of each point (n, D), by k-means on a sample of them."""
    generator = torch.Generator().manual_seed(seed)
    points = points - points.mean(0)
    points = points / points.std(0).clamp_min(1e-6)
    some = points[torch.randperm(len(points), generator=generator)[: 200 * number]]
    centres = some[torch.randperm(len(some), generator=generator)[:number]].clone()

    def nearest(of: Tensor) -> Tensor:
        norms = centres.square().sum(-1)
        return torch.cat([(norms - 2 * part @ centres.T).argmin(-1) for part in of.split(8192)])

    for _ in range(rounds):
        label = nearest(some)
        sums = torch.zeros_like(centres).index_add_(0, label, some)
        sizes = torch.bincount(label, minlength=number)
        fresh = some[torch.randint(len(some), (number,), generator=generator)]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], fresh)
    return nearest(points)


def _counted(samples: Samples, labels: Tensor, states: int) -> HiddenMarkov:
    """The model in which each token comes from the state that it is labelled with."""
    label = torch.full(samples.tokens.shape, -1)
    label[samples.counts] = labels
    here, there = label[:, :-1], label[:, 1:]
    both = (here >= 0) & (there >= 0)
    transition = torch.full((states * states,), 0.1 / states)
    transition += torch.bincount(here[both] * states + there[both], minlength=states * states)
    emission = torch.zeros(len(samples.mean), states)
    emission.index_put_((samples.tokens[samples.counts], labels), torch.ones(len(labels)), accumulate=True)
    shares = torch.bincount(labels, minlength=states) + 1.0
    return _normalised(shares, transition.view(states, states), emission, samples.mean)


def _normalised(initial: Tensor, transition: Tensor, emission: Tensor, mean: Tensor) -> HiddenMarkov:
    """From counts, emissions (V, H)."""
    emitted = emission / emission.sum(0).clamp_min(1e-9)
    background = 0.99 * mean + 0.01 / len(mean)
    emitted = (1 - SMOOTHING) * emitted + SMOOTHING * background[:, None]
    return HiddenMarkov(
        initial / initial.sum(),
        transition / transition.sum(-1, keepdim=True),
        (emitted / emitted.sum(0)).T.contiguous(),
    )


def _round(model: HiddenMarkov, samples: Samples, batch_size: int) -> tuple[HiddenMarkov, float]:
    """One round: the next model, and the mean log-likelihood of a token that counts."""
    initial = torch.zeros(model.states)
    transition = torch.full((model.states, model.states), 0.1 / model.states)
    emission = torch.zeros(len(samples.mean), model.states)
    total, number = 0.0, 0
    parts = (samples.tokens, samples.counts, samples.likeliest, samples.shares)
    for tokens, counts, likeliest, shares in zip(*(part.split(batch_size) for part in parts), strict=True):
        emitted = model.columns[tokens]  # (n, L, H)
        beliefs, scales, belief = [], [], model.initial.expand(len(tokens), -1)
        for place in range(tokens.shape[1]):
            beliefs.append(belief)
            seen = belief * emitted[:, place]
            scale = seen.sum(-1, keepdim=True).clamp_min(1e-30)
            scales.append(scale)
            belief = (seen / scale) @ model.transition
        total += float((torch.cat(scales, 1).log() * counts).sum())
        number += int(counts.sum())
        later = torch.ones(len(tokens), model.states)
        weights = counts.float()
        for place in range(tokens.shape[1] - 1, -1, -1):
            weight = weights[:, place : place + 1]
            filtered = beliefs[place] * emitted[:, place] / scales[place]
            state = filtered * later
            state = state / state.sum(-1, keepdim=True).clamp_min(1e-30) * weight
            emission.index_add_(0, tokens[:, place], state)
            if place == 0:
                initial += state.sum(0)
                break
            before = beliefs[place - 1] * emitted[:, place - 1] / scales[place - 1]
            passed = emitted[:, place] * later / scales[place]
            transition += model.transition * ((before * weight).T @ passed)
            # The tokens that the model might have written, by what was written before.
            likely, share = likeliest[:, place].long(), shares[:, place].float() * weight
            guess = beliefs[place][:, None] * model.columns[likely]
            guess = guess / guess.sum(-1, keepdim=True).clamp_min(1e-30) * share[..., None]
            emission.index_add_(0, likely.flatten(), guess.flatten(0, 1))
            # Where an end token or an opening stands behind, nothing that counts is later.
            later = torch.where(weight > 0, passed @ model.transition.T, 1.0)
    if initial.sum() == 0:  # every text began with an opening
        initial = transition.sum(0)
    return _normalised(initial, transition, emission, samples.mean), total / max(number, 1)


def unigram_nats(samples: Samples, held: Samples) -> float:
    """Mean −log of the mean distribution of ``samples`` at the tokens of ``held`` that count."""
    background = 0.99 * samples.mean + 0.01 / len(samples.mean)
    return -float(background[held.tokens[held.counts]].log().mean())
