"""The state of a SMILES string: its atoms and bonds, what is open, and whether it can still become a molecule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of atom, as it is spelled.

    Args:
        valence: the largest sum of the orders of its bonds; hydrogens that are written out are subtracted already.
        is_aromatic: whether it is written in small letters.
        exact: the sum of the orders of σ bonds that an aromatic atom must have at the end; 0: any.
        pairs: whether an aromatic atom must have a double bond inside its ring, at that number of bonds.
    """

    valence: int
    is_aromatic: bool = False
    exact: int = 0
    pairs: bool = False


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
_HYDROGENS = ("", "H", "H2", "H3", "H4", "H5", "H6")
BONDS = {"-": 1, "=": 2, "#": 3, "/": 1, "\\": 1}


@cache
def atoms() -> dict[str, Kind]:
    """Every supported atom, by its spelling."""
    kinds = {symbol: Kind(valence) for symbol, valence in _PLAIN.items()} | _AROMATIC
    for symbol, charges in _IN_BRACKETS.items():
        for charge, valence in charges.items():
            for hydrogens in range(valence + 1):
                # An atom with two hydrogens is no stereocentre, and neither are those of the other elements.
                is_centre = hydrogens < 2 and symbol in "CNPSSi"
                for chirality in ("", "@", "@@") if is_centre else ("",):
                    spelling = f"[{symbol}{chirality}{_HYDROGENS[hydrogens]}{charge}]"
                    kinds[spelling] = Kind(valence - hydrogens)
    return kinds


@cache
def beginning(text: str) -> tuple[str, ...]:
    """Spellings of atoms that start with ``text`` and are longer."""
    return tuple(name for name in atoms() if name.startswith(text) and name != text)


@dataclass(frozen=True)
class State:
    """The state after a text. Atoms are numbered in the order of the text.

    Args:
        kinds: the kinds of the atoms.
        used: for each atom the sum of the orders of its bonds, open rings included; an aromatic bond counts as 1.
        doubled: for each atom whether a double or triple bond of it is written.
        bonds: pairs of atoms, and whether the bond is aromatic.
        current: the atom that the next one is bound to; −1: none.
        branches: the atoms at which brackets are open.
        rings: for each open ring its number, its atom and the order of its bond, which is 0 if it is not written.
        bond: the sign of the next bond; empty if it is not written.
        last: what the text ends with: ``atom``, ``ring``, ``bond`` (after an atom or ring), ``branch bond`` (after a
            bracket), ``(`` or ``)``; empty at the start of the text.
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
        """The number of bonds of an order that an atom can still have."""
        kind = self.kinds[atom]
        used = self.used[atom]
        if not kind.is_aromatic or self.doubled[atom]:
            return (kind.valence - used) // order
        if order > 1:  # as in c(=O)
            return int(kind.valence == 4 and not kind.exact and order == 2 and kind.valence - used >= 2)
        if kind.exact:
            return kind.exact - used
        # An aromatic carbon needs one bond for the double bond of its ring.
        return (kind.valence - 1 if kind.valence == 4 else kind.valence) - used

    def with_atom(self, name: str) -> State | None:
        """The state after one more atom; None if it is not possible."""
        new = len(self.kinds)
        state = replace(
            self,
            kinds=(*self.kinds, atoms()[name]),
            used=(*self.used, 0),
            doubled=(*self.doubled, False),
            current=new,
            last="atom",
            bond="",
        )
        if self.current < 0:
            return state
        return state._with_bond(self.current, new, BONDS.get(self.bond, 1), bool(self.bond))

    def _with_bond(self, one: int, two: int, order: int, is_written: bool, reserved: int = 0) -> State | None:
        """The state with a bond between two atoms; ``reserved`` of its order is counted at ``one`` already."""
        is_aromatic = self.kinds[one].is_aromatic and self.kinds[two].is_aromatic
        if is_aromatic and order > 1:
            return None
        if self.free(two, order) < 1 or any({a, b} == {one, two} for a, b, _ in self.bonds):
            return None
        freed = self._using(one, -reserved) if reserved else self
        if freed.free(one, order) < 1:
            return None
        state = freed._using(one, order)._using(two, order)
        bonds = (*state.bonds, (one, two, is_aromatic and not is_written))
        doubled = tuple(was or (order > 1 and atom in (one, two)) for atom, was in enumerate(state.doubled))
        return replace(state, bonds=bonds, doubled=doubled)

    def _using(self, atom: int, order: int) -> State:
        return replace(self, used=(*self.used[:atom], self.used[atom] + order, *self.used[atom + 1 :]))

    def with_ring(self, number: str) -> State | None:
        """The state after a ring digit, which opens a ring or closes it; None if it is not possible."""
        if self.last not in ("atom", "ring", "bond") or self.current < 0 or (self.bond and self.last != "bond"):
            return None
        for name, atom, opening_order in self.rings:
            if name == number:
                return self._closing_ring(number, atom, opening_order)
        return self._opening_ring(number)

    def _opening_ring(self, number: str) -> State | None:
        order = BONDS.get(self.bond, 0)
        if self.free(self.current, max(1, order)) < 1 or (order > 1 and self.kinds[self.current].is_aromatic):
            return None
        rings = (*self.rings, (number, self.current, order))
        return replace(self, bond="", last="ring", rings=rings)._using(self.current, max(1, order))

    def _closing_ring(self, number: str, atom: int, opening_order: int) -> State | None:
        """Close the ring that ``atom`` opened; the bond may be written at either end, and must agree if at both."""
        order = BONDS.get(self.bond, 0)
        if atom == self.current or (order and opening_order and order != opening_order):
            return None
        rings = tuple(ring for ring in self.rings if ring[0] != number)
        state = replace(self, bond="", last="ring", rings=rings)
        written = order or opening_order
        return state._with_bond(atom, self.current, max(1, written), bool(written), max(1, opening_order))

    def with_sign(self, sign: str) -> State | None:
        """The state after the sign of a bond or a bracket; None if it is not possible."""
        if sign in BONDS:
            if self.last not in ("atom", "ring", "(", ")") or self.free(self.current, BONDS[sign]) < 1:
                return None
            # A ring digit may follow a bond after an atom, but not one after a bracket.
            return replace(self, bond=sign, last="bond" if self.last in ("atom", "ring") else "branch bond")
        if sign == "(":
            if self.last not in ("atom", "ring", ")") or self.free(self.current) < 1:
                return None
            return replace(self, branches=(*self.branches, self.current), last="(")
        if not self.branches or self.last not in ("atom", "ring", ")"):
            return None
        return replace(self, current=self.branches[-1], branches=self.branches[:-1], last=")")

    def is_whole(self) -> bool:
        """Whether the text is a molecule."""
        if self.rings or self.branches or self.last not in ("atom", "ring", ")"):
            return False
        return self._aromatic_atoms_fit(())

    def is_prefix(self) -> bool:
        """Whether some continuation of the text is a molecule."""
        if not self.kinds:
            return True
        if self.last in ("(", "bond", "branch bond"):  # an atom or a ring digit must follow
            return any(state is not None and state.is_prefix() for state in self._continuations())
        growing = tuple(dict.fromkeys(atom for atom in (self.current, *self.branches) if self.free(atom) > 0))
        if self.rings and not growing:
            return False
        return self._aromatic_atoms_fit(growing)

    def _continuations(self) -> Iterator[State | None]:
        """The states after one of each kind of atom or ring digit that may follow a bond or a bracket."""
        for name in ("C", "c", "O", "n"):
            yield self.with_atom(name)
        if self.last == "(":
            with_double_bond = self.with_sign("=")
            yield with_double_bond.with_atom("O") if with_double_bond else None
        elif self.last == "bond":
            for number, _, _ in self.rings:
                yield self.with_ring(number)

    def _aromatic_atoms_fit(self, growing: tuple[int, ...]) -> bool:
        """Whether the aromatic atoms have a Kekulé structure, or can get one.

        Every aromatic atom must be in an aromatic ring, and have a double bond there if it needs one. Everything that
        is not written yet is one more vertex, ``rest``, to which the growing atoms and the open rings have edges.

        Args:
            growing: the atoms at which the text can be continued.
        """
        aromatic = [atom for atom, kind in enumerate(self.kinds) if kind.is_aromatic]
        if not aromatic:
            return True
        rest = len(self.kinds)
        neighbours = self._ring_neighbours(aromatic, growing, rest)
        if not all(neighbours[atom] for atom in aromatic):
            return False
        open_ended = {atom for atom in aromatic if rest in neighbours[atom]}
        missing_bonds = {atom for atom in aromatic if self.kinds[atom].exact > self.used[atom]}
        if missing_bonds - open_ended - set(growing):
            return False
        return self._can_pair(aromatic, neighbours, growing, rest)

    def _can_pair(
        self, aromatic: list[int], neighbours: dict[int, set[int]], growing: tuple[int, ...], rest: int
    ) -> bool:
        """Whether the aromatic atoms that need a double bond inside their ring can have one."""
        # An atom that can still get a bond outside of the aromatic system, as n(C) or c(=O), may then need no partner.
        optional = {atom for atom in growing if not self.kinds[atom].exact}
        pairing = {atom for atom in aromatic if self._may_pair(atom)}
        partners = {atom: sorted(neighbours[atom] & (pairing | {rest})) for atom in pairing}
        open_ended = {atom for atom in aromatic if rest in neighbours[atom]}
        return _has_matching(sorted(pairing - open_ended - optional), partners, rest)

    def _ring_neighbours(self, aromatic: list[int], growing: tuple[int, ...], rest: int) -> dict[int, set[int]]:
        """For each aromatic atom its neighbours in aromatic rings that are closed or can be."""
        edges = [(one, two) for one, two, is_aromatic in self.bonds if is_aromatic]
        for atom in growing:
            if self.kinds[atom].is_aromatic:
                edges += [(atom, rest)] * self.free(atom)
        for _, atom, order in self.rings:
            if self.kinds[atom].is_aromatic and not order:
                edges.append((atom, rest))
        neighbours: dict[int, set[int]] = {atom: set() for atom in aromatic}
        for number in _in_cycles(edges):
            one, two = edges[number]
            neighbours.setdefault(one, set()).add(two)
            neighbours.setdefault(two, set()).add(one)
        return neighbours

    def _may_pair(self, atom: int) -> bool:
        """Whether an aromatic atom may have a double bond inside its ring."""
        kind = self.kinds[atom]
        return kind.pairs and not self.doubled[atom] and (bool(kind.exact) or self.used[atom] < kind.valence)


def _in_cycles(edges: list[tuple[int, int]]) -> Iterator[int]:
    """The numbers of the edges that are part of a cycle: all but the bridges.

    A depth-first search, with a stack of its own since molecules may be long. An edge is a bridge if no edge from below
    it leads above it (Tarjan).
    """
    incident: dict[int, list[tuple[int, int]]] = {}
    for number, (one, two) in enumerate(edges):
        incident.setdefault(one, []).append((two, number))
        incident.setdefault(two, []).append((one, number))
    entered: dict[int, int] = {}
    lowest: dict[int, int] = {}
    bridges: set[int] = set()
    for start in incident:
        if start in entered:
            continue
        entered[start] = lowest[start] = len(entered)
        path = [(start, -1, iter(incident[start]))]
        while path:
            vertex, entry, remaining = path[-1]
            for neighbour, number in remaining:
                if number == entry:
                    continue
                if neighbour in entered:
                    lowest[vertex] = min(lowest[vertex], entered[neighbour])
                else:
                    entered[neighbour] = lowest[neighbour] = len(entered)
                    path.append((neighbour, number, iter(incident[neighbour])))
                    break
            else:
                path.pop()
                if path:
                    parent = path[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[vertex])
                    if lowest[vertex] > entered[parent]:
                        bridges.add(entry)
    return (number for number in range(len(edges)) if number not in bridges)


def _has_matching(required: list[int], partners: dict[int, list[int]], rest: int) -> bool:
    """Whether every required atom can have its own partner; ``rest`` can be the partner of any number of atoms."""
    waiting = set(required)
    taken = set[int]()

    def choices(atom: int) -> list[int]:
        return [other for other in partners.get(atom, ()) if other == rest or other not in taken]

    def is_solvable() -> bool:
        if not waiting:
            return True
        options = {atom: choices(atom) for atom in waiting}
        atom = min(options, key=lambda one: len(options[one]))  # the most constrained atom first
        for other in options[atom]:
            pair = {atom} if other == rest else {atom, other}
            paired = waiting & pair
            waiting.difference_update(paired)
            taken.update(pair)
            if is_solvable():
                return True
            waiting.update(paired)
            taken.difference_update(pair)
        return False

    return is_solvable()
