"""The oracles of constrained sampling: estimators as plain loops over float64, and distributions by enumeration."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

Text = tuple[int, ...]
StepDistribution = Callable[[Text], Sequence[float]]


def recursive(
    p: Sequence[float], allowed: Sequence[bool], order: Sequence[int], max_rejects: int | None = None
) -> tuple[int | None, float, int]:
    """The recursive estimator on one order of the tokens: token, weight, calls."""
    rejected, multiplier, calls = 0.0, 1.0, 0
    for place, token in enumerate(order):
        q = p[token] / (1 - rejected)
        calls += 1
        if not allowed[token]:
            if calls == max_rejects:
                return None, 0.0, calls
            rejected += p[token]
            multiplier *= 1 - q
            continue
        if calls == max_rejects or place + 1 == len(order):
            return token, multiplier, calls
        calls += 1
        return token, multiplier if allowed[order[place + 1]] else multiplier * q, calls
    return None, 0.0, calls


def recursive_moments(
    p: Sequence[float], allowed: Sequence[bool], max_rejects: int | None = None
) -> tuple[list[float], float, float]:
    """Of the recursive estimator over all orders: E[W · 1(x = t)] for every t, the variance of W, E[calls]."""
    mean, square, looked = [0.0] * len(p), 0.0, 0.0
    for order in itertools.permutations(range(len(p))):
        chance, left = 1.0, 1.0
        for token in order:
            chance *= p[token] / left if left > 0 else 1.0
            left = max(left - p[token], 0.0)
        drawn, weight, calls = recursive(p, allowed, order, max_rejects)
        looked += chance * calls
        square += chance * weight**2
        if drawn is not None:
            mean[drawn] += chance * weight
    return mean, square - sum(mean) ** 2, looked


def geometric(
    p: Sequence[float],
    allowed: Sequence[bool],
    rng: random.Random,
    accepts: int = 2,
    max_rejects: int | None = None,
) -> tuple[int | None, float, int]:
    """The geometric estimator as what it simulates: draws *with* replacement, calls counted for new tokens alone."""
    accepted: list[int] = []
    rejected = 0
    asked = set()
    while len(accepted) < accepts and (max_rejects is None or rejected < max_rejects):
        token = rng.choices(range(len(p)), p)[0]
        asked.add(token)
        if allowed[token]:
            accepted.append(token)
        else:
            rejected += 1
    if not accepted:
        return None, 0.0, len(asked)
    weight = min(len(accepted), accepts - 1) / (len(accepted) + rejected - 1)
    return accepted[0], weight, len(asked)


def texts(distribution: StepDistribution, end: int | None, length: int, size: int) -> dict[Text, float]:
    """Every text of at most ``length`` tokens that ends with ``end`` (with None: every text of that length) and its
    probability under ``distribution``, which gives p(next | text)."""
    done: dict[Text, float] = {}

    def grow(text: Text, probability: float) -> None:
        for token in range(size):
            p = probability * distribution(text)[token]
            longer = (*text, token)
            if p == 0:
                continue
            if token == end or (end is None and len(longer) == length):
                done[longer] = p
            elif len(longer) < length:
                grow(longer, p)

    grow((), 1.0)
    return done


def global_conditional(
    distribution: StepDistribution, allowed: Callable[[Text], bool], end: int | None, length: int, size: int
) -> tuple[dict[Text, float], float]:
    """p(text) · 1(allowed) / Z over all texts, and Z."""
    kept = {text: p for text, p in texts(distribution, end, length, size).items() if allowed(text)}
    total = sum(kept.values())
    return {text: p / total for text, p in kept.items()}, total


def future(
    distribution: StepDistribution,
    may_follow: Callable[[Text, int, bool], bool],
    visited: set[Text],
    end: int | None,
    length: int,
    text: Text = (),
) -> float:
    """The approximate expected future of ASAp (arXiv 2405.21047), and the mass that CARS leaves to a prefix: how
    probable it is that ``text`` becomes a member, if every text that was not visited is sure to.

    Args:
        may_follow: whether a token may follow a text; its third argument is whether it is the last one.
        visited: texts after which the model and the constraint were queried.
    """
    if text not in visited:
        return 1.0
    total = 0.0
    for token, p in enumerate(distribution(text)):
        if may_follow(text, token, len(text) + 1 == length):
            longer = (*text, token)
            ended = token == end or len(longer) == length
            total += p * (1.0 if ended else future(distribution, may_follow, visited, end, length, longer))
    return total


def learned(
    distribution: StepDistribution,
    may_follow: Callable[[Text, int, bool], bool],
    visited: set[Text],
    end: int | None,
    length: int,
    size: int,
) -> dict[Text, float]:
    """What ASAp samples while it knows the answers after ``visited``, each token in proportion to
    ``p(a|u) future(ua)``: the probability of every text, those that are cut off in a dead end left out."""

    def local(text: Text) -> Sequence[float]:
        p, last = distribution(text), len(text) + 1 == length
        kept = []
        for token in range(size):
            longer = (*text, token)
            ended = token == end or len(longer) == length
            known = 1.0 if ended else future(distribution, may_follow, visited, end, length, longer)
            kept.append(p[token] * known if may_follow(text, token, last) else 0.0)
        total = sum(kept)
        return [value / total if total else 0.0 for value in kept]

    return texts(local, end, length, size)


def locally_masked(
    distribution: StepDistribution,
    may_follow: Callable[[Text, int, bool], bool],
    end: int | None,
    length: int,
    size: int,
) -> dict[Text, float]:
    """What masking and renormalising at every step samples: Π p(x_t) 1 / Z_t.

    Args:
        may_follow: whether a token may follow a text; its third argument is whether it is the last one.
    """

    def local(text: Text) -> Sequence[float]:
        p = distribution(text)
        last = len(text) + 1 == length
        kept = [p[t] if may_follow(text, t, last) else 0.0 for t in range(size)]
        total = sum(kept)
        return [value / total if total else 0.0 for value in kept]

    return texts(local, end, length, size)


def tempered(
    cond: StepDistribution, other: StepDistribution, scale: float, end: int | None, length: int, size: int
) -> tuple[dict[Text, float], float]:
    """The product of arXiv 2503.02819 over whole texts, ``Π p(x_t|c)^γ p(x_t|u)^(1−γ) / Z``, and Z.

    A text ends with ``end`` or at ``length`` tokens.
    """
    done: dict[Text, float] = {}

    def grow(text: Text, product: float) -> None:
        for token in range(size):
            p = product * cond(text)[token] ** scale * other(text)[token] ** (1 - scale)
            longer = (*text, token)
            if token == end or len(longer) == length:
                done[longer] = p
            else:
                grow(longer, p)

    grow((), 1.0)
    total = sum(done.values())
    return {text: p / total for text, p in done.items()}, total


def speculative(
    distribution: StepDistribution, draft: Callable[[Text], Sequence[int]], length: int, rng: random.Random
) -> Text:
    """A text by speculative sampling from guesses that are not drawn (arXiv 2211.17192, section 2.3, with a
    distribution of the guess that is 1 on it): keep the guess with the probability the distribution gives it, else
    draw from the distribution without it and guess again; after guesses that were all kept, draw from the
    distribution."""
    text: Text = ()
    while len(text) < length:
        for guess in draft(text):
            p = list(distribution(text))
            if rng.random() < p[guess]:
                text = (*text, guess)
                continue
            p[guess] = 0.0
            break
        else:
            p = list(distribution(text))
        text = (*text, rng.choices(range(len(p)), p)[0])
    return text[:length]


def log_mean_exp(values: Sequence[float]) -> float:
    """Log of the mean of exponentials."""
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values) / len(values))


def ess(log_weights: Sequence[float]) -> float:
    """(Σ w)² / Σ w²."""
    top = max(log_weights)
    if top == -math.inf:
        return 0.0
    weights = [math.exp(v - top) for v in log_weights]
    return sum(weights) ** 2 / sum(w * w for w in weights)


def resampled(log_weights: Sequence[float], points: Sequence[float]) -> list[int]:
    """The particle whose stretch of the cumulated weights each point in [0, 1) falls into."""
    top = max(log_weights)
    weights = [math.exp(v - top) for v in log_weights]
    total = sum(weights)
    ancestors = []
    for point in points:
        below = 0.0
        for particle, weight in enumerate(weights):
            below += weight / total
            if point < below or particle == len(weights) - 1:
                ancestors.append(particle)
                break
    return ancestors
