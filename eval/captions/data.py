"""Pictures with captions from files: COCO's annotations, or a folder of images with a file of captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textguide.support.columns import names_columns

NAMES = ("captions.json", "captions.jsonl", "captions.tsv", "captions.csv", "captions.txt")


@dataclass(frozen=True)
class Picture:
    """One picture and the captions that people wrote.

    Args:
        name: identifies the picture.
        path: its file.
        references: captions by people.
    """

    name: str
    path: Path
    references: tuple[str, ...]


def read(source: str | Path) -> list[Picture]:
    """The pictures of ``source``, in the order of its captions.

    Args:
        source: COCO annotations (``images`` and ``annotations``); a list of ``{"file_name" or "image_name",
            "captions"}`` (as in Karpathy's splits) in a ``.json`` or ``.jsonl`` file; lines of ``file<tab>caption``
            (``.tsv``, ``.txt``) or ``file,caption`` (``.csv``), with several lines for a file if it has several
            captions; or a folder with one of these under the name ``captions.*``. Images are searched for in the folder
            of the captions, and in folders below it.

    Raises:
        ValueError: there is no such file, or it does not have one of these formats.
    """
    file = Path(source)
    if file.is_dir():
        files = [file / name for name in NAMES if (file / name).is_file()]
        if not files:
            raise ValueError(f"--data {file} does not have one of {', '.join(NAMES)}; put the captions there")
        file = files[0]
    if not file.is_file():
        raise ValueError(
            f"--data {source} does not exist; name a folder with images and captions, or a file of captions"
        )
    try:
        rows = _rows(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--data {file} cannot be read as captions ({' '.join(str(error).split())[:200]})") from error
    rows = {name: texts for name, texts in rows.items() if texts}
    if not rows:
        raise ValueError(f"--data {file} holds no captions")
    return [Picture(name, _path(file.parent, name), tuple(texts)) for name, texts in rows.items()]


def _rows(file: Path) -> dict[str, list[str]]:
    """Captions by the name of their image."""
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".jsonl":
        return _entries([json.loads(line) for line in text.splitlines() if line.strip()])
    if file.suffix == ".json":
        return _json_rows(json.loads(text))
    rows: dict[str, list[str]] = {}
    separator = "," if file.suffix == ".csv" else "\t"
    for number, line in enumerate(csv.reader(text.splitlines(), delimiter=separator), start=1):
        if not line:
            continue
        if not rows and names_columns(line):
            continue
        if len(line) != 2:
            raise ValueError(f"line {number} must hold a file and a caption")
        rows.setdefault(line[0], []).append(line[1])
    return rows


def _json_rows(values: Any) -> dict[str, list[str]]:
    """COCO's annotations, Karpathy's splits, a list of entries, or a mapping from images to captions."""
    if not isinstance(values, Mapping):
        return _entries(values)
    if "annotations" in values:
        names = {image["id"]: str(image["file_name"]) for image in values["images"]}
        rows: dict[str, list[str]] = {name: [] for name in names.values()}
        for annotation in values["annotations"]:
            rows[names[annotation["image_id"]]].append(str(annotation["caption"]))
        return rows
    if "images" in values:
        return _entries(values["images"])
    return _entries([{"file_name": name, "captions": captions} for name, captions in values.items()])


def _entries(values: list[Any]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for entry in values:
        name = next(entry[key] for key in ("file_name", "image_name", "filename", "image") if key in entry)
        captions = entry.get("captions", entry.get("caption", entry.get("sentences")))
        captions = [captions] if isinstance(captions, str) else captions
        texts = [caption["raw"] if isinstance(caption, Mapping) else caption for caption in captions]
        rows.setdefault(str(name), []).extend(map(str, texts))
    return rows


def _path(folder: Path, name: str) -> Path:
    for inner in (".", "images", "val2014", "train2014", "val2017", "train2017"):
        if (folder / inner / name).is_file():
            return folder / inner / name
    return folder / name
