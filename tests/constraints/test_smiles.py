"""SMILES: what is written letter by letter is read by RDKit, and what RDKit writes can be written."""

from __future__ import annotations

import random

import pytest

from textguide.constraints import SMILES, Vocabulary, from_dict, resolve
from textguide.constraints.smiles.constraint import Reader
from textguide.constraints.smiles.state import State

from .walks import BYTES, SMALL, compare

MOLECULES = (
    "C", "CCO", "CC(=O)Oc1ccccc1C(=O)O", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "C[C@@H](N)C(=O)O", "O=C([O-])c1cc[nH]c1",
    "c1ccc2c(c1)ccc1ccccc12", "C1CC2(C1)CCC2", "Clc1ncnc2c1cnn2-c1ccccc1", "F/C=C/F", "C#CC1CC1", "Cc1c[n+](C)cs1",
    "CS(=O)(=O)N", "BrC1=C2C3=C4C(C=C5C=NC(S3)=C45)=C2SC=C1", "O=c1ssc(=Nc2ccccc2)n1CC", "c1cc[nH+]cc1", "OB(O)c1ccoc1",
    "CC1=c2ccccc2=CCN1", "C%10CC%10", "C[N+](=O)[O-]", "c1ccccc1-c1ccccc1", "C=1CCCCC=1", "CCN=c1ssc(=O)n1CC",
)  # fmt: skip
NONE = (
    "", "C(", "C()", "C=", "C1", "C11", "C12CC12", "CC)", "FF(C)", "C(C)(C)(C)(C)C", "c1cccc1", "cc", "c1ccccc1c",
    "N(=O)=O", "O=O=O", "[CH5]", "C.C", "[13C]", "[Na+]", "*", "C-", "c1ccccc1=O", "n1ccccc1C(", "C%1", "C=1CC-1", "=C",
    "(C)C", "1CC1", "C(1CC1)", "C(C)1CC1", "C1C1", "B(F)(F)(F)F", "[C", "C C", "é",
)  # fmt: skip
DEAD = (
    "C1F",
    "OC1F",
    "C(F)(F)(F)(F)F",
    "FC#C#",
    "O#",
    "[Cu",
    "[CH4]C",
    "c1Cl",
    "Fc1F",
    "c1ccccc1F)",
    "cF",
    "c1cccc1F",
)
LETTERS = [*"CCCCNOSccccnos()()=#12-", "[nH]", "[O-]", "[n+]", "Cl", "[C@H]"]


@pytest.mark.parametrize("text", MOLECULES)
def test_molecules_can_be_written(text: str) -> None:
    reader = Reader()
    assert reader.is_whole(text)
    assert all(reader.is_prefix(text[:end]) for end in range(len(text) + 1))


def test_a_long_molecule_is_read_at_once() -> None:
    assert Reader().is_whole("C" * 1500)


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_molecule(text: str) -> None:
    assert not SMILES().start(BYTES).is_complete(text.encode())


@pytest.mark.parametrize("text", DEAD)
def test_what_can_become_none(text: str) -> None:
    assert not Reader().is_prefix(text)


def written(seed: int) -> tuple[str, bool]:
    """A random text that is allowed at each step, and whether it came to a place where nothing can follow."""
    draw, reader, text = random.Random(seed), Reader(), ""
    letters = LETTERS if draw.random() < 0.6 else [one for one in LETTERS if not one.strip("[").islower()]
    for _ in range(40):
        if reader.is_whole(text) and draw.random() < 0.15:
            break
        tried = draw.sample(letters, len(letters))
        letter = next((one for one in tried if reader.is_prefix(text + one)), None)
        if letter is None:
            return text, not reader.is_whole(text)
        text += letter
    return (text, False) if reader.is_whole(text) else ("", False)


def test_rdkit_reads_what_is_written() -> None:
    chem = pytest.importorskip("rdkit.Chem")
    texts = [written(seed) for seed in range(150)]
    whole = [text for text, is_stuck in texts if text and not is_stuck]
    assert len(whole) > 50
    assert [text for text in whole if chem.MolFromSmiles(text) is None] == []
    assert sum(is_stuck for _, is_stuck in texts) < 6


def test_what_is_not_counted_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "_aromatic_atoms_fit", lambda *_: True)
    assert Reader().is_whole("c1cccc1")
    monkeypatch.setattr(State, "free", lambda *_: 4)
    assert Reader().is_whole("FF(C)C")


@pytest.mark.parametrize("seed", range(4))
def test_masks(seed: int) -> None:
    tokens = (
        "",
        "C",
        "Cl",
        "l",
        "c",
        "c1",
        "1",
        "ccc",
        "(",
        ")",
        "=O",
        "=",
        "N(",
        "[nH]",
        "[n",
        "H]",
        "F",
        " C",
        "é",
        "%1",
        "0",
        "r",
        "B",
    )
    vocabulary = Vocabulary(tuple(token.encode() for token in tokens), frozenset([0]), drops_leading_space=True)
    judge = SMILES().start(vocabulary)
    compare(SMILES().start(vocabulary), vocabulary, judge.is_prefix, judge.is_complete, steps=12, seed=seed)
    judge = SMILES().start(SMALL)
    compare(SMILES().start(SMALL), SMALL, judge.is_prefix, judge.is_complete, steps=2, seed=seed)


def test_as_a_line_and_as_json() -> None:
    assert resolve("smiles") == from_dict({"kind": "smiles"}) == from_dict(SMILES().to_dict()) == SMILES()
    with pytest.raises(ValueError, match="'atoms' is not a field of smiles"):
        from_dict({"kind": "smiles", "atoms": 3})
