"""Rows of a worker's batch that belong to guided requests, by group. Knows no vLLM.

vLLM's first model runner reports to its processors which rows are removed, added and moved (:class:`Rows`), and the
second one which request indices are in use (:class:`Indices`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from .requests import MAIN

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


class GroupRows(NamedTuple):
    """The rows of a group whose main request is in the batch.

    Args:
        row: of the main request.
        branches: rows of the branch requests that are in the batch, by their places.
        member: the main request.
    """

    row: int
    branches: tuple[int, ...]
    member: Member[Any]


class Rows(Generic[Payload]):
    """The rows of a persistent batch, as vLLM's first model runner reports their changes."""

    def __init__(self) -> None:
        self.members: dict[int, Member[Payload]] = {}

    def remove(self, row: int) -> None:
        """The request in ``row`` left the batch."""
        self.members.pop(row, None)

    def add(self, row: int, member: Member[Payload] | None) -> None:
        """A request entered ``row`` and replaced the one that was there; None for one that is not guided."""
        if member is None:
            self.members.pop(row, None)
        else:
            self.members[row] = member

    def move(self, source: int, target: int, swap: bool) -> None:
        """The request in ``source`` moved to ``target``; with ``swap`` the one there moved to ``source``."""
        moved = self.members.pop(source, None)
        replaced = self.members.pop(target, None)
        if moved is not None:
            self.members[target] = moved
        if swap and replaced is not None:
            self.members[source] = replaced

    def groups(self) -> list[GroupRows]:
        """The groups whose main requests are in the batch, by the rows of these."""
        return gather((row, self.members[row]) for row in sorted(self.members))


class Indices(Generic[Payload]):
    """The request indices of vLLM's second model runner: each belongs to a request until another one gets it."""

    def __init__(self) -> None:
        self.members: dict[int, Member[Payload]] = {}

    def add(self, index: int, member: Member[Payload] | None) -> None:
        """A request got ``index``; None for one that is not guided."""
        if member is None:
            self.members.pop(index, None)
        else:
            self.members[index] = member

    def groups(self, indices: Sequence[int]) -> list[GroupRows]:
        """The groups of a batch whose row ``i`` belongs to the request index ``indices[i]``.

        Indices that are not in the batch hold whichever request had them last, and are ignored.
        """
        return gather((row, self.members[index]) for row, index in enumerate(indices) if index in self.members)


def gather(members: Iterable[tuple[int, Member[Any]]]) -> list[GroupRows]:
    """Groups by their main requests, from (row, member) in ascending order of rows."""
    mains: list[tuple[int, Member[Any]]] = []
    branches: dict[str, dict[int, int]] = {}
    for row, member in members:
        if member.place == MAIN:
            mains.append((row, member))
        else:
            branches.setdefault(member.group, {})[member.place] = row
    groups = []
    for row, member in mains:
        rows = branches.get(member.group, {})
        groups.append(GroupRows(row, tuple(rows[place] for place in sorted(rows)), member))
    return groups
