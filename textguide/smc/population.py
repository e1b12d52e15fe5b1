"""Rows with weights, a population a prompt, and their resampling: what every weighed run shares."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import particles


@dataclass(frozen=True)
class Outcome:
    """What came of a weighed or constrained run; rows are populations times particles, in order.

    Args:
        log_weights: log of each particle's weight, float64 (rows,); None where the method gives none.
        log_evidence: log of the mean weight of each population, (populations,); None likewise.
        ess: effective sample size of each population at the end, (populations,); None likewise.
        finished: whether each text ended as a member of the constraint, bool (rows,).
        lengths: tokens of each text, its end token included.
        deaths: why a text did not finish, None for those that did, a list over rows.
        calls: how often the constraint was asked.
        resamplings: how often a population was resampled.
        tries: how often each row was begun, (rows,); None where rows are written once.
        origins: the row that each row forked from and how many tokens they share; None for those that began with the
            prompt; None where rows do not fork.
    """

    log_weights: Tensor | None
    log_evidence: Tensor | None
    ess: Tensor | None
    finished: Tensor
    lengths: list[int]
    deaths: list[str | None]
    calls: int
    resamplings: int
    origins: list[tuple[int, int] | None] | None = None
    tries: list[int] | None = None


class Population(ABC):
    """What the loop asks of the rows of one batch that choose their tokens together.

    Args:
        rows: number of rows, populations times their size.
        size: rows of a population, which begin with one prompt.
    """

    def __init__(self, rows: int, size: int) -> None:
        self.size = size
        self.log_weights = torch.zeros(rows, dtype=torch.float64)
        self._resamplings = 0

    @property
    def weighs(self) -> bool:
        """Whether texts get weights."""
        return True

    @property
    def chooses(self) -> bool:
        """Whether :meth:`choose` picks the tokens; otherwise :meth:`mask` acts before processors and warpers."""
        return True

    @property
    def repeats(self) -> bool:
        """Whether rows that fail begin again."""
        return False

    @property
    @abstractmethod
    def open(self) -> list[bool]:
        """Rows that go on."""

    @property
    def begun(self) -> list[bool]:
        """Rows that hold a text; the others wait until one forks into them."""
        return [True] * len(self.open)

    @property
    def deaths(self) -> list[str | None]:
        """Why each row was given up, None for those that were not."""
        return [None] * len(self.open)

    @property
    def corrects(self) -> bool:
        """Whether texts are weighted by the normalisers of their guided scores."""
        return False

    def weigh(self, normaliser: Tensor, rows: Sequence[int]) -> None:
        """Multiply the weights of ``rows`` by what normalising their guided scores divided by, a logarithm (b,)."""
        raise NotImplementedError

    def observe(self, guided: Tensor, rows: Sequence[int]) -> None:  # noqa: B027 — most populations need nothing of it
        """Note the guided distribution (b, V) of ``rows``, before processors."""

    def mask(self, scores: Tensor) -> Tensor:
        """``scores`` (B, V) with −inf where a token may not follow."""
        return scores

    @abstractmethod
    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """A token for every row that goes on, from processed scores (B, V).

        Args:
            last: the limit allows no token behind this one.
        """

    @abstractmethod
    def advance(self, tokens: Tensor, last: bool) -> None:
        """Write the tokens (B,) behind the rows that go on."""

    @abstractmethod
    def stop(self, going: Sequence[float]) -> None:
        """Close the rows that a stopping criterion ended, those where ``going`` (B,) is 0."""

    @abstractmethod
    def resample(self) -> Tensor | None:
        """The row that each row goes on from, (B,), or None where all stay."""

    def rewritten(self) -> dict[int, tuple[int, float]]:
        """Rows whose last token is not their ancestor's after :meth:`resample`: that token and its log-probability."""
        return {}

    def again(self) -> list[int]:
        """Rows that begin once more with the prompt, now that none goes on; they are open again."""
        return []

    @abstractmethod
    def outcome(self) -> Outcome:
        """What came of the run."""

    def _outcome(
        self,
        finished: list[bool],
        lengths: list[int],
        deaths: list[str | None],
        calls: int,
        origins: list[tuple[int, int] | None] | None = None,
    ) -> Outcome:
        weights = self.log_weights if self.weighs else None
        populations = None if weights is None else weights.view(-1, self.size)
        return Outcome(
            log_weights=None if weights is None else weights.clone(),
            log_evidence=None if populations is None else particles.log_evidence(populations),
            ess=None if populations is None else particles.effective_sample_size(populations),
            finished=torch.tensor(finished),
            lengths=lengths,
            deaths=deaths,
            calls=calls,
            resamplings=self._resamplings,
            origins=origins,
        )


class Weighed(Population):
    """Rows with weights, resampled where these spread.

    Args:
        rows: number of rows, populations times particles.
        size: particles of a population.
        ess_threshold: resample below this share of them.
        resampling: scheme of :func:`textguide.smc.particles.resample`.
        generator: randomness of the run; resampling has a twin that is seeded from its state, so that tokens are drawn
            as plain decoding draws them.
        corrects: multiply weights by what normalising guided scores divides by.
    """

    def __init__(
        self,
        rows: int,
        size: int,
        ess_threshold: float,
        resampling: str,
        generator: torch.Generator | None,
        corrects: bool = False,
    ) -> None:
        super().__init__(rows, size)
        self.ess_threshold, self.resampling, self._corrects = ess_threshold, resampling, corrects
        # Not the twin of this state itself: the first step may seed its candidates from that, and the same numbers
        # would then decide which tokens are drawn and which particles survive.
        self._twin = twin(twin(generator))

    def fork(self) -> Weighed:
        """The same rows at the same place, to go on from once more: both draw their tokens from one generator, and what
        was learned about a constraint stays with the first."""
        other = copy.copy(self)
        other.log_weights = self.log_weights.clone()
        other._twin = torch.Generator()
        other._twin.set_state(self._twin.get_state())
        other._unshare()
        return other

    @abstractmethod
    def _unshare(self) -> None:
        """Copy the rows, which are another population's."""

    @abstractmethod
    def _move(self, ancestors: list[int]) -> None:
        """Let every row go on from the one that is named in its place."""

    @property
    def corrects(self) -> bool:
        """Whether texts are weighted by the normalisers of their guided scores."""
        return self._corrects

    def weigh(self, normaliser: Tensor, rows: Sequence[int]) -> None:
        """Multiply the weights of the ``rows`` that continue by the normalisers of their scores."""
        going = torch.tensor(self.open)[list(rows)]
        self.log_weights[list(rows)] += torch.where(going, normaliser.cpu(), 0.0)

    def resample(self) -> Tensor | None:
        """Resample the populations whose effective sample size fell below the threshold.

        Returns:
            The row that each row goes on from, (B,), or None where all stay.
        """
        size, going = self.size, self.open
        if size == 1 or not any(going):
            return None
        weights = self.log_weights.view(-1, size)
        sizes = particles.effective_sample_size(weights).tolist()
        ancestors = torch.arange(len(going)).view(-1, size)
        moved = False
        for number, ess in enumerate(sizes):
            if not 0 < ess < self.ess_threshold * size or not any(going[number * size : (number + 1) * size]):
                continue
            picked = particles.resample(weights[number][None], self._twin, self.resampling)[0]
            weights[number] = particles.log_evidence(weights[number])
            ancestors[number] = number * size + picked
            self._resamplings += 1
            moved = moved or picked.tolist() != list(range(size))
        if not moved:
            return None
        self._move(ancestors.flatten().tolist())
        return ancestors.flatten()


class Rows(Population):
    """Rows without a constraint: every text counts, whether it ends or is cut off at the limit."""

    def begin(self, rows: int, generator: torch.Generator | None, ends: frozenset[int]) -> None:
        """Stand in front of the first token.

        Args:
            rows: their number.
            generator: randomness; None: torch's global generator.
            ends: end tokens.
        """
        self._generator, self._ends = generator, ends
        self._open, self._lengths = [True] * rows, [0] * rows

    @property
    def open(self) -> list[bool]:
        """Rows that go on."""
        return list(self._open)

    def advance(self, tokens: Tensor, last: bool) -> None:
        """Write the tokens (B,) behind the rows that go on."""
        for row, token in enumerate(tokens.tolist()):
            if self._open[row]:
                self._lengths[row] += 1
                self._open[row] = token not in self._ends and not last

    def stop(self, going: Sequence[float]) -> None:
        """Close the rows that a stopping criterion ended."""
        self._open = [opened and bool(flag) for opened, flag in zip(self._open, going, strict=True)]


class Corrected(Rows, Weighed):
    """Rows that are weighed by the normalisers of their guided scores; see :class:`Weighed` and :meth:`Rows.begin`."""

    def __init__(
        self,
        rows: int,
        size: int,
        ess_threshold: float,
        resampling: str,
        generator: torch.Generator | None,
        ends: frozenset[int],
    ) -> None:
        super().__init__(rows, size, ess_threshold, resampling, generator, corrects=True)
        self.begin(rows, generator, ends)

    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """Draw a token for every row, as plain sampling does."""
        probs = torch.softmax(scores, dim=-1)
        return torch.multinomial(probs, num_samples=1, generator=self._generator).squeeze(1)

    def outcome(self) -> Outcome:
        """What came of the run."""
        rows = len(self._open)
        return self._outcome([True] * rows, list(self._lengths), [None] * rows, 0)

    def _unshare(self) -> None:
        self._open, self._lengths = list(self._open), list(self._lengths)

    def _move(self, ancestors: list[int]) -> None:
        self._open = [self._open[a] for a in ancestors]
        self._lengths = [self._lengths[a] for a in ancestors]


def twin(generator: torch.Generator | None) -> torch.Generator:
    """A generator that is seeded from the state of another one (None: torch's global one), which stays as it is."""
    copy = torch.Generator("cpu" if generator is None else generator.device)
    copy.set_state(torch.get_rng_state() if generator is None else generator.get_state())
    seed = int(torch.randint(2**62, (1,), generator=copy, device=copy.device))
    return torch.Generator().manual_seed(seed)
