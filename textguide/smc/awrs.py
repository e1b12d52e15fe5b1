"""Adaptive weighted rejection sampling of one token (Lipkin et al., arXiv 2504.05410).

Given next-token distribution ``p`` and a yes-or-no constraint, draw ``x`` and a weight ``W`` with ``E[W · 1(x = t)] =
p(t)`` for every allowed token and 0 for every other one, so that ``E[W]`` is the mass ``Z`` that the constraint
leaves, asking the constraint about as few tokens as possible. Candidates are drawn without replacement.

What is known costs nothing: a token that is known to be rejected leaves the proposal, and the weight is multiplied by
the mass that is left; a token that is known to be accepted is not asked about. Which tokens a rejection takes along
(all those that start with the same bytes, say) may depend on anything that happened before; the estimators stay
unbiased.

The mass left is never computed as a difference of almost equal numbers: once little is left, it is summed anew over
the tokens that remain, in a scale of their own. So very unlikely constraints keep their true, tiny weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]

GEOMETRIC_ABOVE = 2 / 3
"""Largest probability from which on the geometric estimator asks less than the recursive one, which looks twice."""

_MISSES = 3  # draws in vain that cost as much as a new table
_RESUM = 0.25  # the share of the last sum below which subtraction is not trusted any more
_RESCALE = 1e-4


@dataclass(frozen=True)
class Draw:
    """One token and its weight.

    Args:
        token: position of the token in the distribution, or −1 where none was accepted.
        log_weight: log W; −inf where none was accepted.
        looks: candidates that the constraint was asked about.
        exhausted: no token at all is allowed (as opposed to a cap that was reached).
    """

    token: int
    log_weight: float
    looks: int
    exhausted: bool = False


class Knowledge:
    """What is known about the tokens of one distribution: spans of rejected positions and single accepted ones.

    This base class asks about every token by itself; :class:`textguide.smc.trie.TrieKnowledge` asks about bytes.

    Args:
        accepts: whether the token at a position is allowed.
        rejected: spans known in advance.
        accepted: positions known in advance.
    """

    def __init__(
        self, accepts: Callable[[int], bool] | None = None, rejected: list[Span] | None = None,
        accepted: set[int] | None = None,
    ) -> None:  # fmt: skip
        self._accepts = accepts
        self.rejected: list[Span] = list(rejected or [])
        self.accepted: set[int] = set(accepted or ())

    def look(self, position: int, mass: Mass, rejections: int) -> bool:
        """Ask about the token at ``position`` and note all that follows from the answer.

        Args:
            mass: what is left of the distribution, for deciding which questions are worth a call.
            rejections: how many candidates were rejected before this one.
        """
        assert self._accepts is not None
        if self._accepts(position):
            self.accepted.add(position)
            return True
        self.rejected.append((position, position + 1))
        return False


class Mass:
    """What is left of a distribution while tokens are rejected.

    Args:
        logp: log-probabilities (V,), normalised; −inf for tokens that cannot be drawn.
        probs: their exponentials (V,), if at hand.
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
        """The part of the mass left that lies in a span."""
        return float(self.p[low:high].sum(dtype=torch.float64)) / self._left if self._left > 0 else 0.0

    def shares(self, positions: set[int]) -> Tensor:
        """The part of the mass left on each of some positions, in ascending order of position, float64."""
        index = torch.tensor(sorted(positions), device=self.p.device)
        share = self.p[index].double()
        return share / self._left if self._left > 0 else torch.zeros_like(share)

    def reject(self, low: int, high: int) -> None:
        """Take a span out."""
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
        self._generator, self._device = generator, device
        self._block: list[float] = []

    def next(self) -> float:
        """One number."""
        if not self._block:
            block = torch.rand(64, generator=self._generator, device=self._device, dtype=torch.float64)
            self._block = block.clamp_min(1e-300).tolist()
        return self._block.pop()


class Order:
    """Positions drawn from what is left of a distribution, none of them twice: the order of Gumbel top-k, as far as
    asked for.

    A draw comes from a table of the distribution's running sums. Where it hits something that was given out or
    rejected since, it is repeated, which gives the distribution of the rest; after a few such misses the table is
    made anew.

    Args:
        uniforms: the randomness.
    """

    def __init__(self, uniforms: Uniforms) -> None:
        self._uniforms = uniforms
        self._given: set[int] = set()
        self._sums: Tensor | None = None

    def give(self, position: int) -> None:
        """Note a position that was given out by other means."""
        self._given.add(position)

    def next(self, mass: Mass, without: Collection[int] = ()) -> int | None:
        """The next position, or None where nothing is left.

        Args:
            mass: what is left of the distribution.
            without: positions that are passed over.
        """
        misses = 0
        while True:
            if self._sums is None or misses == _MISSES:
                left = mass.p.to(torch.float64, copy=True)
                left[torch.tensor([*self._given, *without], dtype=torch.long)] = 0.0
                self._sums = left.cumsum(0)
            total = self._sums[-1].item()
            if total <= 0:
                return None
            position = int(torch.searchsorted(self._sums, self._uniforms.next() * total, right=True))
            # Rounding may put the product on the total itself.
            out = position == len(self._sums) or position in self._given or position in without
            if not out and mass.is_left(position):
                self._given.add(position)
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
        knowledge: what is known, and whom to ask.
        generator: the randomness.
        estimator: ``recursive``, ``geometric``, or ``auto``: geometric where one token has 2/3 of the mass or more than
            two accepts are asked for.
        accepts: accepted draws that the geometric estimator waits for.
        max_rejects: give up at this many rejections, with weight 0; the weights of the others allow for it.
        first: the first candidate, where it was drawn from the distribution already.
        order: of the candidates behind it; default: one that draws from ``uniforms``.
        probs: exponentials of ``logp``, if at hand.
        uniforms: where all numbers come from; default: ``generator``.
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
    def __init__(self, mass: Mass, order: Order, first: int | None) -> None:
        self._mass, self._order, self._first = mass, order, first

    def next(self, unknown_to: Knowledge | None = None) -> int | None:
        """The next candidate among those left (and not known to be accepted), or None."""
        known = () if unknown_to is None else unknown_to.accepted
        position, self._first = self._first, None
        if position is not None and self._mass.is_left(position):
            self._order.give(position)
            if position not in known:
                return position
        return self._order.next(self._mass, known)


def _look(position: int, mass: Mass, knowledge: Knowledge, rejections: int) -> bool:
    before = len(knowledge.rejected)
    accepted = knowledge.look(position, mass, rejections)
    for low, high in knowledge.rejected[before:]:
        mass.reject(low, high)
    return accepted


def _recursive(mass: Mass, candidates: _Candidates, knowledge: Knowledge, max_rejects: int | None) -> Draw:
    """``Z = q_D · 0 + (1 − q_D) Z'`` behind a rejection that takes ``D`` along; behind an accept,
    ``Z = known + (1 − known) · 1(next unknown candidate is accepted)`` in expectation.

    ``known`` is the part of the mass left that is known to be accepted: the token itself (its ``q``, which is the
    published estimator) and whatever else its acceptance implies.
    """
    looks = rejections = 0
    while True:
        token = candidates.next()
        if token is None:
            return Draw(-1, -math.inf, looks, exhausted=True)
        if token not in knowledge.accepted:
            looks += 1
            if not _look(token, mass, knowledge, rejections):
                rejections += 1
                if rejections == max_rejects:
                    return Draw(-1, -math.inf, looks)
                continue
        log_weight = mass.log_left
        if max_rejects is not None and rejections == max_rejects - 1:
            return Draw(token, log_weight, looks)
        following = candidates.next(unknown_to=knowledge)
        known = min(1.0, float(mass.shares(knowledge.accepted).sum()))
        if following is None:
            return Draw(token, log_weight + _log(known), looks)
        # Nothing is drawn behind this look, so that it need not find out more than its answer.
        if not _look(following, mass, knowledge, 0):
            log_weight += _log(known)
        return Draw(token, log_weight, looks + 1)


def _geometric(
    mass: Mass, candidates: _Candidates, knowledge: Knowledge, uniforms: Uniforms, accepts: int, max_rejects: int | None
) -> Draw:
    """Drawing with replacement until A accepts or the cap: ``Z ≈ (A − 1)/(A + B − 1)`` behind A accepts and B
    rejections, ``a/(a + B − 1)`` where the cap came first.

    Draws that would fall on tokens that are known by then are counted, not asked about.
    """
    log_base = mass.log_left
    looks = accepted = rejected = refused = 0
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
                return Draw(-1, -math.inf, looks, exhausted=True)
            if chosen is None:  # all that is left is known, and the last share lost a rounding error
                chosen = max(knowledge.accepted, key=lambda known: float(mass.p[known]))
            else:
                looks += 1
                if not _look(chosen, mass, knowledge, refused):
                    rejected += 1
                    refused += 1
                    continue
        accepted += 1
        token = chosen if token < 0 else token
        if accepted == accepts:
            break
    if not accepted:
        return Draw(-1, -math.inf, looks)
    seen = min(accepted, accepts - 1)
    return Draw(token, log_base + math.log(seen) - math.log(accepted + rejected - 1), looks)


def _known(mass: Mass, knowledge: Knowledge, uniforms: Uniforms) -> int | None:
    """A token that is known to be accepted, with the probability that a draw from what is left hits one of them."""
    if not knowledge.accepted:
        return None
    u = uniforms.next()
    shares = mass.shares(knowledge.accepted).cumsum(0)
    if u >= shares[-1].item():
        return None
    return sorted(knowledge.accepted)[int(torch.searchsorted(shares, u, right=True))]


def _failures(log_success: float, uniforms: Uniforms) -> int:
    """Failures before the first success of probability ``exp(log_success)`` below 1."""
    success = math.exp(log_success)
    log_failure = math.log1p(-success) if success < 1 else -math.inf
    if log_failure == 0.0:  # too small for a double: any count is as good as infinite
        return 2**62
    return min(2**62, int(math.log(uniforms.next()) / log_failure))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
