"""A text, or the beginning of one, that is known already, decoded again for the sake of its distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Follow:
    """Writes the given tokens behind a prompt, one a step, and leaves alone what comes behind them.

    With :meth:`stop` as a stopping criterion the text ends there.

    Args:
        tokens: what is written; one or more.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._start: int | None = None

    def process(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor: scores (B, V) under which the next token is the given one."""
        if self._start is None:
            self._start = input_ids.shape[1]
        if input_ids.shape[1] - self._start >= len(self._tokens):
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._tokens[input_ids.shape[1] - self._start]] = 0.0
        return forced

    def stop(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """A stopping criterion: whether each row is written, bool (B,)."""
        assert self._start is not None
        done = input_ids.shape[1] - self._start >= len(self._tokens)
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)
