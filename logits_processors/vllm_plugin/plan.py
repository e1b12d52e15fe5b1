"""How many tokens each running request gets in a step, so that no half of a pair ever writes alone. Knows no vLLM.

A request writes a token in the step that reads its last known one. Both halves of a pair have to do that in the same
step: until they can, each reads up to the last token but one and waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """A running request.

    Args:
        request: its id.
        remaining: tokens it has yet to read before it writes.
        partner: id of the other half; None for a request that stands alone.
        arriving: where the partner is not running: how many tokens it would have to read if it were admitted in this
            step; None where it cannot be.
    """

    request: str
    remaining: int
    partner: str | None = None
    arriving: int | None = None


@dataclass(frozen=True)
class Plan:
    """Tokens for a step.

    Args:
        tokens: for every running request.
        arrivals: partners that have to be admitted in this step, with their tokens; room is kept for them.
        left: tokens that nobody has a claim to.
    """

    tokens: dict[str, int]
    arrivals: dict[str, int]
    left: int


def share(loads: Sequence[Load], budget: int, longest: int = 0) -> Plan:
    """Share a step's token budget among running requests, first come, first served.

    Args:
        loads: running requests in the order in which the engine serves them.
        budget: tokens of the step.
        longest: the most tokens that one request may read in a step; 0: no such bound.
    """
    by_id = {load.request: load for load in loads}
    tokens: dict[str, int] = {}
    arrivals: dict[str, int] = {}
    left = budget

    def most(wanted: int) -> int:
        return max(0, min(wanted, left, longest or wanted))

    for load in loads:
        if load.request in tokens:
            continue
        partner = by_id.get(load.partner) if load.partner is not None else None
        if load.partner is None:
            tokens[load.request] = most(load.remaining)
            left -= tokens[load.request]
            continue
        other = partner.remaining if partner is not None else load.arriving
        fits = other is not None and load.remaining + other <= left
        if fits and longest:
            fits = max(load.remaining, other or 0) <= longest
        if fits:
            assert other is not None
            tokens[load.request] = load.remaining
            (tokens if partner is not None else arrivals)[load.partner] = other
            left -= load.remaining + other
            continue
        tokens[load.request] = most(load.remaining - 1)
        left -= tokens[load.request]
        if partner is not None:
            tokens[partner.request] = most(partner.remaining - 1)
            left -= tokens[partner.request]
    return Plan(tokens, arrivals, left)
