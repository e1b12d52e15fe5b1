"""``textguide lookahead train``."""

from __future__ import annotations

from pathlib import Path

import pytest

from textguide.smc.lookahead.hidden_markov import load

from .conftest import Run

FEW = ("--states", "3", "--tokens", "60", "--length", "6", "--rounds", "1", "--batch-size", "8")


def test_a_file_is_trained_and_kept(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "chain.safetensors"
    found = run("lookahead", "train", "--out", str(out), *FEW)
    assert found.code == 0, found.err
    assert "nats a token" in found.out
    assert str(out) in found.out
    assert load(str(out)).states == 3
    again = run("lookahead", "train", "--out", str(out), *FEW)
    assert again.code != 0
    assert "add --overwrite" in again.err


def test_what_would_be_lost_is_refused_first(run: Run, tmp_path: Path) -> None:
    found = run("lookahead", "train", "--out", str(tmp_path / "none" / "chain.safetensors"), *FEW)
    assert found.code != 0
    assert "there is no folder" in found.err


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"initial": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is no file of 'textguide lookahead train'"):
        load(str(path))
