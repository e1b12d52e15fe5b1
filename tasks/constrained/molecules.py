"""A molecule like some others: SMILES from GDB-17 (Ruddigkeit et al. 2012), as in Lipkin et al. (arXiv 2504.05410)."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from textguide.constraints import Constraint, Predicate
from textguide.support.errors import MissingExtraError

from ..loaders import local_file
from .base import ConstrainedTask, Item, conversation

FILE = "awrs/gdb17_sample.txt"
INSTRUCTION = "Write one molecule as a SMILES string. Give the string and nothing else."


class Molecules(ConstrainedTask):
    """Write one more molecule. Each item shows others, drawn from ``awrs/gdb17_sample.txt``.

    The constraint is checked by ``partialsmiles``, a package that says of the beginning of a SMILES string whether it
    can still become one: a function, of which no mask is known. What comes out is judged by RDKit. ``quality`` is the
    quantitative estimate of drug-likeness (Bickerton et al. 2012) of what is valid, 0 for what is not; ``new`` is 1 for
    a valid molecule that was not shown.

    Args:
        data: as for every task.
        count: number of items.
        shown: molecules shown in each.
    """

    name = "molecules"
    measures = ("valid", "quality", "new")
    max_new_tokens = 64

    def __init__(self, data: str | os.PathLike[str] | None = None, count: int = 100, shown: int = 10) -> None:
        super().__init__(data)
        self.count = count
        self.shown = shown

    def items(self) -> Sequence[Item]:
        _rdkit()  # before molecules are written, which takes long
        known = self._known()
        if self.shown > len(known):
            raise ValueError(f"shown={self.shown} is more than the {len(known)} molecules of {FILE}; show fewer")
        items = []
        for number in range(self.count):
            shown = tuple(random.Random(number).sample(known, self.shown))
            examples = [("Write a molecule.", smiles) for smiles in shown]
            items.append(Item(f"{number:03d}", conversation(INSTRUCTION, examples, "Write a molecule."), shown))
        return items

    def constraint(self, item: Item) -> Constraint:
        return SMILES

    def check(self, item: Item, text: str) -> dict[str, float]:
        molecule = _parse(text)
        if molecule is None:
            return {"valid": 0.0, "quality": 0.0, "new": 0.0}
        from rdkit import Chem
        from rdkit.Chem import QED

        name = Chem.MolToSmiles(molecule)
        new = all(name != Chem.MolToSmiles(_parse(smiles)) for smiles in item.answer)
        return {"valid": 1.0, "quality": float(QED.qed(molecule)), "new": float(new)}

    def reference(self) -> dict[str, float]:
        """The mean over the molecules of the file."""
        known = self._known()
        item = Item("reference", (), ())
        checks = [self.check(item, smiles) for smiles in known]
        return {name: sum(check[name] for check in checks) / len(checks) for name in ("valid", "quality")}

    def _known(self) -> list[str]:
        return local_file(FILE, self.data).read_text(encoding="utf-8").split()


def can_become(text: str) -> bool:
    """Whether a SMILES string can begin with ``text``."""
    return _accepts(text, partial=True)


def is_whole(text: str) -> bool:
    """Whether ``text`` is a SMILES string."""
    return _accepts(text, partial=False)


SMILES = Predicate(can_become, is_whole, ascii=True)


def _accepts(text: str, partial: bool) -> bool:
    smiles = _partialsmiles()
    try:
        smiles.ParseSmiles(text, partial=partial)
    except (smiles.Error, IndexError):  # it runs off the end of a ring number, as in `C%`
        return False
    return True


@cache
def _partialsmiles() -> Any:
    try:
        import partialsmiles
    except ImportError as error:
        raise MissingExtraError("partialsmiles", "molecules", "the molecules") from error
    return partialsmiles


@cache
def _rdkit() -> Any:
    try:
        from rdkit import Chem, RDLogger
    except ImportError as error:
        raise MissingExtraError("rdkit", "molecules", "judging molecules") from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    return Chem


def _parse(text: str) -> Any:
    """The molecule in RDKit, None where there is none."""
    Chem = _rdkit()
    # RDKit reads up to a space and takes nothing for a molecule without atoms.
    molecule = Chem.MolFromSmiles(text) if text and text.isascii() and not any(map(str.isspace, text)) else None
    return molecule if molecule is not None and molecule.GetNumAtoms() else None
