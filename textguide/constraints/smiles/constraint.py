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
_SHORT = {"C": "Cl", "B": "Br"}
READINGS_KEPT = 1 << 14


@dataclass(frozen=True)
class SMILES(Constraint):
    """SMILES strings of one molecule (Weininger 1988, in the spelling of OpenSMILES).

    Brackets, rings and valences are counted while the text is written, so that every atom, bond and ring digit that is
    allowed leaves a way to a molecule: no bond is written that an atom cannot take, and no atom that ends the text
    while rings are open. Atoms in small letters must come to lie in a ring of such atoms, in which single and double
    bonds can alternate (a matching of the atoms that need one, as the Kekulé structures of RDKit have it).

    Admitted are the atoms of the organic subset, ``c n o s``, and in brackets B, C, N, O, P, S, Si and Se with
    hydrogens, one charge and ``@`` or ``@@``, ``[nH]`` and aromatic ions of n, o and s; the bonds ``- = # / \\``; rings
    ``0`` to ``9`` and ``%10`` to ``%99``, behind an atom and before its branches. Not admitted: several parts (``.``),
    isotopes, other elements, wildcards, five bonds at a nitrogen (``N(=O)=O``; write ``[N+](=O)[O-]``).

    There is a mask, and no package is needed. Where a string is a member RDKit reads it.

    Example:
        >>> AWRS(SMILES(), particles=10)
    """

    kind = "smiles"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def start(self, vocabulary: Vocabulary) -> Session:
        return SMILESSession(Reader(), vocabulary, b"", VerdictCache())


class Reader:
    """Reads texts, each from where its beginning was read before."""

    def __init__(self) -> None:
        self.masks = MaskCache()
        self._read: dict[str, tuple[State, str] | None] = {"": (State(), "")}

    def read(self, text: str) -> tuple[State, str] | None:
        """Where a text stands, and what begins an atom or a ring at its end; None: it is the beginning of no text."""
        if text not in self._read:
            if len(self._read) >= READINGS_KEPT:
                self._read = {"": (State(), "")}
            known = len(text) - 1
            while text[:known] not in self._read:
                known -= 1
            for end in range(known, len(text)):
                before = self._read[text[:end]]
                self._read[text[: end + 1]] = None if before is None else _step(*before, text[end])
        return self._read[text]

    def is_prefix(self, text: str) -> bool:
        """Whether something behind ``text`` makes it a molecule."""
        found = self.read(text)
        return found is not None and any(state is not None and state.can_go_on() for state in _ended(*found))

    def is_whole(self, text: str) -> bool:
        """Whether ``text`` is a molecule."""
        found = self.read(text)
        if found is None or found[1] not in ("", *_SHORT):
            return False
        state = found[0].with_atom(found[1]) if found[1] else found[0]
        return state is not None and state.is_whole()


def _step(state: State, begun: str, letter: str) -> tuple[State, str] | None:
    """A text with one more character."""
    if begun in _SHORT and _SHORT[begun] == begun + letter:
        return _with(state.with_atom(begun + letter))
    if begun in _SHORT:
        ended = state.with_atom(begun)
        return None if ended is None else _step(ended, "", letter)
    if begun[:1] == "[":
        if begun + letter in atoms():
            return _with(state.with_atom(begun + letter))
        return (state, begun + letter) if beginning(begun + letter) else None
    if begun[:1] == "%":
        if not letter.isdigit() or (begun == "%" and letter == "0"):
            return None
        return _with(state.with_ring(begun[1:] + letter)) if len(begun) == 2 else (state, begun + letter)
    if letter in _SHORT or letter in "[%":
        return state, letter
    if letter.isdigit():
        return _with(state.with_ring(letter))
    if letter in atoms():
        return _with(state.with_atom(letter))
    return _with(state.with_sign(letter)) if letter in SIGNS else None


def _with(state: State | None) -> tuple[State, str] | None:
    return None if state is None else (state, "")


def _ended(state: State, begun: str) -> list[State | None]:
    """The ways in which what is begun at the end of a text may end."""
    if begun in _SHORT:
        return [state.with_atom(begun), state.with_atom(_SHORT[begun])]
    if begun[:1] == "[":
        return [state.with_atom(name) for name in beginning(begun)]
    if begun[:1] == "%":
        names = [str(number) for number in range(10, 100) if str(number).startswith(begun[1:])]
        opened = {name for name, _, _ in state.rings}
        fresh = [name for name in names if name not in opened][:1]
        return [state.with_ring(name) for name in [*fresh, *(name for name in names if name in opened)]]
    return [state]


class SMILESSession(MemoizedSession[Reader]):
    """One text, letter by letter."""

    def is_prefix(self, text: bytes) -> bool:
        seen = self._vocabulary.visible(text)
        return seen.isascii() and self._verdicts.get(("prefix", seen), lambda: self._checker.is_prefix(seen.decode()))

    def is_complete(self, text: bytes) -> bool:
        seen = self._vocabulary.visible(text)
        return seen.isascii() and self._verdicts.get(("complete", seen), lambda: self._checker.is_whole(seen.decode()))

    def mask(self) -> Tensor:
        return self._checker.masks.get(self.text, self._made)

    def _made(self) -> Tensor:
        mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        mask[sorted(self._vocabulary.ends)] = self.is_complete(self.text)
        waiting = [(self.text, _tree(self._vocabulary, bool(self.text)))]
        while waiting:  # tokens with the same beginning are asked about together
            text, node = waiting.pop()
            mask[node.tokens] = True
            waiting += [(text + letter, child) for letter, child in node.after.items() if self.is_prefix(text + letter)]
        return mask


class Node:
    """Tokens that end here, and what may come behind."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.after: dict[bytes, Node] = {}


@lru_cache(maxsize=8)
def _tree(vocabulary: Vocabulary, is_later: bool) -> Node:
    """The tokens that are written in SMILES' alphabet; those at the beginning of a text may have a space in front."""
    root = Node()
    for number, token in enumerate(vocabulary.tokens):
        seen = token if is_later else vocabulary.visible(token)
        if token and seen.isascii() and ALPHABET.issuperset(seen.decode()):
            node = root
            for at in range(len(token)):
                node = node.after.setdefault(token[at : at + 1], Node())
            node.tokens.append(number)
    return root
