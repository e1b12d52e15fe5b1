"""Classifiers on disk: a folder with ``classifier.json`` and ``weights.safetensors``, and nothing that runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support import files
from .base import label_names

DESCRIPTION = "classifier.json"
WEIGHTS = "weights.safetensors"
VERSION = 1
FORMAT = "textguide classifier"
PICKLES = (".pkl", ".pickle", ".joblib", ".skops", ".sav", ".pt", ".pth", ".bin")


def write(
    folder: str | os.PathLike[str],
    kind: str,
    labels: Sequence[str],
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    report: dict[str, Any] | None = None,
) -> Path:
    """Write a classifier into ``folder``, which is made where it is missing.

    Args:
        folder: where to; a classifier that is there already is replaced.
        kind: linear, embedding, causal or value.
        labels: class names.
        tensors: the weights.
        settings: what else belongs to the classifier, as JSON.
        report: how it was trained and what it reached; kept for the reader.
    """
    from safetensors.torch import save

    target = files.folder(folder)
    target.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    description = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "labels": list(labels),
        "settings": settings,
        "sha256": hashlib.sha256(data).hexdigest(),
        "report": report or {},
    }
    # The weights first: a description that does not fit them is seen when they are loaded.
    files.write_bytes(target / WEIGHTS, data)
    files.write_json(target / DESCRIPTION, description)
    return target


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the weights of a saved classifier.

    Args:
        path: the folder, or one of its two files.

    Raises:
        ValueError: a file is missing, damaged, of another version, or does not belong to the other; the message
            names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    given = Path(path)
    folder = given if given.is_dir() else given.parent
    refuse_pickle(given)
    source, weights = folder / DESCRIPTION, folder / WEIGHTS
    try:
        description = json.loads(source.read_text(encoding="utf-8"))
        data = weights.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{folder} holds no saved classifier: {error.filename} cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{source} is no JSON ({error}); train the classifier again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(
            f"{source} does not describe a classifier; name a folder that 'textguide classifier train' wrote"
        )
    if description.get("version") != VERSION:
        raise ValueError(f"{source} has version {description.get('version')!r}, and this textguide reads {VERSION}")
    missing = {"kind", "labels", "settings", "sha256"} - set(description)
    if missing:
        raise ValueError(f"{source} lacks {', '.join(sorted(missing))}; train the classifier again")
    if hashlib.sha256(data).hexdigest() != description["sha256"]:
        raise ValueError(f"{weights} is not the file that {source} was written with (its hash differs)")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged ({error})") from error
    if description["kind"] != "value":  # one number, and no classes
        label_names(description["labels"])
    return description, tensors


def tensor(tensors: dict[str, Tensor], name: str, shape: Sequence[int | None], path: Any) -> Tensor:
    """The tensor ``name`` in float32, whose shape must be ``shape`` (None: any size).

    Raises:
        ValueError: it is missing or has another shape; the message names the file.
    """
    found = tensors.get(name)
    if found is None:
        raise ValueError(f"{path} has no tensor {name!r}; it holds {', '.join(sorted(tensors)) or 'none'}")
    fits = found.dim() == len(shape) and all(
        want in (None, have) for want, have in zip(shape, found.shape, strict=True)
    )
    if not fits or not found.is_floating_point():
        wanted = "×".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{path}: tensor {name!r} has shape {tuple(found.shape)} ({found.dtype}), not {wanted}")
    if not found.isfinite().all():
        raise ValueError(f"{path}: tensor {name!r} holds values that are not finite")
    return found.to(torch.float32)


def expect(description: dict[str, Any], kind: str, path: Any, settings: Sequence[str]) -> None:
    """Raises ValueError unless a description is of ``kind`` and has exactly these ``settings``."""
    if description["kind"] != kind:
        raise ValueError(f"{path} holds a classifier of kind {description['kind']!r}, not {kind!r}")
    found = description["settings"]
    if not isinstance(found, dict) or set(found) != set(settings):
        raise ValueError(f"{path}: settings {found!r} are not those of a {kind} classifier ({', '.join(settings)})")


def refuse_pickle(path: Path) -> None:
    """Raises ValueError where ``path`` is a pickle: loading one runs whatever code it holds."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        start = stream.read(2)
    is_pickle = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    if is_pickle or path.suffix.lower() in PICKLES:
        raise ValueError(
            f"classifier {path} is a pickle, or may hold one, and loading it would run the code inside; load it "
            "yourself where you trust it and pass EstimatorClassifier(estimator), or train one that is saved as "
            "safetensors with 'textguide classifier train'"
        )
