"""Which two requests of a vLLM engine belong together, and where they stand. Knows no vLLM.

A guided request, the *leader*, is decoded beside a *shadow*: a request of its own that reads the negative prompt. The
scheduler keeps :class:`Pairs`. In the worker, vLLM's first model runner tells processors of rows that are removed,
added and moved (:class:`Rows`), the second one of slots that are taken (:class:`Slots`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

LEADER, SHADOW = "leader", "shadow"

Payload = TypeVar("Payload")


@dataclass
class Member(Generic[Payload]):
    """One request in a worker's batch.

    Args:
        pair: id of the pair it belongs to.
        role: ``LEADER`` or ``SHADOW``.
        payload: what its processor keeps for it.
    """

    pair: str
    role: str
    payload: Payload


class Rows(Generic[Payload]):
    """The rows of a persistent batch: what vLLM's first model runner reports, as a map from row to member."""

    def __init__(self) -> None:
        self.members: dict[int, Member[Payload]] = {}

    def remove(self, row: int) -> None:
        """The request in ``row`` left the batch."""
        self.members.pop(row, None)

    def add(self, row: int, member: Member[Payload] | None) -> None:
        """A request entered ``row``, in place of whatever stood there; None for one that is not guided."""
        if member is None:
            self.members.pop(row, None)
        else:
            self.members[row] = member

    def move(self, source: int, target: int, swap: bool) -> None:
        """The request in ``source`` moved to ``target``; with ``swap`` the one there moved to ``source``."""
        moved, met = self.members.pop(source, None), self.members.pop(target, None)
        if moved is not None:
            self.members[target] = moved
        if swap and met is not None:
            self.members[source] = met

    def leaders(self) -> list[tuple[int, int | None, Member[Payload]]]:
        """Every leader as (its row, the row of its shadow or None, the member), by row."""
        return couple((row, self.members[row]) for row in sorted(self.members))


class Slots(Generic[Payload]):
    """The slots of vLLM's second model runner: a slot belongs to one request until another takes it."""

    def __init__(self) -> None:
        self.members: dict[int, Member[Payload]] = {}

    def add(self, slot: int, member: Member[Payload] | None) -> None:
        """A request took ``slot``; None for one that is not guided."""
        if member is None:
            self.members.pop(slot, None)
        else:
            self.members[slot] = member

    def leaders(self, slots: Sequence[int]) -> list[tuple[int, int | None, Member[Payload]]]:
        """Like :meth:`Rows.leaders` for a batch whose row ``i`` belongs to slot ``slots[i]``.

        Slots that are not in the batch hold whoever had them last, and count for nothing.
        """
        return couple((row, self.members[slot]) for row, slot in enumerate(slots) if slot in self.members)


def couple(members: Any) -> list[tuple[int, int | None, Member[Any]]]:
    """Leaders with the rows of their shadows, from (row, member) in ascending order of rows."""
    leaders: list[tuple[int, Member[Any]]] = []
    shadows: dict[str, int] = {}
    for row, member in members:
        if member.role == LEADER:
            leaders.append((row, member))
        else:
            shadows[member.pair] = row
    return [(row, shadows.get(member.pair), member) for row, member in leaders]


@dataclass
class Pair:
    """A guided request as the scheduler sees it.

    Args:
        leader: id of the user's request, and of the pair.
        shadow: id of the request that reads the negative prompt; None while there is none.
        state: what the scheduler keeps for it.
        spawned: how many shadows it has had.
    """

    leader: str
    shadow: str | None = None
    state: Any = None
    spawned: int = 0

    def partner(self, request: str) -> str | None:
        """The id of the other one."""
        return self.shadow if request == self.leader else self.leader


@dataclass
class Pairs:
    """All pairs of an engine, by the ids of either of their requests."""

    by_leader: dict[str, Pair] = field(default_factory=dict)
    by_shadow: dict[str, Pair] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_leader)

    def __iter__(self) -> Iterator[Pair]:
        return iter(list(self.by_leader.values()))

    def of(self, request: str) -> Pair | None:
        """The pair that ``request`` belongs to."""
        return self.by_leader.get(request) or self.by_shadow.get(request)

    def is_shadow(self, request: str) -> bool:
        """Whether ``request`` is a shadow."""
        return request in self.by_shadow

    def add(self, leader: str, state: Any = None) -> Pair:
        """A new pair that has no shadow yet."""
        pair = self.by_leader[leader] = Pair(leader, state=state)
        return pair

    def spawn(self, pair: Pair) -> str:
        """The id of a new shadow of ``pair``."""
        assert pair.shadow is None
        pair.shadow = f"{pair.leader}/shadow-{pair.spawned}"
        pair.spawned += 1
        self.by_shadow[pair.shadow] = pair
        return pair.shadow

    def dismiss(self, pair: Pair) -> str | None:
        """``pair`` has no shadow any more; the id of the one it had."""
        shadow, pair.shadow = pair.shadow, None
        if shadow is not None:
            del self.by_shadow[shadow]
        return shadow

    def drop(self, pair: Pair) -> str | None:
        """``pair`` is gone; the id of the shadow it had."""
        del self.by_leader[pair.leader]
        return self.dismiss(pair)
