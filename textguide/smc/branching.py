"""Rows that fork if the distribution has a high entropy (EAGer)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..guidance import EAGer
from ..guidance.algebra import entropy, log_softmax
from .population import Outcome, Rows

UNUSED = "no text forked into this row"


class Branching(Rows):
    """Starts with one text per prompt; when a text forks, it fills a free row of its prompt.

    Args:
        guidance: threshold and budget.
        rows: prompts times branches.
        generator: randomness; None: torch's global generator.
        ends: end tokens.
        do_sample: draw tokens instead of choosing the most likely ones.
    """

    def __init__(
        self, guidance: EAGer, rows: int, generator: torch.Generator | None, ends: frozenset[int], do_sample: bool
    ) -> None:
        super().__init__(rows, guidance.max_branches)
        self.begin(rows, generator, ends)
        self.guidance = guidance
        self.do_sample = do_sample
        self._open = [row % self.size == 0 for row in range(rows)]
        self._origins: list[tuple[int, int] | None] = [None] * rows
        self._used = list(self._open)
        self._entropy: dict[int, float] = {}
        self._distributions: dict[int, Tensor] = {}
        self._forks: dict[int, tuple[int, int, float]] = {}

    @property
    def weighs(self) -> bool:
        """False: texts have no weights."""
        return False

    @property
    def begun(self) -> list[bool]:
        """For each row whether it contains a text; the others wait for a fork."""
        return list(self._used)

    def observe(self, guided: Tensor, rows: Sequence[int]) -> None:
        """Note the guided distribution of every row and its entropy."""
        distribution = log_softmax(guided)
        self._entropy = dict(zip(rows, entropy(distribution).tolist(), strict=True))
        self._distributions = dict(zip(rows, distribution, strict=True))

    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """Choose a token for every open row, and another one for the row that it forks into."""
        rows = [row for row, is_open in enumerate(self._open) if is_open]
        index = torch.tensor(rows, device=scores.device)
        tokens = torch.zeros(len(self._open), dtype=torch.long, device=scores.device)
        tokens[index] = self._pick(scores[index])
        self._forks = {}
        for row in rows:
            if last or self._entropy[row] <= self.guidance.entropy_threshold:
                continue
            first = row - row % self.size
            free = [r for r in range(first, first + self.size) if not self._used[r] and r not in self._forks]
            rest = scores[row].float().clone()
            rest[tokens[row]] = -torch.inf
            if not free or not bool((rest > -torch.inf).any()):
                continue
            other = int(self._pick(rest[None]))
            self._forks[free[0]] = (row, other, float(self._distributions[row][other]))
        return tokens

    def resample(self) -> Tensor | None:
        """The row that each row continues; None if no row forks."""
        if not self._forks:
            return None
        ancestors = torch.arange(len(self._open))
        for row, (parent, token, _) in self._forks.items():
            ancestors[row] = parent
            self._origins[row] = (parent, self._lengths[parent] - 1)
            self._lengths[row] = self._lengths[parent]
            self._open[row] = token not in self._ends
            self._used[row] = True
        return ancestors

    def rewritten(self) -> dict[int, tuple[int, float]]:
        """The last tokens of new rows, which differ from their parents', with their log-probabilities."""
        return {row: (token, log_prob) for row, (_, token, log_prob) in self._forks.items()}

    def outcome(self) -> Outcome:
        """The outcome of the run."""
        deaths = [None if used else UNUSED for used in self._used]
        return self._outcome(list(self._used), list(self._lengths), deaths, 0, list(self._origins))

    def _pick(self, scores: Tensor) -> Tensor:
        if not self.do_sample:
            return scores.argmax(-1)
        return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1, generator=self._generator).squeeze(1)
