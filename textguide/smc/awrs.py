"""Adaptive weighted rejection sampling of one token (Lipkin et al., arXiv 2504.05410).

Given a next-token distribution ``p`` and a yes-or-no constraint, draw ``x`` and a weight ``W`` with ``E[W · 1(x = t)] =
p(t)`` for every allowed token and 0 for every other one, so that ``E[W]`` is the mass ``Z`` that the constraint
leaves, and check as few tokens as possible. Candidates are drawn without replacement.

Known tokens need no checks: a token that is known to be rejected leaves the proposal, and the weight is multiplied by
the mass that is left; a token that is known to be accepted is not checked again. Which tokens a rejection includes (all
those that start with the same bytes, for example) may depend on anything that happened before; the estimators stay
unbiased.

The mass that is left is never computed as a difference of almost equal numbers: once little is left, it is summed again
over the remaining tokens, in its own scale. Very unlikely constraints therefore keep their true, tiny weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]

GEOMETRIC_ABOVE = 2 / 3
"""Largest probability above which the geometric estimator checks fewer tokens than the recursive one, which checks two
or more."""

_MAX_MISSES = 3  # failed draws that cost as much as a new table
_RESUM = 0.25  # share of the last sum below which subtraction is too inaccurate
_RESCALE = 1e-4  # mass below which the probabilities are scaled up


@dataclass(frozen=True)
class Draw:
    """One token and its weight.

    Args:
        token: position of the token in the distribution; −1 if none was accepted.
        log_weight: log W; −inf if none was accepted.
        checks: number of candidates that the constraint checked.
        exhausted: whether no token is allowed at all, as opposed to a cap that was reached.
    """

    token: int
    log_weight: float
    checks: int
    exhausted: bool = False


class Knowledge:
    """What is known about the tokens of one distribution: spans of rejected positions, and accepted positions.

    This base class checks every token on its own; :class:`textguide.smc.trie.TrieKnowledge` checks bytes.

    Args:
        accepts: whether the token at a position is allowed.
        rejected: spans that are known in advance.
        accepted: positions that are known in advance.
    """

    def __init__(
        self,
        accepts: Callable[[int], bool] | None = None,
        rejected: list[Span] | None = None,
        accepted: set[int] | None = None,
    ) -> None:
        self._accepts = accepts
        self.rejected: list[Span] = list(rejected or [])
        self.accepted: set[int] = set(accepted or ())

    def check(self, position: int, mass: Mass, rejections: int) -> bool:
        """Check the token at ``position`` and note everything that follows from the answer.

        Args:
            position: the position of the token.
            mass: what is left of the distribution, to decide which further checks are worth a call.
            rejections: number of candidates that were rejected before this one.
        """
        assert self._accepts is not None
        if self._accepts(position):
            self.accepted.add(position)
            return True
        self.rejected.append((position, position + 1))
        return False


class Mass:
    """The rest of a distribution while tokens are rejected.

    Args:
        logp: log-probabilities (V,), normalised; −inf for tokens that cannot be drawn.
        probs: their exponentials (V,), if available.
        rejected: spans that are known to be rejected.
    """

    def __init__(self, logp: Tensor, probs: Tensor | None = None, rejected: list[Span] | None = None) -> None:
        self.logp = logp.clone()
        self.p = logp.exp() if probs is None else probs.clone()
        self._shift = 0.0
        for low, high in rejected or []:
            self.logp[low:high] = -math.inf
            self.p[low:high] = 0.0
        self._resum()

    @property
    def log_left(self) -> float:
        """Log of the mass that is left."""
        return math.log(self._left) + self._shift if self._left > 0 else -math.inf

    def is_left(self, position: int) -> bool:
        """Whether the token can still be drawn."""
        return self.logp[position].item() != -math.inf

    def share(self, low: int, high: int) -> float:
        """The share of the remaining mass in a span."""
        return float(self.p[low:high].sum(dtype=torch.float64)) / self._left if self._left > 0 else 0.0

    def shares(self, positions: set[int]) -> Tensor:
        """The shares of the remaining mass at some positions, in ascending order of position, float64."""
        index = torch.tensor(sorted(positions), device=self.p.device)
        share = self.p[index].double()
        return share / self._left if self._left > 0 else torch.zeros_like(share)

    def reject(self, low: int, high: int) -> None:
        """Remove a span."""
        self._left -= float(self.p[low:high].sum(dtype=torch.float64))
        self.logp[low:high] = -math.inf
        self.p[low:high] = 0.0
        if self._left < _RESUM * self._summed:
            self._resum()

    def _resum(self) -> None:
        self._left = self._summed = float(self.p.sum(dtype=torch.float64))
        if self._left < _RESCALE:
            top = self.logp.max().item()
            if top == -math.inf:
                self._left = self._summed = 0.0
                return
            self._shift = top
            self.p = (self.logp.double() - top).exp()
            self._left = self._summed = float(self.p.sum())


class Uniforms:
    """Uniform numbers in (0, 1), drawn in blocks."""

    def __init__(self, generator: torch.Generator | None, device: torch.device | str = "cpu") -> None:
        self._generator = generator
        self._device = device
        self._block: list[float] = []

    def next(self) -> float:
        """One number."""
        if not self._block:
            block = torch.rand(64, generator=self._generator, device=self._device, dtype=torch.float64)
            self._block = block.clamp_min(1e-300).tolist()
        return self._block.pop()


class Order:
    """Positions drawn from the rest of a distribution without replacement: the order of Gumbel top-k, made lazily.

    A draw uses a table of the distribution's running sums. If it hits a position that was used or rejected since the
    table was made, it is repeated, which gives the distribution of the rest; after a few such misses a new table is
    made.

    Args:
        uniforms: the randomness.
    """

    def __init__(self, uniforms: Uniforms) -> None:
        self._uniforms = uniforms
        self._used: set[int] = set()
        self._sums: Tensor | None = None

    def use(self, position: int) -> None:
        """Note a position that was used elsewhere."""
        self._used.add(position)

    def next(self, mass: Mass, without: Collection[int] = ()) -> int | None:
        """The next position, or None if nothing is left.

        Args:
            mass: what is left of the distribution.
            without: positions to skip.
        """
        misses = 0
        while True:
            if self._sums is None or misses == _MAX_MISSES:
                left = mass.p.to(torch.float64, copy=True)
                left[torch.tensor([*self._used, *without], dtype=torch.long)] = 0.0
                self._sums = left.cumsum(0)
            total = self._sums[-1].item()
            if total <= 0:
                return None
            position = int(torch.searchsorted(self._sums, self._uniforms.next() * total, right=True))
            # Because of rounding the product may be the total itself.
            is_used = position == len(self._sums) or position in self._used or position in without
            if not is_used and mass.is_left(position):
                self._used.add(position)
                return position
            misses += 1


def draw(
    logp: Tensor,
    knowledge: Knowledge,
    generator: torch.Generator | None = None,
    *,
    estimator: str = "auto",
    accepts: int = 2,
    max_rejects: int | None = None,
    first: int | None = None,
    order: Order | None = None,
    probs: Tensor | None = None,
    uniforms: Uniforms | None = None,
) -> Draw:
    """Draw one token.

    Args:
        logp: log-probabilities (V,), normalised.
        knowledge: what is known about the tokens; checks the others.
        generator: the randomness.
        estimator: ``recursive``, ``geometric``, or ``auto``, which is geometric if one token has 2/3 of the mass or
            ``accepts`` is more than two.
        accepts: number of accepted draws at which the geometric estimator stops.
        max_rejects: give up after this many rejections, with weight 0; the other weights account for that.
        first: the first candidate, if it was already drawn from the distribution.
        order: the order of the further candidates; default: one that draws from ``uniforms``.
        probs: exponentials of ``logp``, if available.
        uniforms: the source of all random numbers; default: ``generator``.
    """
    mass = Mass(logp, probs, knowledge.rejected)
    uniforms = uniforms if uniforms is not None else Uniforms(generator, logp.device)
    candidates = _Candidates(mass, order if order is not None else Order(uniforms), first)
    if estimator == "auto":
        peaked = float(mass.p.max()) >= GEOMETRIC_ABOVE * mass._left
        estimator = "geometric" if accepts > 2 or peaked else "recursive"
    if estimator == "geometric":
        return _geometric(mass, candidates, knowledge, uniforms, accepts, max_rejects)
    return _recursive(mass, candidates, knowledge, max_rejects)


class _Candidates:
    """Candidates in the order in which they are checked."""

    def __init__(self, mass: Mass, order: Order, first: int | None) -> None:
        self._mass = mass
        self._order = order
        self._first = first

    def next(self, unknown_to: Knowledge | None = None) -> int | None:
        """The next candidate, not among those that ``unknown_to`` knows to be accepted; None if there is none."""
        known = () if unknown_to is None else unknown_to.accepted
        position = self._first
        self._first = None
        if position is not None and self._mass.is_left(position):
            self._order.use(position)
            if position not in known:
                return position
        return self._order.next(self._mass, known)


def _check(position: int, mass: Mass, knowledge: Knowledge, rejections: int) -> bool:
    """Check a candidate, and remove from the mass what is rejected."""
    before = len(knowledge.rejected)
    accepted = knowledge.check(position, mass, rejections)
    for low, high in knowledge.rejected[before:]:
        mass.reject(low, high)
    return accepted


def _recursive(mass: Mass, candidates: _Candidates, knowledge: Knowledge, max_rejects: int | None) -> Draw:
    """The recursive estimator.

    After a rejection of the tokens ``D``, ``Z = q_D · 0 + (1 − q_D) Z'``. After an accept,
    ``Z = known + (1 − known) · 1(next unknown candidate is accepted)`` in expectation.

    ``known`` is the share of the remaining mass that is known to be accepted: the token itself (its ``q``, which is the
    published estimator) and everything else that its acceptance implies.
    """
    checks = rejections = 0
    while True:
        token = candidates.next()
        if token is None:
            return Draw(-1, -math.inf, checks, exhausted=True)
        if token not in knowledge.accepted:
            checks += 1
            if not _check(token, mass, knowledge, rejections):
                rejections += 1
                if rejections == max_rejects:
                    return Draw(-1, -math.inf, checks)
                continue
        log_weight = mass.log_left
        if max_rejects is not None and rejections == max_rejects - 1:
            return Draw(token, log_weight, checks)
        following = candidates.next(unknown_to=knowledge)
        known = min(1.0, float(mass.shares(knowledge.accepted).sum()))
        if following is None:
            return Draw(token, log_weight + _log(known), checks)
        # Nothing is drawn after this check, so nothing beyond its answer is worth finding out.
        if not _check(following, mass, knowledge, 0):
            log_weight += _log(known)
        return Draw(token, log_weight, checks + 1)


def _geometric(
    mass: Mass, candidates: _Candidates, knowledge: Knowledge, uniforms: Uniforms, accepts: int, max_rejects: int | None
) -> Draw:
    """The geometric estimator: draw with replacement until A accepts or the cap.

    ``Z ≈ (A − 1)/(A + B − 1)`` after A accepts and B rejections, and ``a/(a + B − 1)`` after a accepts if the cap came
    first. Draws of tokens that are known by then are counted without a check.
    """
    log_base = mass.log_left
    checks = accepted = rejected = 0
    failed_checks = 0
    token = -1
    while True:
        log_rest = mass.log_left - log_base
        if log_rest < 0:
            rejected += _failures(log_rest, uniforms)
        if max_rejects is not None and rejected >= max_rejects:
            rejected = max_rejects
            break
        chosen = _known(mass, knowledge, uniforms)
        if chosen is None:
            chosen = candidates.next(unknown_to=knowledge)
            if chosen is None and (not knowledge.accepted or mass.log_left == -math.inf):
                return Draw(-1, -math.inf, checks, exhausted=True)
            if chosen is None:  # everything left is known, and the shares fell short of 1 by a rounding error
                chosen = max(knowledge.accepted, key=lambda known: float(mass.p[known]))
            else:
                checks += 1
                if not _check(chosen, mass, knowledge, failed_checks):
                    rejected += 1
                    failed_checks += 1
                    continue
        accepted += 1
        token = chosen if token < 0 else token
        if accepted == accepts:
            break
    if not accepted:
        return Draw(-1, -math.inf, checks)
    counted = min(accepted, accepts - 1)
    return Draw(token, log_base + math.log(counted) - math.log(accepted + rejected - 1), checks)


def _known(mass: Mass, knowledge: Knowledge, uniforms: Uniforms) -> int | None:
    """A token that is known to be accepted, with the probability that a draw from the rest hits one; else None."""
    if not knowledge.accepted:
        return None
    u = uniforms.next()
    shares = mass.shares(knowledge.accepted).cumsum(0)
    if u >= shares[-1].item():
        return None
    return sorted(knowledge.accepted)[int(torch.searchsorted(shares, u, right=True))]


def _failures(log_success: float, uniforms: Uniforms) -> int:
    """Number of failures before the first success, which has the probability ``exp(log_success)``, below 1."""
    success = math.exp(log_success)
    log_failure = math.log1p(-success) if success < 1 else -math.inf
    if log_failure == 0.0:  # below the precision of a double: practically infinite
        return 2**62
    return min(2**62, int(math.log(uniforms.next()) / log_failure))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
