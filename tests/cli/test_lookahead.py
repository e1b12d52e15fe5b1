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
    assert "nats per token" in found.out
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
    with pytest.raises(ValueError, match="is not a file of 'textguide lookahead train'"):
        load(str(path))


VALUE = ("--kind", "value", "--rollouts", "12", "--max-new-tokens", "6", "--batch-size", "8")


def test_a_value_is_trained_and_read(run: Run, tmp_path: Path) -> None:
    out, prompts = tmp_path / "value.safetensors", tmp_path / "prompts.txt"
    prompts.write_text("ab\ncdef\n", encoding="utf-8")
    found = run("lookahead", "train", "--out", str(out), "--regex", "[a-c]{2,3}", "--prompts", str(prompts), *VALUE)
    assert found.code == 0, found.err
    assert "24 texts" in found.out
    write = ("generate", "ab", "--particles", "3", "--max-new-tokens", "6", "--seed", "1", "--lookahead", str(out))
    assert run(*write, "--regex", "[a-c]{2,3}").code == 0
    other = run(*write, "--regex", "[a-c]{2}")
    assert other.code != 0
    assert "was learned for another constraint" in other.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "value", "--regex", "a"], "--kind value needs --prompts"),
        (["--kind", "value", "--prompts", "p"], "--kind value needs a constraint"),
        (["--kind", "value", "--openings", "p"], "--openings does not work with --kind value"),
        (["--regex", "a"], "--regex does not work with --kind hmm"),
        (["--kind", "value", "--temperature", "0"], "--temperature 0.0 must be a number above 0"),
    ],
)
def test_kinds_have_their_own_options(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    found = run("lookahead", "train", "--out", str(tmp_path / "x.safetensors"), *arguments)
    assert found.code != 0
    assert words in found.err
