"""Estimating a token prior: a model's average next-token distribution over some texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..forward.model_adapter import adapter
from ..guidance.priors import Prior
from ..support.checks import whole_number
from .branch_inputs import canonical_prompts, encode
from .given_texts import as_items, distributions

FEWEST = 5
"""Texts that a prior needs; an average over fewer describes these texts instead of the model."""


def estimate_prior(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Any],
    *,
    skip: int = 8,
    longest: int = 200,
    name: str | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Prior:
    """Average a model's next-token distributions over all positions of some texts, which need no labels.

    Every position has the same weight, so long texts count more. Every text is read once.

    Args:
        model: a transformers model that predicts the next token.
        tokenizer: its tokenizer; it may be None if the texts are token ids.
        texts: 5 texts or more, of the domain in which the prior will be used; 20 to 200 are enough.
        skip: number of tokens at the start of a text that are only read, because the distributions there describe the
            starts of texts. At most half of a text is skipped.
        longest: number of tokens of a text that are read.
        name: name of the model in error messages; default: its own name.
        progress: called with 1 after every text.

    Returns:
        The prior, which can be saved.

    Raises:
        ValueError: there are fewer than 5 texts with at least two tokens, or a text cannot be read.

    Example:
        >>> prior = textguide.estimate_prior(model, tokenizer, texts).save("stories.safetensors")
        >>> textguide.generate(model, tokenizer, "Once upon", TokenPrior(1.5, prior="stories.safetensors"))
    """
    whole_number("skip", skip, 1)
    whole_number("longest", longest, 2)
    if isinstance(texts, str):
        raise ValueError("texts must be a list of texts, not one text; pass 5 or more")
    rows = [encode(prompt, tokenizer, "texts")[:longest] for prompt in canonical_prompts(list(texts), None, tokenizer)]
    rows = [row for row in rows if len(row) > 1]
    if len(rows) < FEWEST:
        raise ValueError(f"texts has {len(rows)} texts with two tokens or more; pass at least {FEWEST}")
    total: torch.Tensor | float = 0.0
    positions = 0
    for row in rows:
        first = min(skip, len(row) // 2)
        items = as_items(model, tokenizer, [row[:first]], [row[first:]], None, None)
        probabilities = distributions(model, items, None, tokenizer=tokenizer, models={}).double().exp()
        total = total + probabilities.sum(0).cpu()
        positions += len(probabilities)
        if progress is not None:
            progress(1)
    assert isinstance(total, torch.Tensor)
    base = adapter(model).base
    model_name = name or str(getattr(base, "name_or_path", "")) or type(base).__name__
    # Rounding may leave a token without probability, and its logarithm must be finite.
    smallest = torch.finfo(torch.float32).tiny
    return Prior((total / positions).clamp(min=smallest).log(), model_name, len(rows), positions)
