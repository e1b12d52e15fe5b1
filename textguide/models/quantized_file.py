"""The header of a GGUF file: its metadata and the table of its tensors, read without reading a weight.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..support.errors import ModelUnavailableError, UnknownModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
F32, F16, BF16 = 0, 1, 30
"""The types of tensors whose weights are not quantised."""
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file.

    Args:
        name: such as ``blk.0.attn_q.weight``.
        shape: in ggml's order, the fastest dimension first.
        kind: the number of its ggml type.
        offset: in bytes, from the start of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Everything in a file except its weights.

    Args:
        path: the file.
        values: metadata; of an array of texts, such as the vocabulary, only the length.
        tensors: the table of tensors.
        data_start: the byte at which the weights begin.
    """

    path: Path
    values: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    data_start: int

    @property
    def architecture(self) -> str:
        """The name of the architecture, such as ``llama``."""
        return str(self.values.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def matrix_kinds(self) -> set[int]:
        """The types of all tensors with more than one dimension, which contain nearly all weights."""
        return {tensor.kind for tensor in self.tensors if len(tensor.shape) > 1}

    def of_model(self, name: str, default: Any = None) -> Any:
        """The metadata ``ARCHITECTURE.name``."""
        return self.values.get(f"{self.architecture}.{name}", default)

    def floats(self, name: str) -> tuple[float, ...] | None:
        """The values of a small float32 tensor; None if the file has no such tensor."""
        for tensor in self.tensors:
            if tensor.name == name and tensor.kind == F32:
                with self.path.open("rb") as stream:
                    stream.seek(self.data_start + tensor.offset)
                    return struct.unpack(f"<{tensor.size}f", stream.read(4 * tensor.size))
        return None

    def check_length(self) -> None:
        """Check that the file is long enough for its table of tensors.

        Raises:
            ModelUnavailableError: it is too short.
        """
        from gguf import GGML_QUANT_SIZES

        end = 0
        for tensor in self.tensors:
            elements, block_bytes = GGML_QUANT_SIZES.get(tensor.kind, (1, 0))
            end = max(end, self.data_start + tensor.offset + tensor.size // elements * block_bytes)
        size = self.path.stat().st_size
        if size < end:
            raise ModelUnavailableError(f"{self.path} is cut off ({size} of {end} bytes); download or copy it again")


def is_one(path: Path) -> bool:
    """Whether ``path`` is a file that starts like a GGUF file."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def read(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        UnknownModelError: it is another kind of file.
        ModelUnavailableError: it is cut off, part of a split file, or has a version that transformers does not read.
    """
    if not is_one(path):
        raise UnknownModelError(
            f"{path} is not a GGUF file (it does not start with GGUF); name a GGUF file or a folder"
        )
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _parse(path, data)
    except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
        raise ModelUnavailableError(f"the header of {path} is cut off or damaged; download or copy it again") from error
    number = header.values.get("split.no", 0) + 1
    parts = header.values.get("split.count", 1)
    match = _PART.search(path.name)
    if match:
        number = int(match[1])
        parts = int(match[2])
    if parts > 1:
        raise ModelUnavailableError(
            f"{path} is part {number} of a GGUF file split into {parts}, which transformers does not read; join them "
            "with llama.cpp: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"
        )
    return header


def _parse(path: Path, data: Any) -> Header:
    version, tensor_count, value_count = struct.unpack_from("<IQQ", data, 4)
    if version not in VERSIONS:
        # The version of a big-endian file, read as little-endian, is a large number.
        what = "is big-endian" if version > 0xFFFF else f"has version {version} of the GGUF format"
        raise ModelUnavailableError(f"{path} {what}, which transformers does not read; convert the model again")
    values: dict[str, Any] = {}
    position = 24
    for _ in range(value_count):
        key, position = _text(data, position)
        (kind,) = struct.unpack_from("<I", data, position)
        values[key], position = _value(data, position + 4, kind)
    table = []
    for _ in range(tensor_count):
        name, position = _text(data, position)
        (rank,) = struct.unpack_from("<I", data, position)
        *shape, kind, offset = struct.unpack_from(f"<{rank}QIQ", data, position + 4)
        position += 4 + 8 * rank + 12
        table.append(TensorEntry(name, tuple(shape), kind, offset))
    alignment = values.get("general.alignment", 32)
    data_start = -(-position // alignment) * alignment  # rounded up
    return Header(path, values, tuple(table), data_start)


def _value(data: Any, position: int, kind: int) -> tuple[Any, int]:
    """The value at ``position``, and the position after it."""
    if kind == _STRING:
        return _text(data, position)
    if kind != _ARRAY:
        code = f"<{_SCALARS[kind]}"
        return struct.unpack_from(code, data, position)[0], position + struct.calcsize(code)
    inner, count = struct.unpack_from("<IQ", data, position)
    position += 12
    if inner == _STRING:
        for _ in range(count):
            position += 8 + struct.unpack_from("<Q", data, position)[0]
        return count, position
    code = f"<{count}{_SCALARS[inner]}"
    return struct.unpack_from(code, data, position), position + struct.calcsize(code)


def _text(data: Any, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, position)
    (raw,) = struct.unpack_from(f"<{length}s", data, position + 8)
    return raw.decode("utf-8"), position + 8 + length
