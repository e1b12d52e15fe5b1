"""Classifiers by name and from disk, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from textguide.classifiers import FunctionClassifier, load_linear, resolve
from textguide.classifiers.storage import DESCRIPTION, WEIGHTS

from .test_linear import random_classifier


def test_a_classifier_is_itself() -> None:
    classifier = random_classifier()
    assert resolve(classifier) is classifier


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("sentimant", ["'sentimant'", "did you mean 'sentiment'", "zero-shot:LABEL,LABEL", "hf:FOLDER_OR_NAME"]),
        ("gzp:x.tsv", ["did you mean 'gzip:FILE.tsv'"]),
        ("/no/such/folder", ["neither known nor a folder"]),
        ("gzip", ["must be written gzip:FILE.tsv"]),
        ("gzip:", ["must be written gzip:FILE.tsv"]),
        ("sentiment:x", ["must be written sentiment"]),
        ("gzip:/no/such.tsv", ["/no/such.tsv", "cannot be read"]),
        ("python:nope", ["python:MODULE:NAME"]),
        ("python:no_such_module:x", ["no module 'no_such_module'"]),
        ("python:json:no_such", ["'json' has no 'no_such'"]),
        ("python:json:__doc__", ["is str"]),
        ("", ["must be a Classifier"]),
        (3, ["classifier=3"]),
        (None, ["classifier=None"]),
    ],
)
def test_wrong_names(spec: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(spec)
    for part in parts:
        if part == "python:MODULE:NAME":
            assert part in str(caught.value) or "must be" in str(caught.value)
        else:
            assert part in str(caught.value)


def make() -> FunctionClassifier:
    return FunctionClassifier(lambda texts: torch.full((len(texts), 2), 0.5).log(), ("a", "b"), name="made")


def test_python() -> None:
    assert resolve(f"python:{__name__}:make").name == "made"


def test_gzip_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "few.tsv").write_text("text\tclass\na good day\tgood\na bad day\tbad\nbad luck\tbad\ngood luck\tgood\n")
    classifier = resolve(f"gzip:{tmp_path / 'few.tsv'}")
    assert classifier.labels == ("bad", "good")
    assert classifier.log_prob(["good luck"]).argmax() == 1


def test_pickles_are_refused(tmp_path: Path) -> None:
    for name in ("model.pkl", "model.joblib", "model"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(ValueError, match=r"is a pickle.*EstimatorClassifier.*safetensors"):
            resolve(str(path))
    with pytest.raises(ValueError, match="is a pickle"):
        resolve(f"hf:{tmp_path / 'model.pkl'}")


def _edit(folder: Path, **changes: Any) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    description.update(changes)
    (folder / DESCRIPTION).write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"version": 2}, [DESCRIPTION, "version 2"]),
        ({"format": "other"}, [DESCRIPTION, "does not describe a classifier"]),
        ({"kind": "odd"}, ["kind 'odd'"]),
        ({"sha256": "0" * 64}, [WEIGHTS, "hash differs"]),
        ({"labels": ["a"]}, ["labels="]),
        ({"labels": ["a", "b", "c"]}, ["'weights'", "4096×3"]),
        ({"settings": {"buckets": 4096}}, ["settings"]),
        ({"settings": {"buckets": 8192, "pairs": True, "shortest": 3, "longest": 5}}, ["8192×2"]),
    ],
)
def test_damaged_folders(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    random_classifier().save(tmp_path)
    _edit(tmp_path, **changes)
    with pytest.raises(ValueError) as caught:
        resolve(str(tmp_path))
    for part in parts:
        assert part in str(caught.value)


def test_missing_and_cut_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not contain a classifier"):
        resolve(str(tmp_path))
    random_classifier().save(tmp_path)
    assert resolve(str(tmp_path / WEIGHTS)).labels == ("c0", "c1")
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(ValueError, match="hash differs"):
        load_linear(tmp_path)
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_linear(tmp_path)
