"""Guesses of a draft model, which runs in the process of the scheduler. Knows no vLLM.

Experimental: one request at a time, its most likely tokens under its own prompt alone; the paper's method (Leviathan et
al., arXiv 2211.17192) draws from the draft model and reads the guesses of all requests at once.
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
"""Guesses are made where this many of them are expected to be right: each costs a pass of the draft model as well."""


@dataclass
class _Row:
    """What the draft model has read of one request."""

    cache: Any
    tokens: list[int] = field(default_factory=list)


class ModelGuesser:
    """Guesses for the requests of one engine.

    Args:
        settings: as from :func:`~.speculation.settings_of`.

    Raises:
        ModelUnavailableError: as for :func:`textguide.load`.
        ValueError: the model cannot go back to an earlier token.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.most = settings["num_speculative_tokens"]
        self.model, _ = load(settings["model"])
        if not caches.can_crop(caches.new_cache(self.model)):
            raise ValueError(
                f"speculative_config: model={settings['model']!r} forgets what it has read (sliding windows, "
                "states), and guesses are taken back; use a model whose layers attend to everything"
            )
        self._drafter = Drafter(Speculation("prompt-lookup", self.most, worth=WORTH))
        self._rows: dict[str, _Row] = {}
        self._guesses: dict[str, Any] = {}

    @torch.inference_mode()
    def guess(self, request: str, tokens: Sequence[int], most: int) -> list[int]:
        """At most so many guesses at what follows ``tokens``, those that are likely enough to pay."""
        kinds = self._drafter.paying([f"place{n}" for n in range(min(most, self.most))])
        if not kinds:
            return []
        if request not in self._rows:
            self._rows[request] = _Row(caches.new_cache(self.model))
        row, reader = self._rows[request], adapter(self.model)
        guesses: list[int] = []
        known = _shared(row.tokens, tokens[:-1])
        caches.crop(row.cache, len(row.tokens) - known)
        unread = list(tokens[known:])
        for _ in kinds:
            ids = torch.tensor([unread], device=reader.device)
            logits = reader.read(ids, row.cache, mask=None, positions=None, first=not known)
            unread, known = [int(logits[0, -1].argmax())], known + len(unread)
            guesses += unread
        row.tokens = [*tokens, *guesses[:-1]]
        self._guesses[request] = list(zip(guesses, kinds, strict=True))
        return guesses

    def judge(self, request: str, right: int) -> None:
        """Learn how many of the last guesses were right."""
        self._drafter.judge(self._guesses.pop(request, ()), right)

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._guesses.pop(request, None)
        self._rows.pop(request, None)


def _shared(read: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    for place, (one, other) in enumerate(zip(read, tokens, strict=False)):
        if one != other:
            return place
    return min(len(read), len(tokens))
