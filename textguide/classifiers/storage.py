"""Classifiers on disk: a folder with ``classifier.json`` and ``weights.safetensors``, without executable code."""

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
    """Write a classifier into ``folder``, which is created if it does not exist.

    Args:
        folder: the folder; a classifier in it is replaced.
        kind: linear, embedding, causal or value.
        labels: class names.
        tensors: the weights.
        settings: other JSON values of the classifier.
        report: how it was trained and how well it does; only for people.
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
    # The weights first: if only they are written, loading notices that the description does not match them.
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

    path = Path(path)
    folder = path if path.is_dir() else path.parent
    refuse_pickle(path)
    source = folder / DESCRIPTION
    weights = folder / WEIGHTS
    try:
        description = json.loads(source.read_text(encoding="utf-8"))
        data = weights.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{folder} does not contain a classifier: {error.filename} cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}); train the classifier again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(
            f"{source} does not describe a classifier; pass a folder that 'textguide classifier train' wrote"
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
    if description["kind"] != "value":  # it has one number instead of classes
        label_names(description["labels"])
    return description, tensors


def tensor(tensors: dict[str, Tensor], name: str, shape: Sequence[int | None], path: Any) -> Tensor:
    """The tensor ``name`` in float32, whose shape must be ``shape`` (None: any size).

    Raises:
        ValueError: it is missing or has another shape; the message names the file.
    """
    value = tensors.get(name)
    if value is None:
        raise ValueError(f"{path} has no tensor {name!r}; it contains {', '.join(sorted(tensors)) or 'none'}")
    fits = value.dim() == len(shape) and all(
        expected in (None, size) for expected, size in zip(shape, value.shape, strict=True)
    )
    if not fits or not value.is_floating_point():
        expected_shape = "×".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{path}: tensor {name!r} has shape {tuple(value.shape)} ({value.dtype}), not {expected_shape}"
        )
    if not value.isfinite().all():
        raise ValueError(f"{path}: tensor {name!r} contains values that are not finite")
    return value.to(torch.float32)


def expect(description: dict[str, Any], kind: str, path: Any, settings: Sequence[str]) -> None:
    """Raise ValueError unless a description is of ``kind`` and has exactly these ``settings``."""
    if description["kind"] != kind:
        raise ValueError(f"{path} contains a classifier of kind {description['kind']!r}, not {kind!r}")
    values = description["settings"]
    if not isinstance(values, dict) or set(values) != set(settings):
        raise ValueError(f"{path}: settings {values!r} are not those of a {kind} classifier ({', '.join(settings)})")


def refuse_pickle(path: Path) -> None:
    """Raise ValueError if ``path`` is a pickle, since loading one runs the code that it contains."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        start = stream.read(2)
    is_pickle = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    if is_pickle or path.suffix.lower() in PICKLES:
        raise ValueError(
            f"classifier {path} is a pickle, or may contain one, and loading it would run the code inside; if you "
            "trust it, load it yourself and pass EstimatorClassifier(estimator), or train one that is saved as "
            "safetensors with 'textguide classifier train'"
        )
