"""Molecules: property bins, prompts and the report."""

from __future__ import annotations

import pytest

from textguide.tasks import molecules

pytest.importorskip("rdkit", reason="needs RDKit (the extra molecules)")

ASPIRIN, CAFFEINE = "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C"


def test_bins() -> None:
    # Aspirin: QED 0.55, logP 1.31, 13 heavy atoms, one ring. Caffeine: QED 0.54, logP −1.03, 14 atoms, two rings.
    assert molecules.bins_of(ASPIRIN) == (0, 0, 0, 0)
    assert molecules.bins_of(CAFFEINE) == (0, 0, 0, 1)
    for text in ("", "C1CC", "CC.CC", "xyz"):
        assert molecules.bins_of(text) is None
    assert molecules.prompt_of((0, 3, 2, 1)) == "[qed0][logp3][atoms2][rings1]"
    assert set(molecules.prompt_of((0, 3, 2, 1)).replace("][", "] [").split()) <= set(molecules.prompt_tokens())


def test_report() -> None:
    asked = [(0, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, 1), (0, 0, 0, 0)]
    found = molecules.report(asked, [ASPIRIN, CAFFEINE, CAFFEINE, "C1"])
    assert found.valid == [1.0, 1.0, 1.0, 0.0]
    assert found.hits == [1.0, 0.75, 0.75, 0.0]
    assert found.all_hit == [1.0, 0.0, 0.0, 0.0]
    assert found.unique == pytest.approx(2 / 3)
    assert found.by_property["rings"] == 0.5
    # Of the three pairs one is the same molecule twice.
    assert 0.5 < found.diversity < 2 / 3
    assert molecules.report([(0, 0, 0, 0)], ["?"]).diversity == 0.0
