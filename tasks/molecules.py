"""Molecules under conditions: property bins as a prompt, and how much of a prompt a written molecule fulfils.

Needs RDKit (the extra ``molecules``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textguide.support.errors import MissingExtraError

EDGES: dict[str, tuple[float, ...]] = {
    "qed": (0.77, 0.83, 0.88),
    "logp": (1.8, 2.5, 3.1),
    "atoms": (18, 19, 20),
    "rings": (2, 3),
}
"""Lower edges of the bins from 1 on of each property; below the first edge is bin 0."""

PATTERN = r"\[[^\]]+\]|Br|Cl|%\d\d|."
"""One token of a prompt or a SMILES string."""


@dataclass(frozen=True)
class MoleculeReport:
    """What a set of written molecules is worth; shares are of all texts unless said otherwise.

    Attributes:
        valid: 1.0 for each text that RDKit reads as one molecule, else 0.0.
        hits: share of the four conditions that came true, for each text; 0.0 where it is no molecule.
        all_hit: 1.0 for each text that fulfils all four.
        unique: share of different molecules among the valid ones.
        diversity: one minus the mean Tanimoto similarity of pairs of different valid texts (Morgan, radius 2).
        by_property: share of all texts that are in the bin asked for.
    """

    valid: list[float]
    hits: list[float]
    all_hit: list[float]
    unique: float
    diversity: float
    by_property: dict[str, float]


def prompt_of(bins: Sequence[int]) -> str:
    """The prompt that asks for these bins, in the order of :data:`EDGES`."""
    return "".join(f"[{name}{number}]" for name, number in zip(EDGES, bins, strict=True))


def prompt_tokens() -> list[str]:
    """Every token that a prompt may hold."""
    return [f"[{name}{number}]" for name, edges in EDGES.items() for number in range(len(edges) + 1)]


def bins_of(smiles: str) -> tuple[int, ...] | None:
    """The bins that a molecule lies in, or None where the text is no molecule."""
    molecule = _read(smiles)
    if molecule is None:
        return None
    Chem = _rdkit()
    values = {
        "qed": Chem.QED.qed(molecule),
        "logp": Chem.Crippen.MolLogP(molecule),
        "atoms": molecule.GetNumHeavyAtoms(),
        "rings": molecule.GetRingInfo().NumRings(),
    }
    return tuple(bisect_right(edges, values[name]) for name, edges in EDGES.items())


def report(asked: Sequence[Sequence[int]], written: Sequence[str]) -> MoleculeReport:
    """Compare what was written with the bins that were asked for, text by text."""
    found = [bins_of(text) for text in written]
    matches = [
        [float(f is not None and f[i] == a[i]) for i in range(len(EDGES))] for a, f in zip(asked, found, strict=True)
    ]
    molecules = [molecule for text in written if (molecule := _read(text)) is not None]
    names = [_rdkit().MolToSmiles(molecule) for molecule in molecules]
    return MoleculeReport(
        valid=[float(f is not None) for f in found],
        hits=[sum(m) / len(m) for m in matches],
        all_hit=[float(all(m)) for m in matches],
        unique=len(set(names)) / len(names) if names else 0.0,
        diversity=_diversity(molecules),
        by_property={name: sum(m[i] for m in matches) / len(matches) for i, name in enumerate(EDGES)},
    )


def _diversity(molecules: list[Any]) -> float:
    if len(molecules) < 2:
        return 0.0
    Chem = _rdkit()
    generator = Chem.rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [generator.GetFingerprint(molecule) for molecule in molecules]
    total = sum(
        sum(Chem.DataStructs.BulkTanimotoSimilarity(prints[i], prints[i + 1 :])) for i in range(len(prints) - 1)
    )
    return 1.0 - total / (len(prints) * (len(prints) - 1) / 2)


def _read(smiles: str) -> Any:
    """The molecule, or None: empty texts and mixtures are none."""
    text = smiles.strip()
    return None if not text or "." in text else _rdkit().MolFromSmiles(text)


def _rdkit() -> Any:
    try:
        from rdkit import Chem, DataStructs, RDLogger
        from rdkit.Chem import QED, Crippen, rdFingerprintGenerator
    except ImportError as error:
        raise MissingExtraError("rdkit", "molecules", "reading molecules") from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    Chem.QED, Chem.Crippen, Chem.DataStructs = QED, Crippen, DataStructs
    Chem.rdFingerprintGenerator = rdFingerprintGenerator
    return Chem
