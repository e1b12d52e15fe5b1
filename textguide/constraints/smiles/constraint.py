"""Molecules as SMILES strings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..base import Constraint, Session
from ..engines.session import MaskCache
from ..memoized_session import MemoizedSession, VerdictCache
from ..vocabulary import Vocabulary
from .state import State, atoms, beginning

SIGNS = frozenset("()-=#/\\")
ALPHABET = frozenset("".join(atoms())) | SIGNS | frozenset("%0123456789")
_LONGER_ATOMS = {"C": "Cl", "B": "Br"}
"""Atoms whose letter may be the start of another atom, and that atom."""
MAX_READINGS = 1 << 14


@dataclass(frozen=True)
class SMILES(Constraint):
    """SMILES strings of one molecule (Weininger 1988, in the spelling of OpenSMILES).

    Brackets, rings and valences are counted while the text is written, so every atom, bond and ring digit that is
    allowed can still lead to a molecule: no atom gets a bond that it cannot have, and no atom ends the text while rings
    are open. Atoms in small letters must end up in a ring of such atoms in which single and double bonds can alternate
    (a matching of the atoms that need one, as in the Kekulé structures of RDKit).

    Supported are the atoms of the organic subset and ``c n o s``; in brackets B, C, N, O, P, S, Si and Se with
    hydrogens, one charge and ``@`` or ``@@``, ``[nH]``, and aromatic ions of n, o and s; the bonds ``- = # / \\``; and
    rings ``0`` to ``9`` and ``%10`` to ``%99``, after an atom and before its branches. Not supported are several parts
    (``.``), isotopes, other elements, wildcards, and five bonds at a nitrogen (``N(=O)=O``; write ``[N+](=O)[O-]``).

    There is a mask, and no package is needed. RDKit can read every member.

    Example:
        >>> AWRS(SMILES(), particles=10)
    """

    kind = "smiles"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def start(self, vocabulary: Vocabulary) -> Session:
        return SMILESSession(Reader(), vocabulary, b"", VerdictCache())


class Reader:
    """Reads texts; each is read from its longest prefix that was read before."""

    def __init__(self) -> None:
        self.masks = MaskCache()
        self._readings: dict[str, tuple[State, str] | None] = {"": (State(), "")}

    def read(self, text: str) -> tuple[State, str] | None:
        """The state after a text, and the unfinished atom or ring number at its end; None if it is not possible."""
        if text not in self._readings:
            if len(self._readings) >= MAX_READINGS:
                self._readings = {"": (State(), "")}
            known = len(text) - 1
            while text[:known] not in self._readings:
                known -= 1
            for end in range(known, len(text)):
                before = self._readings[text[:end]]
                self._readings[text[: end + 1]] = None if before is None else _step(*before, text[end])
        return self._readings[text]

    def is_prefix(self, text: str) -> bool:
        """Whether some continuation of ``text`` is a molecule."""
        reading = self.read(text)
        return reading is not None and any(state is not None and state.is_prefix() for state in _finished(*reading))

    def is_whole(self, text: str) -> bool:
        """Whether ``text`` is a molecule."""
        reading = self.read(text)
        if reading is None or reading[1] not in ("", *_LONGER_ATOMS):
            return False
        state: State | None = reading[0]
        if reading[1]:
            state = reading[0].with_atom(reading[1])
        return state is not None and state.is_whole()


def _step(state: State, unfinished: str, letter: str) -> tuple[State, str] | None:
    """The reading of a text with one more character."""
    if unfinished in _LONGER_ATOMS:
        if _LONGER_ATOMS[unfinished] == unfinished + letter:
            return _reading(state.with_atom(unfinished + letter))
        finished = state.with_atom(unfinished)
        return None if finished is None else _step(finished, "", letter)
    if unfinished[:1] == "[":
        return _step_in_brackets(state, unfinished + letter)
    if unfinished[:1] == "%":
        return _step_in_ring_number(state, unfinished, letter)
    if letter in _LONGER_ATOMS or letter in "[%":
        return state, letter
    if letter.isdigit():
        return _reading(state.with_ring(letter))
    if letter in atoms():
        return _reading(state.with_atom(letter))
    return _reading(state.with_sign(letter)) if letter in SIGNS else None


def _step_in_brackets(state: State, name: str) -> tuple[State, str] | None:
    if name in atoms():
        return _reading(state.with_atom(name))
    return (state, name) if beginning(name) else None


def _step_in_ring_number(state: State, unfinished: str, letter: str) -> tuple[State, str] | None:
    """A ring number is ``%`` and two digits, the first of which is not 0."""
    if not letter.isdigit() or (unfinished == "%" and letter == "0"):
        return None
    if len(unfinished) == 1:
        return state, unfinished + letter
    return _reading(state.with_ring(unfinished[1:] + letter))


def _reading(state: State | None) -> tuple[State, str] | None:
    return None if state is None else (state, "")


def _finished(state: State, unfinished: str) -> list[State | None]:
    """The states after every way to finish the unfinished atom or ring number."""
    if unfinished in _LONGER_ATOMS:
        return [state.with_atom(unfinished), state.with_atom(_LONGER_ATOMS[unfinished])]
    if unfinished[:1] == "[":
        return [state.with_atom(name) for name in beginning(unfinished)]
    if unfinished[:1] == "%":
        names = [str(number) for number in range(10, 100) if str(number).startswith(unfinished[1:])]
        opened = {name for name, _, _ in state.rings}
        # Numbers that are not open all lead to the same state, so one of them is enough.
        new = [name for name in names if name not in opened][:1]
        return [state.with_ring(name) for name in [*new, *(name for name in names if name in opened)]]
    return [state]


class SMILESSession(MemoizedSession[Reader]):
    """One text, read letter by letter."""

    def is_prefix(self, text: bytes) -> bool:
        visible = self._vocabulary.visible(text)
        if not visible.isascii():
            return False
        return self._verdicts.get(("prefix", visible), lambda: self._checker.is_prefix(visible.decode()))

    def is_complete(self, text: bytes) -> bool:
        visible = self._vocabulary.visible(text)
        if not visible.isascii():
            return False
        return self._verdicts.get(("complete", visible), lambda: self._checker.is_whole(visible.decode()))

    def mask(self) -> Tensor:
        return self._checker.masks.get(self.text, self._compute_mask)

    def _compute_mask(self) -> Tensor:
        mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        mask[sorted(self._vocabulary.ends)] = self.is_complete(self.text)
        # Tokens with the same first letters are checked together.
        waiting = [(self.text, _tree(self._vocabulary, bool(self.text)))]
        while waiting:
            text, node = waiting.pop()
            mask[node.tokens] = True
            for letter, child in node.children.items():
                if self.is_prefix(text + letter):
                    waiting.append((text + letter, child))
        return mask


class Node:
    """A byte string in the tree of a vocabulary: the tokens that equal it, and the nodes with one more byte."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.children: dict[bytes, Node] = {}


@lru_cache(maxsize=8)
def _tree(vocabulary: Vocabulary, is_later: bool) -> Node:
    """The tree of the tokens in SMILES' alphabet; the first token of a text may start with a space that is dropped."""
    root = Node()
    for number, token in enumerate(vocabulary.tokens):
        visible = token if is_later else vocabulary.visible(token)
        if token and visible.isascii() and ALPHABET.issuperset(visible.decode()):
            node = root
            for at in range(len(token)):
                node = node.children.setdefault(token[at : at + 1], Node())
            node.tokens.append(number)
    return root
