"""Bundled models, models inside packages, and what cannot be loaded."""

from __future__ import annotations

import pytest
import torch

import textguide
from textguide import ACFG, CFG, diffusion
from textguide.classifiers import FunctionReward
from textguide.diffusion import packages
from textguide.diffusion.block_adapters import is_block_adapter
from textguide.guidance import TFG, DiscreteClassifier, ParticleGibbs, TimeStepGuidance
from textguide.support.errors import ModelUnavailableError
from textguide.tasks import sudoku


def test_reachable_from_the_top() -> None:
    assert textguide.diffusion is diffusion
    assert "diffusion" in dir(textguide)


def test_bundled_sudoku_solves_puzzles() -> None:
    model, tokenizer = diffusion.load("sudoku4", device="cpu")
    pairs = sudoku.puzzles(4, 40, sudoku.TEST_CLUES[4], sudoku.TEST_SEED)
    prompts = [puzzle for puzzle, _ in pairs]
    for guidance in (None, CFG(1.5), ACFG(1.5)):
        out = diffusion.generate(model, tokenizer, prompts, gen_length=16, guidance=guidance)
        solved = sum(sudoku.is_solution(puzzle, text) for puzzle, text in zip(prompts, out.texts, strict=True))
        assert solved >= 8
    right = diffusion.score(model, tokenizer, prompts[:8], [g for _, g in pairs[:8]], draws=16)
    swapped = [grid.translate(str.maketrans("12", "21")) for _, grid in pairs[:8]]
    wrong = diffusion.score(model, tokenizer, prompts[:8], swapped, draws=16)
    assert (right.log_likelihood > wrong.log_likelihood + 3).all()


def test_every_bundled_model_loads_and_is_small() -> None:
    assert "sudoku4" in diffusion.bundled()
    for name in diffusion.bundled():
        folder = diffusion.loading.BUNDLED / name
        if not is_block_adapter(folder):  # they have a test of their own
            model, tokenizer = diffusion.load(name, device="cpu")
            assert tokenizer.mask_token_id is not None
            assert not model.training
        assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
        assert "Licence" in (folder / "README.md").read_text()


def test_what_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailableError, match=r"'no/such' could not be loaded.*bundled: .*sudoku4"):
        diffusion.load("no/such", device="cpu")
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailableError, match=r"pip install --no-deps rxnmapper==0\.4\.3"):
        diffusion.load("rxnmapper", device="cpu")


def packaged(name: str) -> tuple[object, object]:
    try:
        return diffusion.load(name, device="cpu")
    except ModelUnavailableError as error:
        pytest.skip(str(error))


def test_rxnmapper_fills_in_a_reaction() -> None:
    model, tokenizer = packaged("rxnmapper")
    texts = ["CC(=O)Cl.Nc1ccccc1>>CC(=O)[MASK]c1cc[MASK]cc1", "CI.Oc1ccccc1>>[MASK][MASK]c1ccccc1"]
    judge = FunctionReward(lambda written: [-text.count("Br") for text in written], name="no bromine")
    for guidance in (
        None, CFG(1.5), ACFG(1.5), TimeStepGuidance(1.5), DiscreteClassifier(judge, top_k=5), TFG(judge, samples=4),
    ):  # fmt: skip
        out = diffusion.infill(model, tokenizer, texts, guidance=guidance, warn=False, seed=0)
        assert out.texts == ["CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1", "CI.Oc1ccccc1>>COc1ccccc1"]
    # Drawn and resampled: what the reward asks for comes out of what the model would write.
    amines = FunctionReward(lambda written: [2.0 * text.split(">>")[1].startswith("CC(=O)N") for text in written])
    out = diffusion.infill(
        model, tokenizer, texts[:1], guidance=ParticleGibbs(amines, weight=5.0, particles=4), temperature=1.5, seed=0
    )
    assert out.texts[0].split(">>")[1].startswith("CC(=O)N")


def test_antiberty_prefers_an_antibody() -> None:
    model, tokenizer = packaged("antiberty")
    start = "EVQLVESGGGLVQPGGSL"
    found = diffusion.score(model, tokenizer, start, ["RLSCAAS", "WWWWWWW"], draws=14)
    assert float(found.log_likelihood[0]) > float(found.log_likelihood[1]) + 10
    assert torch.isfinite(found.standard_error).all()
    out = diffusion.infill(model, tokenizer, "EVQLVESGGGLVQ[MASK]GGSLRLSC[MASK]AS", guidance=ACFG(1.5))
    assert out.texts == ["EVQLVESGGGLVQPGGSLRLSCAAS"]
