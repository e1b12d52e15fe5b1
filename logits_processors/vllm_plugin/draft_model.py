"""Guesses of a draft model, which runs in the process of the scheduler. Knows no vLLM.

Experimental: one request at a time, its most likely tokens under its own prompt only. The paper's method (Leviathan et
al., arXiv 2211.17192) draws from the draft model and reads the guesses of all requests in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from textguide.engine.speculation.drafts import Drafter
from textguide.engine.speculation.value import Speculation
from textguide.forward import caches
from textguide.forward.model_adapter import adapter
from textguide.models.loading import load

WORTH = 0.5
"""Guesses are made if this share of them is expected to be right: each costs a pass of the draft model as well."""


@dataclass
class _Row:
    """What the draft model has read of one request."""

    cache: Any
    tokens: list[int] = field(default_factory=list)


class ModelGuesser:
    """Guesses for the requests of one engine.

    Args:
        settings: as :func:`~.speculation.settings_of` returns them.

    Raises:
        ModelUnavailableError: as for :func:`textguide.load`.
        ValueError: the model cannot go back to an earlier token.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.most = settings["num_speculative_tokens"]
        self.model, _ = load(settings["model"])
        if not caches.can_crop(caches.new_cache(self.model)):
            raise ValueError(
                f"speculative_config: model={settings['model']!r} forgets what it has read (sliding windows, states), "
                "and wrong guesses are removed from its cache; use a model whose layers attend to everything"
            )
        self._drafter = Drafter(Speculation("prompt-lookup", self.most, worth=WORTH))
        self._rows: dict[str, _Row] = {}
        self._guesses: dict[str, Any] = {}

    @torch.inference_mode()
    def guess(self, request: str, tokens: Sequence[int], most: int) -> list[int]:
        """At most ``most`` guesses at what follows ``tokens``, those that are likely enough to pay off."""
        kinds = self._drafter.paying([f"place{n}" for n in range(min(most, self.most))])
        if not kinds:
            return []
        if request not in self._rows:
            self._rows[request] = _Row(caches.new_cache(self.model))
        row = self._rows[request]
        reader = adapter(self.model)
        # Its cache holds guesses of the last step, which may have been wrong.
        known = _common_prefix(row.tokens, tokens[:-1])
        caches.crop(row.cache, len(row.tokens) - known)
        unread = list(tokens[known:])
        guesses: list[int] = []
        for _ in kinds:
            ids = torch.tensor([unread], device=reader.device)
            logits = reader.read(ids, row.cache, mask=None, positions=None, first=not known)
            known += len(unread)
            unread = [int(logits[0, -1].argmax())]
            guesses += unread
        row.tokens = [*tokens, *guesses[:-1]]
        self._guesses[request] = list(zip(guesses, kinds, strict=True))
        return guesses

    def judge(self, request: str, right: int) -> None:
        """Learn how many of the last guesses were right."""
        self._drafter.judge(self._guesses.pop(request, ()), right)

    def forget(self, request: str) -> None:
        """Forget a request that has ended."""
        self._guesses.pop(request, None)
        self._rows.pop(request, None)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that two rows start with in common."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
