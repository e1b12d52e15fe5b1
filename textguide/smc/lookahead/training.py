"""Distilling a hidden Markov model from the texts that a language model writes.

As in Ctrl-G (arXiv 2406.13892) and LTLA (2511.16054), texts are sampled from the model, the states of tokens are
initialised as clusters of the model's hidden states (latent variable distillation, 2210.04398), and expectation
maximisation continues from there.

Experimental: at each position, the model's probabilities of its likeliest tokens are counted in addition to the token
that it wrote, under the states that the tokens before suggest, because a few texts contain only a few of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .hidden_markov import HiddenMarkov

LIKELIEST = 32
"""Number of tokens at each position whose probabilities are stored."""
SMOOTHING = 0.02
"""Share of the model's mean distribution in each emission, so that tokens outside of the texts have mass."""


@dataclass(frozen=True)
class Samples:
    """Texts that a model wrote.

    Args:
        tokens: the token ids, (N, L).
        counts: the positions that the model wrote, up to an end token, bool (N, L).
        hidden: the last hidden states after each token, (N, L, D), float16.
        likeliest: the likeliest tokens at each position, (N, L, K).
        shares: their probabilities, float16.
        mean: the mean next-token distribution, (V,).
    """

    tokens: Tensor
    counts: Tensor
    hidden: Tensor
    likeliest: Tensor
    shares: Tensor
    mean: Tensor

    def part(self, every: int, rest: bool = False) -> Samples:
        """Each ``every``-th text, or all others if ``rest``."""
        rows = (torch.arange(len(self.tokens)) % every == 0) != rest
        return Samples(
            self.tokens[rows], self.counts[rows], self.hidden[rows], self.likeliest[rows], self.shares[rows], self.mean
        )


Reader = Callable[[Tensor, Any], tuple[Tensor, Tensor, Any]]
"""Maps new tokens (n, k) and the cache of the tokens before them (None: there are none) to the logits (n, k, V), the
last hidden states (n, k, D) and the new cache."""


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
    """Sample a continuation of each opening at temperature 1.

    Args:
        read: the language model.
        openings: token ids, at least one each and fewer than ``length``.
        length: L, the number of tokens of a text, including its opening.
        ends: end tokens.
        batch_size: number of texts that are written together.
        seed: the seed of the draws.
        device: the device of the model.
        progress: called with the number of tokens of each step.
    """
    generator = torch.Generator(device).manual_seed(seed)
    mean: Tensor | None = None
    parts = []
    for group in _of_one_length(openings, batch_size):
        tokens = torch.tensor(group, device=device)
        counts = torch.zeros_like(tokens, dtype=torch.bool)
        is_open = torch.ones(len(group), dtype=torch.bool, device=device)
        new = tokens
        past = None
        hidden = []
        likeliest = []
        shares = []
        while tokens.shape[1] < length:
            logits, last, past = read(new, past)
            hidden.append(last.half().cpu())
            probs = logits.float().softmax(-1)
            written = probs[is_open, -1].sum(0).double().cpu()
            mean = written if mean is None else mean + written
            top = probs.topk(min(LIKELIEST, probs.shape[-1]), dim=-1)
            likeliest.append(top.indices.int().cpu())
            shares.append(top.values.half().cpu())
            new = torch.multinomial(probs[:, -1], 1, generator=generator)
            tokens = torch.cat([tokens, new], 1)
            counts = torch.cat([counts, is_open[:, None]], 1)
            is_open = is_open & ~torch.isin(new[:, 0], torch.tensor(list(ends), device=new.device))
            if progress is not None:
                progress(int(counts[:, -1].sum()))
        hidden.append(read(new, past)[1].half().cpu())
        # The distribution at a position is computed at the position before; the first one has none.
        first = torch.zeros(len(group), 1, likeliest[0].shape[-1])
        top_tokens = torch.cat([first.int(), *likeliest], 1)
        top_shares = torch.cat([first.half(), *shares], 1)
        parts.append((tokens.cpu(), counts.cpu(), torch.cat(hidden, 1), top_tokens, top_shares))
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
    """Fit a hidden Markov model to the texts of a model.

    Args:
        samples: the texts, as :func:`sample` returns them.
        states: H, the number of hidden states.
        rounds: number of rounds of expectation maximisation.
        seed: the seed of the clusters.
        batch_size: number of texts that are processed together.
        progress: called after each round with its number and the mean log-likelihood per token before it.
    """
    labels = _clusters(samples.hidden[samples.counts].float(), states, seed)
    model = _from_labels(samples, labels, states)
    for number in range(rounds):
        model, likelihood = _round(model, samples, batch_size)
        if progress is not None:
            progress(number, likelihood)
    return model


def log_likelihood(model: HiddenMarkov, samples: Samples, batch_size: int = 256) -> float:
    """Mean log-likelihood per token that the language model wrote, in nats."""
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
        # An empty cluster starts again at a random point.
        restarts = some[torch.randint(len(some), (number,), generator=generator)]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], restarts)
    return nearest(points)


def _from_labels(samples: Samples, labels: Tensor, states: int) -> HiddenMarkov:
    """The model in which each token comes from the state of its label."""
    label = torch.full(samples.tokens.shape, -1)
    label[samples.counts] = labels
    sources = label[:, :-1]
    targets = label[:, 1:]
    both = (sources >= 0) & (targets >= 0)
    transition = torch.full((states * states,), 0.1 / states)
    transition += torch.bincount(sources[both] * states + targets[both], minlength=states * states)
    emission = torch.zeros(len(samples.mean), states)
    emission.index_put_((samples.tokens[samples.counts], labels), torch.ones(len(labels)), accumulate=True)
    shares = torch.bincount(labels, minlength=states) + 1.0
    return _normalised(shares, transition.view(states, states), emission, samples.mean)


def _normalised(initial: Tensor, transition: Tensor, emission: Tensor, mean: Tensor) -> HiddenMarkov:
    """The model of some counts: initial (H,), transition (H, H) and emission (V, H)."""
    emitted = emission / emission.sum(0).clamp_min(1e-9)
    background = 0.99 * mean + 0.01 / len(mean)
    emitted = (1 - SMOOTHING) * emitted + SMOOTHING * background[:, None]
    return HiddenMarkov(
        initial / initial.sum(),
        transition / transition.sum(-1, keepdim=True),
        (emitted / emitted.sum(0)).T.contiguous(),
    )


def _round(model: HiddenMarkov, samples: Samples, batch_size: int) -> tuple[HiddenMarkov, float]:
    """One round of expectation maximisation: the next model, and the log-likelihood per token of the present one."""
    initial = torch.zeros(model.states)
    transition = torch.full((model.states, model.states), 0.1 / model.states)
    emission = torch.zeros(len(samples.mean), model.states)
    total = 0.0
    number = 0
    parts = (samples.tokens, samples.counts, samples.likeliest, samples.shares)
    for tokens, counts, likeliest, shares in zip(*(part.split(batch_size) for part in parts), strict=True):
        emitted = model.columns[tokens]  # (n, L, H)
        belief = model.initial.expand(len(tokens), -1)
        beliefs = []
        scales = []
        for at in range(tokens.shape[1]):
            beliefs.append(belief)
            joint = belief * emitted[:, at]
            scale = joint.sum(-1, keepdim=True).clamp_min(1e-30)
            scales.append(scale)
            belief = (joint / scale) @ model.transition
        total += float((torch.cat(scales, 1).log() * counts).sum())
        number += int(counts.sum())
        later = torch.ones(len(tokens), model.states)
        weights = counts.float()
        for at in range(tokens.shape[1] - 1, -1, -1):
            weight = weights[:, at : at + 1]
            filtered = beliefs[at] * emitted[:, at] / scales[at]
            state = filtered * later
            state = state / state.sum(-1, keepdim=True).clamp_min(1e-30) * weight
            emission.index_add_(0, tokens[:, at], state)
            if at == 0:
                initial += state.sum(0)
                break
            before = beliefs[at - 1] * emitted[:, at - 1] / scales[at - 1]
            passed = emitted[:, at] * later / scales[at]
            transition += model.transition * ((before * weight).T @ passed)
            # The tokens that the model could have written, under the states that the tokens before suggest.
            likely = likeliest[:, at].long()
            share = shares[:, at].float() * weight
            guess = beliefs[at][:, None] * model.columns[likely]
            guess = guess / guess.sum(-1, keepdim=True).clamp_min(1e-30) * share[..., None]
            emission.index_add_(0, likely.flatten(), guess.flatten(0, 1))
            # Positions after an end token and those of an opening do not count.
            later = torch.where(weight > 0, passed @ model.transition.T, 1.0)
    if initial.sum() == 0:  # every text starts with an opening
        initial = transition.sum(0)
    return _normalised(initial, transition, emission, samples.mean), total / max(number, 1)


def unigram_nats(samples: Samples, test: Samples) -> float:
    """Mean negative log-likelihood per token of ``test`` under the mean distribution of ``samples``."""
    background = 0.99 * samples.mean + 0.01 / len(samples.mean)
    return -float(background[test.tokens[test.counts]].log().mean())
