"""Decoding a known text, or a known beginning of a text, again to get its distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ForcedTokens:
    """Forces the first tokens after a prompt, one per step; later tokens are not changed.

    With :meth:`stop` as a stopping criterion, the text ends after the forced tokens.

    Args:
        tokens: the tokens, at least one.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._start: int | None = None

    def process(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor: scores (B, V) under which the next token is the forced one."""
        if self._start is None:
            self._start = input_ids.shape[1]
        number = input_ids.shape[1] - self._start
        if number >= len(self._tokens):
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._tokens[number]] = 0.0
        return forced

    def stop(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """A stopping criterion: whether each row has all forced tokens, bool (B,)."""
        assert self._start is not None
        done = input_ids.shape[1] - self._start >= len(self._tokens)
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)
