"""One answer from the several texts that a guidance writes for each prompt, as lm-eval wants one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textguide.engine.results import Decoded
from textguide.smc import particles
from textguide.tasks.selection import most_consistent


def one_each(decoded: Decoded, size: int, prompt_length: int, tokenizer: Any, generator: Any) -> Tensor:
    """One row of every ``size`` rows of ``decoded.sequences``.

    Weighed texts (:class:`~textguide.AWRS`, :class:`~textguide.FeynmanKac`): one drawn in proportion to the weights,
    the first where all of them are dead. Branches of equal weight (:class:`~textguide.EAGer`): the one whose words the
    others share most (:func:`~textguide.tasks.selection.most_consistent`).

    Args:
        decoded: what a run left.
        size: rows of a prompt.
        prompt_length: tokens in front of what was written.
        tokenizer: of the model.
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
        written = [decoded.sequences[row, prompt_length:][: outcome.lengths[row]] for row in rows]
        chosen.append(rows[most_consistent([tokenizer.decode(ids, skip_special_tokens=True) for ids in written])])
    return decoded.sequences[torch.tensor(chosen, device=decoded.sequences.device)]
