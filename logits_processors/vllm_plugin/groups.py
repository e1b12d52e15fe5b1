"""Which requests of a vLLM engine belong together, and where they stand. Knows no vLLM.

A guided request, the *main request*, is decoded beside its *branch requests*: requests of their own, each of which
reads what one branch of the guidance reads. The scheduler keeps :class:`Groups`. In the worker, vLLM's first model
runner reports to its processors which rows are removed, added and moved (:class:`Rows`), and the second one which
request indices are taken (:class:`Indices`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

MAIN = 0
"""The place of the main request in its group; branch requests have the places 1, 2, …"""

Payload = TypeVar("Payload")


@dataclass
class Member(Generic[Payload]):
    """One request in a worker's batch.

    Args:
        group: id of the group that it belongs to.
        place: ``MAIN``, or the number of the branch request.
        payload: what its processor keeps for it.
    """

    group: str
    place: int
    payload: Payload


class Standing(NamedTuple):
    """The rows of a group whose main request is in the batch.

    Args:
        row: of the main request.
        branches: of the branch requests that are there, by their places.
        member: the main request.
    """

    row: int
    branches: tuple[int, ...]
    member: Member[Any]


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

    def groups(self) -> list[Standing]:
        """Where every group stands whose main request is there, by its row."""
        return gather((row, self.members[row]) for row in sorted(self.members))


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

    def groups(self, indices: Sequence[int]) -> list[Standing]:
        """Like :meth:`Rows.groups` for a batch whose row ``i`` belongs to the request index ``indices[i]``.

        Indices that are not in the batch hold whichever request had them last, and count for nothing.
        """
        return gather((row, self.members[index]) for row, index in enumerate(indices) if index in self.members)


def gather(members: Iterable[tuple[int, Member[Any]]]) -> list[Standing]:
    """Groups by their main requests, from (row, member) in ascending order of rows."""
    mains: list[tuple[int, Member[Any]]] = []
    branches: dict[str, dict[int, int]] = {}
    for row, member in members:
        if member.place == MAIN:
            mains.append((row, member))
        else:
            branches.setdefault(member.group, {})[member.place] = row
    found = []
    for row, member in mains:
        rows = branches.get(member.group, {})
        found.append(Standing(row, tuple(rows[place] for place in sorted(rows)), member))
    return found


@dataclass
class Group:
    """A guided request as the scheduler sees it.

    Args:
        main: id of the user's request, and of the group.
        branches: ids of the branch requests, in the order of their places; empty while there are none.
        state: what the scheduler keeps for it.
        spawned: how often it got branch requests.
    """

    main: str
    branches: tuple[str, ...] = ()
    state: Any = None
    spawned: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of its requests, the main one first."""
        return (self.main, *self.branches)


@dataclass
class Groups:
    """All groups of an engine, by the ids of their requests."""

    by_main: dict[str, Group] = field(default_factory=dict)
    by_branch: dict[str, Group] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_main)

    def __iter__(self) -> Iterator[Group]:
        return iter(list(self.by_main.values()))

    def of(self, request: str) -> Group | None:
        """The group that ``request`` belongs to."""
        return self.by_main.get(request) or self.by_branch.get(request)

    def is_branch(self, request: str) -> bool:
        """Whether ``request`` is a branch request."""
        return request in self.by_branch

    def add(self, main: str, state: Any = None) -> Group:
        """A new group that has no branch requests yet."""
        group = self.by_main[main] = Group(main, state=state)
        return group

    def spawn(self, group: Group, count: int) -> tuple[str, ...]:
        """The ids of ``count`` new branch requests of ``group``, which must have none."""
        assert not group.branches
        names = tuple(f"{group.main}/branch-{group.spawned}-{place}" for place in range(1, count + 1))
        group.branches, group.spawned = names, group.spawned + 1
        self.by_branch.update(dict.fromkeys(names, group))
        return names

    def enlist(self, group: Group, names: tuple[str, ...]) -> None:
        """``group`` has these branch requests too."""
        group.branches += names
        self.by_branch.update(dict.fromkeys(names, group))

    def strike(self, group: Group, names: tuple[str, ...]) -> None:
        """``group`` has these branch requests no longer."""
        group.branches = tuple(branch for branch in group.branches if branch not in names)
        for name in names:
            del self.by_branch[name]

    def dismiss(self, group: Group) -> tuple[str, ...]:
        """``group`` has no branch requests any more; the ids of those that it had."""
        branches, group.branches = group.branches, ()
        for branch in branches:
            del self.by_branch[branch]
        return branches

    def drop(self, group: Group) -> tuple[str, ...]:
        """``group`` is gone; the ids of the branch requests that it had."""
        del self.by_main[group.main]
        return self.dismiss(group)
