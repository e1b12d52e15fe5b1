"""GGUF files become the models that they were written from, or are refused by name."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="the extra gguf is not installed")

import gguf
import torch

import textguide
from textguide.models import bundled, conversion, dequantizing, quantized_file
from textguide.support import files
from textguide.support.errors import MissingExtraError, ModelUnavailableError

from ..marks import NEEDS_SMOLLM2
from .tiny_gguf import tiny, write

IDS = torch.tensor([[1, 262, 33, 7, 20, 260, 261, 270, 264, 9] * 6])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "cache"))


@torch.no_grad()
def assert_same(path: Path, model: Any, ids: torch.Tensor = IDS) -> Any:
    loaded, _ = textguide.load(str(path), device="cpu")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert loaded.generation_config.eos_token_id == 2
    return loaded


EPSILON = {"attention.layer_norm_epsilon": 1e-5}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "architecture", "sizes", "metadata"),
    [
        ("Llama", "llama", {}, {}),
        ("Qwen2", "qwen2", {}, {}),
        ("Qwen3", "qwen3", {"head_dim": 16}, {"attention.key_length": 16}),
        ("Phi3", "phi3", {}, {}),
        ("Phi3", "phi3", {"sliding_window": 5}, {"attention.sliding_window": 5}),
        ("Starcoder2", "starcoder2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, EPSILON),
        ("StableLm", "stablelm", {}, EPSILON),
    ],
)
def test_architectures(
    tmp_path: Path, kind: str, architecture: str, sizes: dict[str, Any], metadata: dict[str, Any], tied: bool
) -> None:
    model = tiny(kind=kind, tie_word_embeddings=tied, **sizes)
    assert_same(write(tmp_path / "tiny.gguf", model, architecture, metadata=metadata), model)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def divisors(model: Any) -> list[float]:
    rotary = model.model.rotary_emb
    plain = model.config.rope_parameters["rope_theta"] ** -(torch.arange(len(rotary.inv_freq)) / len(rotary.inv_freq))
    return [round(divisor, 5) for divisor in (plain / rotary.inv_freq).tolist()]


def test_the_positions_of_llama_3(tmp_path: Path) -> None:
    for factor in (8.0, 32.0):
        model = tiny(rope_parameters={**LLAMA3, "factor": factor}, hidden_size=128, max_position_embeddings=16384)
        stretched = divisors(model)
        assert min(stretched) == pytest.approx(1.0)
        assert max(stretched) == pytest.approx(factor)
        assert 1.0 < sorted(stretched)[8] < factor
        path = write(tmp_path / f"{factor}.gguf", model, extra={"rope_freqs.weight": stretched})
        loaded = assert_same(path, model, IDS.repeat(1, 8))
        assert loaded.config.rope_parameters["rope_type"] == "llama3"
        plain = tiny(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, hidden_size=128)
        assert (loaded(IDS).logits - plain(IDS).logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("rope", "metadata"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
        ),
        ({"rope_type": "default"}, {"rope.scaling.type": "none"}),
    ],
)
def test_scaled_positions(tmp_path: Path, rope: dict[str, Any], metadata: dict[str, Any]) -> None:
    model = tiny(kind="Qwen2", rope_parameters={"rope_theta": 10000.0, **rope}, max_position_embeddings=256)
    assert_same(write(tmp_path / "scaled.gguf", model, "qwen2", metadata=metadata), model, IDS.repeat(1, 3))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ModelUnavailableError) as caught:
        textguide.load(str(path), device="cpu", **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not [entry for entry in files.cache_root().iterdir() if entry.is_dir()]
    return str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "extra", "part"),
    [
        ({"rope.scaling.type": "longrope"}, {}, "(longrope)"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}, "(yarn)"),
        ({}, {"rope_freqs.weight": [1.0, 1.0, 3.0, 1.0, 5.0, 6.0, 7.0, 8.0]}, "(rope_freqs.weight)"),
    ],
)
def test_positions_that_cannot_be_restored(
    tmp_path: Path, metadata: dict[str, Any], extra: dict[str, Any], part: str
) -> None:
    path = write(tmp_path / "positions.gguf", tiny(), metadata=metadata, extra=extra)
    found = refused(path)
    assert f"scales its positions {part}" in found
    assert "folder in transformers' format" in found


def test_a_file_without_some_of_its_tensors(tmp_path: Path) -> None:
    found = refused(write(tmp_path / "part.gguf", tiny(), without=("blk.1.ffn_up", "blk.1.attn_q")))
    assert "lacks 2 of the tensors of LlamaForCausalLM, such as model.layers.1.mlp.up_proj.weight" in found


def test_a_file_with_weights_that_nothing_reads(tmp_path: Path) -> None:
    extra = {"blk.0.attn_q.bias": [1.0] * 64}
    assert "contains 64 weights that transformers does not read into LlamaForCausalLM" in refused(
        write(tmp_path / "more.gguf", tiny(), extra=extra)
    )


def test_an_architecture_that_transformers_does_not_read(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mpt")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "the architecture 'mpt', which transformers" in refused(path)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "shapes.gguf", tiny(kind="Qwen3", head_dim=16), "qwen3")
    assert "shapes of its tensors differ" in refused(path)


def test_a_missing_reader_is_named_unless_a_copy_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tiny.gguf", tiny())
    find_spec = importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
        with pytest.raises(MissingExtraError, match=r"reading tiny.gguf needs gguf.*pip install 'textguide\[gguf\]'"):
            textguide.load(str(path), device="cpu")
        assert not [entry for entry in files.cache_root().iterdir() if entry.is_dir()]
    textguide.load(str(path), device="cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    textguide.load(str(path), device="cpu")


def test_names_that_do_not_end_in_gguf_and_what_lies_beside(tmp_path: Path) -> None:
    model = tiny(seed=3)
    folder = tmp_path / "beside"
    folder.mkdir()
    (folder / "config.json").write_text("{not json")
    (folder / "tokenizer.json").write_text("not json")
    (folder / "generation_config.json").write_text("[]")
    path = write(folder / "weights.bin", model, quantised=False)
    assert_same(path, model)


def test_the_tokenizer_is_that_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tiny())
    _, tokenizer = textguide.load(str(path), device="cpu")
    ids = tokenizer("ab jü").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁ab", "▁", "j", "<0xC3>", "<0xBC>"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "ab jü"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert (tokenizer.eos_token, tokenizer.padding_side) == ("</s>", "left")


def test_quantised_weights_are_those_of_the_package(tmp_path: Path) -> None:
    path = write(tmp_path / "q8.gguf", tiny(), quantised=True)
    loaded, _ = textguide.load(str(path), device="cpu")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for ours, theirs in (("lm_head", "output"), ("model.layers.1.mlp.down_proj", "blk.1.ffn_down")):
        tensor = tensors[f"{theirs}.weight"]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(loaded.state_dict()[f"{ours}.weight"], expected)
    rounded = conversion.converted("rounded", lambda: path, "bfloat16", False, "x")
    model, _ = textguide.load(str(rounded), device="cpu", dtype="auto")
    assert model.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name].bfloat16())


def test_progress_counts_every_weight_and_leaves_transformers_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    before = (reader.tqdm, logging.get_verbosity(), logging.is_progress_bar_enabled())
    header = quantized_file.read(write(tmp_path / "tiny.gguf", tiny()))
    steps: list[int] = []
    with dequantizing.quiet():
        dequantizing.read(header, torch.float32, steps.append)
    assert sum(steps) == header.parameters
    assert len(steps) == len(header.tensors)
    assert (reader.tqdm, logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("_", [pytest.param(None, marks=NEEDS_SMOLLM2)])
def test_the_bundled_file_elsewhere_is_the_bundled_model(_: None, tmp_path: Path) -> None:
    path = tmp_path / "copy of it.gguf"
    shutil.copy(bundled.gguf_path(), path)
    model, tokenizer = textguide.load(str(path), device="cpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("TEXTGUIDE_CACHE")
        expected, other = textguide.load(device="cpu")
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    text = "Hello 123 ü\n\n def f(x):"
    assert tokenizer(text).input_ids == other(text).input_ids
    assert tokenizer.chat_template == other.chat_template
