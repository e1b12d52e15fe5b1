"""Which two requests of a vLLM engine belong together, and where they stand. Knows no vLLM.

A guided request, the *main request*, is decoded beside a *branch request*: a request of its own that reads the
negative prompt. The scheduler keeps :class:`Pairs`. In the worker, vLLM's first model runner reports to its processors
which rows are removed, added and moved (:class:`Rows`), and the second one which request indices are taken
(:class:`Indices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

MAIN, BRANCH = "main", "branch"

Payload = TypeVar("Payload")


@dataclass
class Member(Generic[Payload]):
    """One request in a worker's batch.

    Args:
        pair: id of the pair it belongs to.
        role: ``MAIN`` or ``BRANCH``.
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

    def pairs(self) -> list[tuple[int, int | None, Member[Payload]]]:
        """Every main request as (its row, the row of its branch request or None, the member), by row."""
        return couple((row, self.members[row]) for row in sorted(self.members))


class Indices(Generic[Payload]):
    """The request indices of vLLM's second model runner: each belongs to one request until another takes it."""

    def __init__(self) -> None:
        self.members: dict[int, Member[Payload]] = {}

    def add(self, index: int, member: Member[Payload] | None) -> None:
        """A request took ``index``; None for one that is not guided."""
        if member is None:
            self.members.pop(index, None)
        else:
            self.members[index] = member

    def pairs(self, indices: Sequence[int]) -> list[tuple[int, int | None, Member[Payload]]]:
        """Like :meth:`Rows.pairs` for a batch whose row ``i`` belongs to the request index ``indices[i]``.

        Indices that are not in the batch hold whichever request had them last, and count for nothing.
        """
        return couple((row, self.members[index]) for row, index in enumerate(indices) if index in self.members)


def couple(members: Any) -> list[tuple[int, int | None, Member[Any]]]:
    """Main requests with the rows of their branch requests, from (row, member) in ascending order of rows."""
    mains: list[tuple[int, Member[Any]]] = []
    branches: dict[str, int] = {}
    for row, member in members:
        if member.role == MAIN:
            mains.append((row, member))
        else:
            branches[member.pair] = row
    return [(row, branches.get(member.pair), member) for row, member in mains]


@dataclass
class Pair:
    """A guided request as the scheduler sees it.

    Args:
        main: id of the user's request, and of the pair.
        branch: id of the request that reads the negative prompt; None while there is none.
        state: what the scheduler keeps for it.
        spawned: how many branch requests it has had.
    """

    main: str
    branch: str | None = None
    state: Any = None
    spawned: int = 0

    def partner(self, request: str) -> str | None:
        """The id of the other request of the pair."""
        return self.branch if request == self.main else self.main


@dataclass
class Pairs:
    """All pairs of an engine, by the ids of either of their requests."""

    by_main: dict[str, Pair] = field(default_factory=dict)
    by_branch: dict[str, Pair] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_main)

    def __iter__(self) -> Iterator[Pair]:
        return iter(list(self.by_main.values()))

    def of(self, request: str) -> Pair | None:
        """The pair that ``request`` belongs to."""
        return self.by_main.get(request) or self.by_branch.get(request)

    def is_branch(self, request: str) -> bool:
        """Whether ``request`` is a branch request."""
        return request in self.by_branch

    def add(self, main: str, state: Any = None) -> Pair:
        """A new pair that has no branch request yet."""
        pair = self.by_main[main] = Pair(main, state=state)
        return pair

    def spawn(self, pair: Pair) -> str:
        """The id of a new branch request of ``pair``."""
        assert pair.branch is None
        pair.branch = f"{pair.main}/branch-{pair.spawned}"
        pair.spawned += 1
        self.by_branch[pair.branch] = pair
        return pair.branch

    def dismiss(self, pair: Pair) -> str | None:
        """``pair`` has no branch request any more; the id of the one it had."""
        branch, pair.branch = pair.branch, None
        if branch is not None:
            del self.by_branch[branch]
        return branch

    def drop(self, pair: Pair) -> str | None:
        """``pair`` is gone; the id of the branch request it had."""
        del self.by_main[pair.main]
        return self.dismiss(pair)
