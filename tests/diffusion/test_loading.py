"""Bundled models, models inside packages, and what cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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

from . import tiny

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput


class Config(PretrainedConfig):
    model_type = "KIND"


class Backbone(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, ARGUMENTS, **_):
        hidden = self.embeddings(input_ids)
        places = torch.arange(1, 1 + input_ids.shape[1])[None, :, None] * hidden
        seen = SEEN
        return BaseModelOutput(last_hidden_state=hidden + torch.tanh(self.mix(seen @ places / 9.0)))


class WithHead(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.model = Backbone(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, ARGUMENTS, **_):
        return MaskedLMOutput(logits=self.lm_head(self.model(input_ids, PASSED).last_hidden_state))
"""
CALLS = {
    # arguments, how the backbone gets them, and which positions each position sees, (B, L, L)
    "llada2_moe": ("attention_mask=None", "attention_mask=attention_mask", "(attention_mask[:, 0] == 0).float()"),
    "sdar": ("attention_mask=None", "attention_mask=attention_mask", "attention_mask[:, 0].float()"),
    "mdlm": ("timesteps=None", "timesteps=timesteps", "torch.ones(1, input_ids.shape[1], input_ids.shape[1])"),
    "dream": ("attention_mask=None", "attention_mask=attention_mask",
              "torch.ones(1, input_ids.shape[1], input_ids.shape[1])"),
}  # fmt: skip
CLASSES = {"AutoConfig": "Config", "AutoModel": "Backbone", "AutoModelForCausalLM": "WithHead"}
LAYOUTS = {
    "llada2_moe": CLASSES,
    "sdar": CLASSES,
    "sdar-head-only": {"AutoConfig": "Config", "AutoModelForCausalLM": "WithHead"},
    "mdlm": {"AutoConfig": "Config", "AutoModelForMaskedLM": "WithHead"},
    "dream": {"AutoConfig": "Config", "AutoModel": "WithHead"},
}
"""What checkpoints register: LLaDA 2, SDAR and Dream as published, with random weights of a tiny model."""


def checkpoint(folder: Path, layout: str, has_tokenizer: bool = True) -> Path:
    """A checkpoint that comes with its own code."""
    kind = layout.removesuffix("-head-only")
    arguments, passed, seen = CALLS[kind]
    code = CODE.replace("KIND", kind).replace("ARGUMENTS", arguments).replace("PASSED", passed).replace("SEEN", seen)
    folder.mkdir()
    (folder / "modeling_it.py").write_text(code)
    space: dict[str, Any] = {}
    exec(code, space)
    torch.manual_seed(0)
    values = {"vocab_size": tiny.VOCABULARY, "hidden_size": 8, "mask_token_id": tiny.MASK}
    space["WithHead"](space["Config"](**values)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {name: f"modeling_it.{value}" for name, value in LAYOUTS[layout].items()}
    (folder / "config.json").write_text(json.dumps(config))
    if has_tokenizer:
        tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code of checkpoints is copied into a folder of the test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_checkpoints_with_their_own_code_are_loaded_with_their_head(tmp_path: Path, layout: str) -> None:
    folder = checkpoint(tmp_path / layout.replace("-", "_"), layout)
    model, tokenizer = diffusion.load(str(folder), device="cpu", trust_remote_code=True)
    out = diffusion.generate(model, tokenizer, "ab", guidance=CFG(1.5), max_new_tokens=4, warn=False)
    assert len(out.new_tokens[0]) == 4 or out.finish_reasons == ["eos"]
    assert out.effect.extra_passes > 0


@pytest.mark.usefixtures("own_modules")
def test_a_tokenizer_can_be_named_if_the_checkpoint_has_none(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mdlm", "mdlm", has_tokenizer=False)
    with pytest.raises(ModelUnavailableError, match=r"no tokenizer could be loaded from .*; pass tokenizer="):
        diffusion.load(str(folder), device="cpu", trust_remote_code=True)
    words = tiny.tokenizer()
    words.save_pretrained(tmp_path / "words")
    for tokenizer in (words, str(tmp_path / "words"), tmp_path / "words"):
        loaded = diffusion.load(str(folder), tokenizer=tokenizer, device="cpu", trust_remote_code=True)
        assert loaded[1].mask_token_id == tiny.MASK


@pytest.mark.usefixtures("own_modules")
def test_code_that_does_not_run_here_is_one_line(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mdlm", "mdlm")
    with pytest.raises(ModelUnavailableError, match="it comes with its own code; read it"):
        diffusion.load(str(folder), device="cpu")
    code = (folder / "modeling_it.py").read_text()
    (folder / "modeling_it.py").write_text(code.replace("self.lm_head = ", "self.lm_head = self.no_such_part or "))
    with pytest.raises(ModelUnavailableError, match=r"could not be loaded: .*no_such_part"):
        diffusion.load(str(folder), device="cpu", trust_remote_code=True)


def test_a_backbone_without_a_head_is_named() -> None:
    model, tokenizer = tiny.build("bert")
    with pytest.raises(ValueError, match="BertModel returns no logits: it is a backbone without a head"):
        diffusion.generate(model.bert, tokenizer, "ab", max_new_tokens=2)


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
