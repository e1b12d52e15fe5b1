"""A SMILES string as far as it is written: atoms, bonds, what is open, and whether it can still become a molecule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple


class Kind(NamedTuple):
    """What an atom is, as it is written.

    Args:
        valence: most that the orders of its bonds may come to, without the hydrogen that is written.
        is_aromatic: whether it is written in small letters.
        exact: orders of σ bonds that an aromatic atom must have at the end; 0: as they come.
        lends: whether an aromatic atom must have a double bond inside its ring, at that number of bonds.
    """

    valence: int
    is_aromatic: bool = False
    exact: int = 0
    lends: bool = False


_PLAIN = {"B": 3, "C": 4, "N": 3, "O": 2, "P": 5, "S": 6, "F": 1, "Cl": 1, "Br": 1, "I": 1}
_IN_BRACKETS = {
    "B": {"": 3, "-": 4}, "C": {"": 4, "+": 3, "-": 3}, "N": {"": 3, "+": 4, "-": 2}, "O": {"": 2, "+": 3, "-": 1},
    "P": {"": 5, "+": 4}, "S": {"": 6, "+": 3, "-": 1}, "Si": {"": 4}, "Se": {"": 6},
}  # fmt: skip
_AROMATIC = {
    "c": Kind(4, True, 0, True), "n": Kind(3, True, 0, True), "o": Kind(2, True, 2), "s": Kind(2, True, 2),
    "[nH]": Kind(2, True, 2), "[n+]": Kind(4, True, 3, True), "[nH+]": Kind(3, True, 2, True), "[n-]": Kind(2, True, 2),
    "[o+]": Kind(3, True, 2, True), "[s+]": Kind(3, True, 2, True), "[se]": Kind(2, True, 2),
}  # fmt: skip
BONDS = {"-": 1, "=": 2, "#": 3, "/": 1, "\\": 1}


@cache
def atoms() -> dict[str, Kind]:
    """Every atom that is admitted, by its spelling."""
    found = {symbol: Kind(valence) for symbol, valence in _PLAIN.items()} | _AROMATIC
    for symbol, charges in _IN_BRACKETS.items():
        for charge, valence in charges.items():
            for hydrogens in range(valence + 1):
                written = "" if not hydrogens else "H" if hydrogens == 1 else f"H{hydrogens}"
                for turn in ("", "@", "@@") if hydrogens < 2 and symbol in "CNPSSi" else ("",):
                    found[f"[{symbol}{turn}{written}{charge}]"] = Kind(valence - hydrogens)
    return found


@cache
def beginning(text: str) -> tuple[str, ...]:
    """Spellings of atoms that begin with ``text`` and are longer."""
    return tuple(name for name in atoms() if name.startswith(text) and name != text)


@dataclass(frozen=True)
class State:
    """Where a text stands. Atoms are numbered in their order.

    Args:
        kinds: of the atoms.
        used: the orders of each atom's bonds, those of open rings with it; an aromatic bond counts as 1.
        doubled: whether an atom has a double bond, or more, that is written.
        bonds: pairs of atoms, and whether the bond is an aromatic one.
        current: the atom that the next one is bound to; −1: none.
        branches: the atoms at which brackets are open.
        rings: number of each open ring → its atom, and the order of its bond, 0 where it is not said.
        bond: how the next bond is written; empty where it is not.
        last: what the text ends with: ``atom``, ``ring``, ``bond``, ``(`` or ``)``; empty: nothing is written.
    """

    kinds: tuple[Kind, ...] = ()
    used: tuple[int, ...] = ()
    doubled: tuple[bool, ...] = ()
    bonds: tuple[tuple[int, int, bool], ...] = ()
    current: int = -1
    branches: tuple[int, ...] = ()
    rings: tuple[tuple[str, int, int], ...] = ()
    bond: str = ""
    last: str = ""

    def free(self, atom: int, order: int = 1) -> int:
        """How many bonds of an order an atom can still take."""
        kind, used = self.kinds[atom], self.used[atom]
        if not kind.is_aromatic or self.doubled[atom]:
            return (kind.valence - used) // order
        if order > 1:  # as in c(=O)
            return int(kind.valence == 4 and not kind.exact and order == 2 and kind.valence - used >= 2)
        most = kind.exact or (kind.valence - 1 if kind.valence == 4 else kind.valence)
        return most - used

    def with_atom(self, name: str) -> State | None:
        """The text with an atom behind it."""
        kind, new, order = atoms()[name], len(self.kinds), BONDS.get(self.bond, 1)
        start = replace(
            self, kinds=(*self.kinds, kind), used=(*self.used, 0), doubled=(*self.doubled, False), current=new,
            last="atom", bond="",
        )  # fmt: skip
        return start if self.current < 0 else start._bound(self.current, new, order, bool(self.bond))

    def _bound(self, one: int, two: int, order: int, is_written: bool, reserved: int = 0) -> State | None:
        """With a bond; ``reserved`` of its order is used at ``one`` already."""
        is_aromatic = self.kinds[one].is_aromatic and self.kinds[two].is_aromatic
        if is_aromatic and order > 1:
            return None
        if self.free(two, order) < 1 or any({a, b} == {one, two} for a, b, _ in self.bonds):
            return None
        freed = self._using(one, -reserved) if reserved else self
        if freed.free(one, order) < 1:
            return None
        made = freed._using(one, order)._using(two, order)
        doubled = tuple(was or (order > 1 and atom in (one, two)) for atom, was in enumerate(made.doubled))
        return replace(made, bonds=(*made.bonds, (one, two, is_aromatic and not is_written)), doubled=doubled)

    def _using(self, atom: int, order: int) -> State:
        return replace(self, used=(*self.used[:atom], self.used[atom] + order, *self.used[atom + 1 :]))

    def with_ring(self, number: str) -> State | None:
        """The text with a ring opened or closed behind it."""
        if self.last not in ("atom", "ring", "bond") or self.current < 0 or (self.bond and self.last != "bond"):
            return None
        order = BONDS.get(self.bond, 0)
        after = replace(self, bond="", last="ring")
        opened = next(((atom, said) for name, atom, said in self.rings if name == number), None)
        if opened is None:
            if self.free(self.current, max(1, order)) < 1 or (order > 1 and self.kinds[self.current].is_aromatic):
                return None
            return replace(after, rings=(*self.rings, (number, self.current, order)))._using(
                self.current, max(1, order)
            )
        atom, said = opened
        if atom == self.current or (order and said and order != said):
            return None
        rings = tuple(ring for ring in self.rings if ring[0] != number)
        whole = max(1, order or said)
        return replace(after, rings=rings)._bound(atom, self.current, whole, bool(order or said), max(1, said))

    def with_sign(self, sign: str) -> State | None:
        """The text with a bond's sign or a bracket behind it."""
        if sign in BONDS:
            if self.last not in ("atom", "ring", "(", ")") or self.free(self.current, BONDS[sign]) < 1:
                return None
            # A ring cannot be closed behind a bracket.
            return replace(self, bond=sign, last="bond" if self.last in ("atom", "ring") else "branch bond")
        if sign == "(":
            if self.last not in ("atom", "ring", ")") or self.free(self.current) < 1:
                return None
            return replace(self, branches=(*self.branches, self.current), last="(")
        if not self.branches or self.last not in ("atom", "ring", ")"):
            return None
        return replace(self, current=self.branches[-1], branches=self.branches[:-1], last=")")

    def is_whole(self) -> bool:
        """Whether this is a molecule."""
        if self.rings or self.branches or self.last not in ("atom", "ring", ")"):
            return False
        return self._aromatic_part_holds(())

    def can_go_on(self) -> bool:
        """Whether something behind the text makes it a molecule."""
        if not self.kinds:
            return True
        if self.last in ("(", "bond", "branch bond"):  # something must come
            return any(state is not None and state.can_go_on() for state in self._continued())
        growing = tuple(dict.fromkeys(atom for atom in (self.current, *self.branches) if self.free(atom) > 0))
        if self.rings and not growing:
            return False
        return self._aromatic_part_holds(growing)

    def _continued(self) -> Iterator[State | None]:
        """The text with an atom, or the end of a ring, behind a bond or a bracket: one of each sort."""
        for name in ("C", "c", "O", "n"):
            yield self.with_atom(name)
        if self.last == "(":
            doubly = self.with_sign("=")
            yield doubly.with_atom("O") if doubly else None
        elif self.last == "bond":
            for number, _, _ in self.rings:
                yield self.with_ring(number)

    def _aromatic_part_holds(self, growing: tuple[int, ...]) -> bool:
        """Whether every aromatic atom is in an aromatic ring, and has a double bond where it must; or can come to it,
        by what grows from some atoms and from the open rings. All that is not written yet is one more vertex."""
        aromatic = [atom for atom, kind in enumerate(self.kinds) if kind.is_aromatic]
        if not aromatic:
            return True
        rest = len(self.kinds)
        edges = [(one, two) for one, two, is_aromatic in self.bonds if is_aromatic]
        edges += [(atom, rest) for atom in growing if self.kinds[atom].is_aromatic for _ in range(self.free(atom))]
        edges += [(atom, rest) for _, atom, said in self.rings if self.kinds[atom].is_aromatic and not said]
        in_rings = [edges[number] for number in _in_cycles(edges)]
        around: dict[int, set[int]] = {atom: set() for atom in aromatic}
        for one, two in in_rings:
            around.setdefault(one, set()).add(two)
            around.setdefault(two, set()).add(one)
        if not all(around[atom] for atom in aromatic):
            return False
        open_ends = {atom for atom in aromatic if rest in around[atom]}
        # What can still take a bond to something that is not aromatic, as n(C) or c(=O), may need no partner then.
        changing = {atom for atom in growing if not self.kinds[atom].exact}
        pairing = {atom for atom in aromatic if self._may_pair(atom)}
        must = sorted(pairing - open_ends - changing)
        short = {atom for atom in aromatic if self.kinds[atom].exact > self.used[atom]}
        if short - open_ends - set(growing):
            return False
        return _matched(must, {atom: sorted(around[atom] & (pairing | {rest})) for atom in pairing}, rest)

    def _may_pair(self, atom: int) -> bool:
        """Whether an aromatic atom may have a double bond inside its ring."""
        kind = self.kinds[atom]
        return kind.lends and not self.doubled[atom] and (bool(kind.exact) or self.used[atom] < kind.valence)


def _in_cycles(edges: list[tuple[int, int]]) -> Iterator[int]:
    """Numbers of the edges that are in a cycle: all but the bridges."""
    around: dict[int, list[tuple[int, int]]] = {}
    for number, (one, two) in enumerate(edges):
        around.setdefault(one, []).append((two, number))
        around.setdefault(two, []).append((one, number))
    entered: dict[int, int] = {}
    lowest: dict[int, int] = {}
    bridges: set[int] = set()
    for start in around:
        if start in entered:
            continue
        entered[start] = lowest[start] = len(entered)
        path = [(start, -1, iter(around[start]))]
        while path:
            vertex, came, rest = path[-1]
            for neighbour, number in rest:
                if number == came:
                    continue
                if neighbour in entered:
                    lowest[vertex] = min(lowest[vertex], entered[neighbour])
                else:
                    entered[neighbour] = lowest[neighbour] = len(entered)
                    path.append((neighbour, number, iter(around[neighbour])))
                    break
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    lowest[above] = min(lowest[above], lowest[vertex])
                    if lowest[vertex] > entered[above]:
                        bridges.add(came)
    return (number for number in range(len(edges)) if number not in bridges)


def _matched(must: list[int], around: dict[int, list[int]], rest: int) -> bool:
    """Whether every atom of ``must`` can have a partner of its own; ``rest`` is partner of as many as want."""
    waiting, taken = set(must), set[int]()

    def choices(atom: int) -> list[int]:
        return [other for other in around.get(atom, ()) if other == rest or other not in taken]

    def solved() -> bool:
        if not waiting:
            return True
        options = {atom: choices(atom) for atom in waiting}
        atom = min(options, key=lambda one: len(options[one]))
        for other in options[atom]:
            pair = {atom} if other == rest else {atom, other}
            gone = waiting & pair
            waiting.difference_update(gone)
            taken.update(pair)
            if solved():
                return True
            waiting.update(gone)
            taken.difference_update(pair)
        return False

    return solved()
