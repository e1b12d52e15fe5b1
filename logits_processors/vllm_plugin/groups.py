"""Which requests of a vLLM engine belong together. Knows no vLLM.

A guided request, the *main request*, is decoded beside its *branch requests*: requests of their own, each of which
reads what one branch of the guidance reads. The scheduler keeps :class:`Groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


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
