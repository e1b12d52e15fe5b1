"""The rows of a run that choose their tokens together, in populations per prompt; their weights and resampling."""

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
    """The outcome of a weighted or constrained run; rows are populations times particles, in order.

    Args:
        log_weights: log of each particle's weight, float64 (rows,); None if the method has no weights.
        log_evidence: log of the mean weight of each population, (populations,); None likewise.
        ess: effective sample size of each population at the end, (populations,); None likewise.
        finished: whether each text ended as a member of the constraint, bool (rows,).
        lengths: tokens of each text, its end token included.
        deaths: for each row why its text did not finish; None if it did.
        calls: number of evaluations of the constraint.
        resamplings: number of times that a population was resampled.
        tries: number of times that each row was started, (rows,); None if rows are never restarted.
        origins: for each row the row that it forked from and the number of tokens that they share; None for rows that
            started with the prompt. None if rows do not fork.
        ancestors: number of particles of each population from whose first tokens its texts continue, (populations,);
            texts of weight 0 do not count. None if the method has no weights.
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
    ancestors: Tensor | None = None


class Population(ABC):
    """The interface between the loop and the rows of one batch that choose their tokens together.

    Args:
        rows: number of rows, populations times their size.
        size: number of rows of a population, which share one prompt.
    """

    def __init__(self, rows: int, size: int) -> None:
        self.size = size
        self.log_weights = torch.zeros(rows, dtype=torch.float64)
        self._resamplings = 0
        self._first = list(range(rows))

    @property
    def weighs(self) -> bool:
        """Whether texts have weights."""
        return True

    @property
    def chooses(self) -> bool:
        """Whether :meth:`choose` picks the tokens; otherwise :meth:`mask` acts before processors and warpers."""
        return True

    @property
    def repeats(self) -> bool:
        """Whether rows that fail are restarted."""
        return False

    @property
    @abstractmethod
    def open(self) -> list[bool]:
        """For each row whether its text continues."""

    @property
    def begun(self) -> list[bool]:
        """For each row whether it contains a text; the others wait for a fork."""
        return [True] * len(self.open)

    @property
    def deaths(self) -> list[str | None]:
        """Why each row was given up; None for the others."""
        return [None] * len(self.open)

    @property
    def corrects(self) -> bool:
        """Whether texts are weighted by the normalisers of their guided scores."""
        return False

    def weigh(self, normaliser: Tensor, rows: Sequence[int]) -> None:
        """Multiply the weights of ``rows`` by the normalisers of their guided scores, given as logarithms (b,)."""
        raise NotImplementedError

    def observe(self, guided: Tensor, rows: Sequence[int]) -> None:  # noqa: B027 — most populations do not need it
        """Note the guided distribution (b, V) of ``rows``, before processors."""

    def mask(self, scores: Tensor) -> Tensor:
        """``scores`` (B, V) with −inf for tokens that are not allowed."""
        return scores

    @abstractmethod
    def choose(self, scores: Tensor, last: bool) -> Tensor:
        """Choose a token for every open row.

        Args:
            scores: processed scores (B, V).
            last: the limit allows no token after this one.
        """

    @abstractmethod
    def advance(self, tokens: Tensor, last: bool) -> None:
        """Append the tokens (B,) to the open rows."""

    @abstractmethod
    def stop(self, going: Sequence[float]) -> None:
        """Close the rows that a stopping criterion ended: those for which ``going`` (B,) is 0."""

    @abstractmethod
    def resample(self) -> Tensor | None:
        """The row that each row continues, (B,); None if every row continues itself."""

    def rewritten(self) -> dict[int, tuple[int, float]]:
        """After :meth:`resample`, rows whose last token is not their ancestor's: the token and its log-probability."""
        return {}

    def again(self) -> list[int]:
        """Restart rows with the prompt when no row is open any more; returns them."""
        return []

    @abstractmethod
    def outcome(self) -> Outcome:
        """The outcome of the run."""

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
            ancestors=None if populations is None else particles.distinct(populations, self._first),
        )


class Weighed(Population):
    """Rows with weights, resampled if the weights differ too much.

    Args:
        rows: number of rows, populations times particles.
        size: number of particles of a population.
        ess_threshold: resample if the effective sample size is below this share of the particles.
        resampling: scheme of :func:`textguide.smc.particles.resample`.
        generator: randomness of the run; resampling uses another generator that is seeded from its state, so that
            tokens are drawn as plain decoding draws them.
        corrects: whether weights are multiplied by the normalisers of guided scores.
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
        self.ess_threshold = ess_threshold
        self.resampling = resampling
        self._corrects = corrects
        # Not the twin of this state itself: the first step may seed its candidates from that one, and the same numbers
        # would then decide which tokens are drawn and which particles survive.
        self._twin = twin(twin(generator))

    def fork(self) -> Weighed:
        """A copy of the rows that continues independently.

        Both draw their tokens from one generator. Knowledge about the constraint stays with the original.
        """
        other = copy.copy(self)
        other.log_weights = self.log_weights.clone()
        other._first = list(self._first)
        other._twin = torch.Generator()
        other._twin.set_state(self._twin.get_state())
        other._unshare()
        return other

    @abstractmethod
    def _unshare(self) -> None:
        """Copy all state that is shared with the population that this one was copied from."""

    @abstractmethod
    def _move(self, ancestors: list[int]) -> None:
        """Replace every row by a copy of its ancestor."""

    @property
    def corrects(self) -> bool:
        """Whether texts are weighted by the normalisers of their guided scores."""
        return self._corrects

    def weigh(self, normaliser: Tensor, rows: Sequence[int]) -> None:
        """Multiply the weights of the ``rows`` that are open by the normalisers of their scores."""
        is_open = torch.tensor(self.open)[list(rows)]
        self.log_weights[list(rows)] += torch.where(is_open, normaliser.cpu(), 0.0)

    def resample(self) -> Tensor | None:
        """Resample the populations whose effective sample size fell below the threshold.

        Returns:
            The row that each row continues, (B,); None if every row continues itself.
        """
        size = self.size
        is_open = self.open
        if size == 1 or not any(is_open):
            return None
        weights = self.log_weights.view(-1, size)
        sizes = particles.effective_sample_size(weights).tolist()
        ancestors = torch.arange(len(is_open)).view(-1, size)
        moved = False
        for number, ess in enumerate(sizes):
            if not 0 < ess < self.ess_threshold * size or not any(is_open[number * size : (number + 1) * size]):
                continue
            picked = particles.resample(weights[number][None], self._twin, self.resampling)[0]
            weights[number] = particles.log_evidence(weights[number])
            ancestors[number] = number * size + picked
            self._resamplings += 1
            moved = moved or picked.tolist() != list(range(size))
        if not moved:
            return None
        self._first = [self._first[ancestor] for ancestor in ancestors.flatten().tolist()]
        self._move(ancestors.flatten().tolist())
        return ancestors.flatten()


class Rows(Population):
    """Rows without a constraint: every text is a result, whether it ends or is cut off at the limit."""

    def begin(self, rows: int, generator: torch.Generator | None, ends: frozenset[int]) -> None:
        """Set up the rows before their first token.

        Args:
            rows: number of rows.
            generator: randomness; None: torch's global generator.
            ends: end tokens.
        """
        self._generator = generator
        self._ends = ends
        self._open = [True] * rows
        self._lengths = [0] * rows

    @property
    def open(self) -> list[bool]:
        """For each row whether its text continues."""
        return list(self._open)

    def advance(self, tokens: Tensor, last: bool) -> None:
        """Append the tokens (B,) to the open rows."""
        for row, token in enumerate(tokens.tolist()):
            if self._open[row]:
                self._lengths[row] += 1
                self._open[row] = token not in self._ends and not last

    def stop(self, going: Sequence[float]) -> None:
        """Close the rows that a stopping criterion ended."""
        self._open = [opened and bool(flag) for opened, flag in zip(self._open, going, strict=True)]


class Corrected(Rows, Weighed):
    """Rows that are weighted by the normalisers of their guided scores; see :class:`Weighed` and :meth:`Rows.begin`."""

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
        """The outcome of the run."""
        rows = len(self._open)
        return self._outcome([True] * rows, list(self._lengths), [None] * rows, 0)

    def _unshare(self) -> None:
        self._open = list(self._open)
        self._lengths = list(self._lengths)

    def _move(self, ancestors: list[int]) -> None:
        self._open = [self._open[ancestor] for ancestor in ancestors]
        self._lengths = [self._lengths[ancestor] for ancestor in ancestors]


def twin(generator: torch.Generator | None) -> torch.Generator:
    """A generator that is seeded from the state of another one (None: torch's global one), which does not change."""
    copy = torch.Generator("cpu" if generator is None else generator.device)
    copy.set_state(torch.get_rng_state() if generator is None else generator.get_state())
    seed = int(torch.randint(2**62, (1,), generator=copy, device=copy.device))
    return torch.Generator().manual_seed(seed)
