"""One of several texts, and answers without the prior of their words, from samples and log-probabilities alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Hashable, Sequence

import torch
from torch import Tensor

from textguide.guidance.algebra import log_softmax

Tokens = Callable[[str], Collection[Hashable]]


def words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def similarity(one: Collection[Hashable], other: Collection[Hashable]) -> float:
    """Shared tokens over all tokens of two sets (Jaccard), in [0, 1]; 1 for two empty ones."""
    first, second = set(one), set(other)
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def distinct(texts: Sequence[str], n: int, tokens: Callable[[str], Sequence[str]] = words) -> float:
    """Different n-grams of the texts as a share of all of them (distinct-n, Li et al., arXiv 1510.03055); 0 where there
    are none."""
    grams = [tuple(row[i : i + n]) for row in map(tokens, texts) for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def consistency(texts: Sequence[str], tokens: Tokens = words) -> list[float]:
    """The mean similarity of every text's token set to those of the others (Jain et al., arXiv 2307.06857).

    The paper's unigram score counts shared tokens; taken over the tokens of either, as here, a long text gains nothing
    by its length. Its weights by token probability are left out.

    Args:
        texts: samples for one prompt.
        tokens: what a text consists of; default: :func:`words`.

    Returns:
        Numbers in [0, 1]; 1 where there is no other text.
    """
    sets = [set(tokens(text)) for text in texts]
    scores = []
    for number, own in enumerate(sets):
        others = [similarity(own, other) for place, other in enumerate(sets) if place != number]
        scores.append(sum(others) / len(others) if others else 1.0)
    return scores


def most_consistent(texts: Sequence[str], tokens: Tokens = words) -> int:
    """The index of the text with the greatest :func:`consistency`, the first of equals: self-consistency for texts that
    have no final answer to vote on.

    Raises:
        ValueError: there are no texts.
    """
    if not texts:
        raise ValueError("texts is empty; give at least one text to choose from")
    scores = consistency(texts, tokens)
    return max(range(len(texts)), key=scores.__getitem__)


def class_prior(log_probs: Tensor) -> Tensor:
    """How often the model answers each class over all items, (N, K) → (K,): the bias of the words that name them.

    Args:
        log_probs: log p(class | item) of the classes' words, normalised or not.
    """
    return log_softmax(log_probs).double().exp().mean(0)


def reweigh(log_probs: Tensor, weights: Tensor) -> Tensor:
    """``log_probs`` (N, K) plus log-weights (K,), normalised over the classes."""
    return torch.log_softmax(log_probs.double() + weights.double(), dim=-1)


def matched_prior(
    log_probs: Tensor, target: Tensor | None = None, tolerance: float = 1e-9, steps: int = 10_000
) -> Tensor:
    """Log-weights of the classes under which the model's answers have the prior ``target`` over all items.

    ``mean_i softmax(log p(k | x_i) + w_k) = target_k`` (Liusie et al., arXiv 2309.04992, prior matching): no label is
    used, and nothing but the items themselves. Found by scaling the classes in turn, which converges to the only
    solution.

    Args:
        log_probs: log p(class | item), (N, K), finite.
        target: prior over the classes (K,), positive, summing to 1; None: uniform.
        tolerance: largest difference between the prior reached and the target.
        steps: most scalings.

    Returns:
        Float64 (K,), with mean 0.

    Raises:
        ValueError: an argument has a value that cannot work, or the weights were not found; the message names it.
    """
    if log_probs.dim() != 2 or not log_probs.numel() or not bool(torch.isfinite(log_probs).all()):
        raise ValueError(
            f"log_probs of shape {tuple(log_probs.shape)} must be finite numbers, a row an item and a column a class"
        )
    classes = log_probs.shape[1]
    wanted = torch.full((classes,), 1 / classes, dtype=torch.float64) if target is None else target.double()
    if wanted.shape != (classes,) or bool((wanted <= 0).any()) or abs(float(wanted.sum()) - 1) > 1e-6:
        raise ValueError(f"target={target} must be {classes} positive numbers that sum to 1, one a class")
    scores = log_softmax(log_probs).double()
    weights = torch.zeros(classes, dtype=torch.float64)
    for _ in range(steps):
        reached = reweigh(scores, weights).logsumexp(0) - math.log(len(scores))
        if float((reached.exp() - wanted).abs().max()) <= tolerance:
            return weights - weights.mean()
        weights = weights + wanted.log() - reached
    raise ValueError(f"steps={steps} do not reach tolerance={tolerance}; raise one of them")


def null_prior(null_log_probs: Tensor) -> Tensor:
    """Log-weights of the classes from what the model answers to no item at all: ``−log p(k | null)``, (K,).

    The paper's variant without any data. Reweighed scores are ``lc − lu`` with ``lu`` the null prompt: the direction of
    classifier-free guidance.
    """
    return -null_log_probs.double()
