"""How many tokens each running request gets in a step, so that no request of a group ever writes alone. Knows no vLLM.

A request writes a token in the step that reads its last known one. All requests of a group have to do that in the same
step. Until they can, each reads up to the last token but one and waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Load:
    """A running plain request, or the running requests of a group.

    Args:
        running: the tokens that each has to read before it writes; 0 while its token is in flight.
        absent: the requests of the group that are not running, with the tokens that each would have to read if it were
            admitted in this step; None if not all of them can be.
    """

    running: Mapping[str, int]
    absent: Mapping[str, int] | None = field(default_factory=dict)

    @property
    def is_alone(self) -> bool:
        """Whether it waits for no other request."""
        return self.absent is not None and len(self.running) + len(self.absent) == 1


@dataclass(frozen=True)
class Plan:
    """Tokens for a step.

    Args:
        tokens: for every running request.
        arrivals: requests that have to be admitted in this step, with their tokens; room is kept for them.
        left: tokens that are not assigned.
    """

    tokens: dict[str, int]
    arrivals: dict[str, int]
    left: int


def share(loads: Sequence[Load], budget: int, longest: int = 0) -> Plan:
    """Share a step's token budget among running requests, first come, first served.

    Args:
        loads: in the order in which the engine serves them.
        budget: tokens of the step.
        longest: the most tokens that one request may read in a step; 0: no such limit.
    """
    tokens: dict[str, int] = {}
    arrivals: dict[str, int] = {}
    left = budget
    for load in loads:
        if not load.is_alone and load.absent is not None:
            together = {**load.running, **load.absent}
            if _can_write(together, left, longest):
                tokens |= load.running
                arrivals |= load.absent
                left -= sum(together.values())
                continue
        # A request of a group that cannot write in this step keeps its last token unread.
        spared = 0 if load.is_alone else 1
        for request, unread in load.running.items():
            count = unread - spared
            tokens[request] = max(0, min(count, left, longest or count))
            left -= tokens[request]
    return Plan(tokens, arrivals, left)


def _can_write(unread: Mapping[str, int], left: int, longest: int) -> bool:
    """Whether all requests of a group can read everything in this step."""
    least = min(unread.values())
    most = max(unread.values())
    # With steps in flight, either all of them have written a token already, or none has.
    same_step = least > 0 or most == 0
    return same_step and sum(unread.values()) <= left and most <= (longest or left)


def too_large(
    lengths: Sequence[int], places: int | None, budget: int | None, blocks: int | None, block_size: int
) -> str | None:
    """Why the requests of a group would never fit an engine at the same time, as a clause; None if they do.

    Args:
        lengths: the most tokens of each.
        places: requests that may run at the same time; None: not known, here and below.
        budget: tokens of a step.
        blocks: of the cache.
        block_size: tokens of a block.
    """
    size = len(lengths)
    if places is not None and size > places:
        return f"a main request with {size - 1} branch requests takes {size} places, and max_num_seqs is {places}"
    if budget is not None and size > budget:
        return f"its {size} requests take {size} tokens per step, and max_num_batched_tokens is {budget}"
    needed = sum(-(-length // block_size) for length in lengths)
    if blocks is not None and needed > blocks:
        return (
            f"its {size} requests may need {needed * block_size} tokens of cache, and there is room for "
            f"{blocks * block_size}; lower max_tokens, or shorten the prompts"
        )
    return None
