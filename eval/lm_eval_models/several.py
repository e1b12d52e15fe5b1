"""One answer per prompt for lm-eval, from a guidance that writes several texts per prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textguide.engine.results import Decoded
from textguide.smc import particles
from textguide.tasks.selection import most_consistent


def one_each(decoded: Decoded, size: int, prompt_length: int, tokenizer: Any, generator: Any) -> Tensor:
    """One row of every ``size`` rows of ``decoded.sequences``.

    Of texts with weights (:class:`~textguide.AWRS`, :class:`~textguide.FeynmanKac`), one is drawn in proportion to the
    weights, or the first one is used if all weights are zero. Of branches with equal weights
    (:class:`~textguide.EAGer`), the one is used whose words the others share most
    (:func:`~textguide.tasks.selection.most_consistent`).

    Args:
        decoded: the texts of a run.
        size: rows per prompt.
        prompt_length: number of tokens before the generated ones.
        tokenizer: that of the model.
        generator: randomness of the draws; None: torch's global generator.
    """
    outcome = decoded.population
    assert outcome is not None
    chosen = []
    for start in range(0, len(decoded.sequences), size):
        rows = list(range(start, start + size))
        if outcome.log_weights is not None:
            weights = outcome.log_weights[start : start + size]
            alive = bool((weights > -torch.inf).any())
            chosen.append(int(particles.weighted_sample(weights, rows, generator)) if alive else start)
            continue
        rows = [row for row in rows if outcome.finished[row]]  # the others are empty: no text forked into them
        texts = []
        for row in rows:
            ids = decoded.sequences[row, prompt_length:][: outcome.lengths[row]]
            texts.append(tokenizer.decode(ids, skip_special_tokens=True))
        chosen.append(rows[most_consistent(texts)])
    return decoded.sequences[torch.tensor(chosen, device=decoded.sequences.device)]
