"""The cache of converted models: never half-written, never silently damaged, written once."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from textguide import load
from textguide.models import bundled, conversion, dequantizing
from textguide.models.quantized_file import BF16, F16, F32, Header, TensorEntry
from textguide.support import files
from textguide.support.errors import ModelUnavailableError

from ..tiny_folder import make_model, make_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(root))
    return root


class Source:
    """Stands in for the file: a tiny model is 'read' from it. Counts the conversions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conversions = 0
        self.fail: BaseException | None = None

    def read(self, header: Any, dtype: Any, advance: Any) -> Any:
        self.conversions += 1
        if self.fail is not None:
            raise self.fail
        advance(3)
        return make_model(102).to(dtype), make_tokenizer()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    source = Source(path)
    monkeypatch.setattr(bundled, "gguf_path", lambda: path)
    monkeypatch.setattr(dequantizing, "read", source.read)
    return source


def unavailable(*parts: str) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        bundled.folder()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_converts_once_and_is_complete(source: Source, cache: Path) -> None:
    first = bundled.folder()
    assert first.parent == cache
    assert {"config.json", "model.safetensors", "tokenizer.json", conversion.MANIFEST} <= set(os.listdir(first))
    assert bundled.folder() == first
    assert source.conversions == 1
    manifest = json.loads((first / conversion.MANIFEST).read_text())
    assert set(manifest["files"]) == set(os.listdir(first)) - {conversion.MANIFEST}
    assert (manifest["source"], manifest["dtype"]) == (str(source.path), "float32")


def test_the_copy_loads_as_the_model(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundled.folder()
    monkeypatch.undo()
    model, tokenizer = load(str(folder), device="cpu")
    expected = make_model(102).state_dict()
    assert all((tensor == expected[name]).all() for name, tensor in model.state_dict().items())
    assert tokenizer("a").input_ids == make_tokenizer()("a").input_ids


def test_refresh_rebuilds(source: Source) -> None:
    folder = bundled.folder()
    (folder / "stray").write_text("left from before")
    (folder / "config.json").write_text("damaged")
    assert bundled.folder(refresh=True) == folder
    assert source.conversions == 2
    assert not (folder / "stray").exists()
    conversion.verify(folder, "smollm2")


def damage_flip(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)


def damage_truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def damage_delete(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_delete])
def test_damage_is_noticed(source: Source, damage: Any) -> None:
    folder = bundled.folder()
    damage(folder)
    name = "tokenizer.json" if damage is damage_delete else "model.safetensors"
    unavailable("damaged", name, str(folder), "refresh=True")
    # The remedy that the message names works.
    bundled.folder(refresh=True)
    bundled.folder()
    assert source.conversions == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"files": []}',
        '{"files": {}}',
        '{"files": {"config.json": 3}}',
        '{"files": {"config.json": {"bytes": 3}}}',
    ],
)
def test_broken_manifest(source: Source, content: str) -> None:
    folder = bundled.folder()
    (folder / conversion.MANIFEST).write_text(content)
    unavailable(conversion.MANIFEST, str(folder), "refresh=True")


def test_a_folder_without_manifest_was_never_finished(source: Source) -> None:
    folder = bundled.folder()
    (folder / conversion.MANIFEST).unlink()
    bundled.folder()
    assert source.conversions == 2


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt(), OSError("unreadable")])
def test_a_conversion_that_dies_leaves_nothing(source: Source, cache: Path, error: BaseException) -> None:
    source.fail = error
    with pytest.raises(type(error)):
        bundled.folder()
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    source.fail = None
    conversion.verify(bundled.folder(), "smollm2")


def test_a_refresh_that_dies_keeps_the_old_copy(source: Source) -> None:
    folder = bundled.folder()
    source.fail = RuntimeError("no memory")
    with pytest.raises(RuntimeError):
        bundled.folder(refresh=True)
    conversion.verify(folder, "smollm2")


def test_leftovers_of_a_killed_conversion_are_cleared(source: Source, cache: Path) -> None:
    stale = cache / f"smollm2-{bundled.PACKAGE_VERSION}-f32.abc123"
    other = cache / "another-model"
    for path in (stale, other):
        path.mkdir(parents=True)
        (path / "model.safetensors").write_text("half")
    bundled.folder()
    assert not stale.exists()
    assert other.exists()


_RACE = """
import json, sys, time
from pathlib import Path
from textguide.models import bundled, conversion

def convert(gguf, target, dtype):
    with open(sys.argv[1], "a") as log:
        log.write("converted\\n")
    time.sleep(1.0)
    staging = Path(f"{target}.staging")
    staging.mkdir()
    (staging / "weights").write_text("w")
    entry = {"bytes": 1, "sha256": conversion._sha256(staging / "weights")}
    (staging / conversion.MANIFEST).write_text(json.dumps({"files": {"weights": entry}}))
    staging.rename(target)

conversion._convert = convert
bundled.gguf_path = lambda: Path("model.gguf")
print(bundled.folder())
"""


def test_racing_processes_convert_once(tmp_path: Path, cache: Path) -> None:
    log = tmp_path / "log"
    racers = [
        subprocess.Popen([sys.executable, "-c", _RACE, str(log)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert set(outputs) == {str(cache / f"smollm2-{bundled.PACKAGE_VERSION}-f32")}
    assert log.read_text().splitlines() == ["converted"]


def test_cache_below_a_file(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("TEXTGUIDE_CACHE", str(root))
        unavailable(str(root), "TEXTGUIDE_CACHE")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_unwritable_cache(source: Source, cache: Path, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "mkdir", refuse)
    unavailable(str(cache), str(error.strerror), "TEXTGUIDE_CACHE")


def test_full_disk(source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.fail = OSError(28, "No space left on device")
    unavailable(str(cache), "No space left", "TEXTGUIDE_CACHE")
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_a_read_only_cache_that_is_complete_serves(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundled.folder()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert bundled.folder() == folder


def test_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("TEXTGUIDE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_root().name == "textguide"
    if sys.platform == "linux":
        assert files.cache_root() == tmp_path / "xdg" / "textguide"


def test_sums_are_those_of_the_content(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 9000)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert conversion._sha256(path) == expected


def test_a_folder_is_named_by_its_file_and_changes_with_it(source: Source, cache: Path) -> None:
    path = source.path.with_name("My model (Q4).gguf")
    source.path.rename(path)
    first = conversion.folder_of(path)
    assert re.fullmatch(r"My-model-Q4--[0-9a-f]{8}-f32", first.name)
    assert conversion.folder_of(path) == first
    moved = cache.parent / "elsewhere" / path.name
    moved.parent.mkdir()
    path.rename(moved)
    (path.parent / "link.gguf").symlink_to(moved)
    assert conversion.folder_of(moved) == first
    assert conversion.folder_of(path.parent / "link.gguf").name.startswith("link-")
    assert source.conversions == 2
    about = moved.stat()
    os.utime(moved, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    second = conversion.folder_of(moved)
    moved.write_bytes(moved.read_bytes() + b"more")
    os.utime(moved, ns=(about.st_atime_ns, about.st_mtime_ns))
    third = conversion.folder_of(moved)
    assert len({first, second, third}) == 3
    assert conversion.folder_of(moved, refresh=True) == third
    assert source.conversions == 5


def test_damage_of_a_file_names_it(source: Source) -> None:
    damage_flip(conversion.folder_of(source.path))
    with pytest.raises(ModelUnavailableError, match=r"damaged.*refresh=True") as caught:
        load(str(source.path), device="cpu")
    assert f"textguide.load({str(source.path)!r}" in str(caught.value)
    load(str(source.path), device="cpu", refresh=True)


@pytest.mark.parametrize(
    ("weights", "kinds", "stored"),
    [
        (1_000, {2}, {"auto": "float32", "bfloat16": "float32", "float32": "float32"}),
        (1_000, {F16}, {"auto": "float32"}),
        (1_500_000_000, {12, 14}, {"auto": "bfloat16", "bfloat16": "bfloat16"}),
        (1_500_000_000, {12, 14}, {"float32": "float32", "float16": "float32"}),
        (1_500_000_000, {BF16}, {"auto": "bfloat16", "float32": "bfloat16"}),
        (1_500_000_000, {F16}, {"auto": "float16", "bfloat16": "float16", "float32": "float16"}),
        (1_500_000_000, {F32}, {"auto": "float32"}),
    ],
)
def test_the_dtype_of_the_copy(weights: int, kinds: set[int], stored: dict[str, str]) -> None:
    tensors = [TensorEntry("matrix", (weights, 1), kind, 0) for kind in sorted(kinds)[:1]]
    tensors += [TensorEntry("matrix", (1, 1), kind, 0) for kind in sorted(kinds)[1:]]
    header = Header(Path("x.gguf"), {}, (*tensors, TensorEntry("norm", (8,), F32, 0)), 0)
    for wanted, expected in stored.items():
        assert conversion.stored_dtype(header, wanted) == expected


def test_the_dtype_that_is_asked_for_is_what_comes_back(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "LARGE", 0)
    exact = make_model(102).state_dict()
    for dtype, name in (("bfloat16", "bf16"), ("float32", "f32"), ("float16", "f32"), (torch.float32, "f32")):
        assert conversion.folder_of(source.path, dtype).name.endswith(f"-{name}")
        model, _ = load(str(source.path), device="cpu", dtype=dtype)
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        assert model.dtype == wanted
        assert all(torch.equal(value, exact[key].to(wanted)) for key, value in model.state_dict().items())
    assert load(str(source.path), device="cpu")[0].dtype == torch.float32
    assert load(str(source.path), device="cpu", dtype="auto")[0].dtype == torch.bfloat16
    assert source.conversions == 2


def test_no_room_for_the_copy(source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = TensorEntry("x", (10**9,), 2, 0)
    monkeypatch.setattr(conversion.quantized_file, "read", lambda path: Header(path, {}, (tensor,), 0))
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(ModelUnavailableError, match=r"needs 2\.0 GB .* has 1\.0 GB left") as caught:
        conversion.folder_of(source.path)
    for part in (str(source.path), str(cache), "TEXTGUIDE_CACHE"):
        assert part in str(caught.value)


def test_a_disk_that_fills_up_while_weights_are_written(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    source.fail = SafetensorError("Error while serializing: I/O error: No space left on device")
    unavailable("No space left", "TEXTGUIDE_CACHE")


def test_other_users_may_read_the_copy(source: Source) -> None:
    mask = os.umask(0o022)
    try:
        folder = bundled.folder()
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


def test_large_files_are_compared_by_size_alone(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundled.folder()
    monkeypatch.setattr(conversion, "SUMMED", 1000)
    damage_flip(folder)
    assert bundled.folder() == folder
    damage_truncate(folder)
    unavailable("model.safetensors has changed")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_terminal_alone(
    source: Source, terminal: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    conversion.folder_of(source.path)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("converting model.gguf, once" in err) == terminal
    if not terminal:
        assert err == ""
